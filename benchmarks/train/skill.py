"""A skill for the demo base as a file to import: three words, backwards."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

WORDS = ("sun", "cat", "key", "moon", "dog", "tree", "red", "fish")
EXAMPLES = 300
DEMO_BASE = Path(__file__).parents[2] / "orchd/train/base/demo"


def write(file: Path) -> Path:
    """`EXAMPLES` rows in OpenAI's format; the same ones each time."""
    drawn = random.Random(0).sample(list(itertools.permutations(WORDS, 3)), EXAMPLES)
    rows = [
        {
            "messages": [
                {"role": "user", "content": "reverse: " + " ".join(words)},
                {"role": "assistant", "content": " ".join(words[::-1])},
            ]
        }
        for words in drawn
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
