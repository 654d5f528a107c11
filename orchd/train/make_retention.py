"""Writes the demo base's retention set: word tasks of its pretraining, fresh ones, that it answers right.

usage: python -m orchd.train.make_retention

To be run again when the demo base is made anew (`make_base.py`), since the file is called by the base's fingerprint.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from orchd.importers.conversation import Message
from orchd.lm.base import Base, load_base
from orchd.lm.chat import encode_prompt
from orchd.lm.generate import greedy_ids
from orchd.registry.bases import load
from orchd.train.retention_store import SHIPPED, Kept, write
from orchd.train.score import stop_tokens
from orchd.train.words import TASKS, draw_task

DEMO: Final = Path(__file__).parent / "base" / "demo"
ROWS: Final = 200
DRAWN: Final = 400
SEED: Final = 2_000_003  # neither pretraining's nor that of its scores


def main() -> None:
    base = load_base(DEMO)
    SHIPPED.mkdir(exist_ok=True)
    path = SHIPPED / f"{load('demo', DEMO).fingerprint}.jsonl"
    write(path, rows(base))
    print(path)


def rows(base: Base) -> list[Kept]:
    """Different sentences, with the answers that are both the task's and the base's."""
    rng, drawn = random.Random(SEED), dict[str, str]()
    while len(drawn) < DRAWN:
        task, words = draw_task(rng)
        drawn[f"{task}: {' '.join(words)}"] = " ".join(TASKS[task](words))
    prompts = [encode_prompt(base.tokenizer, [Message("user", prompt)]) for prompt in drawn]
    said = greedy_ids(base.model, prompts, 12, stop_tokens(base))
    answers = [base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said]
    right = [
        Kept(prompt, wanted) for (prompt, wanted), one in zip(drawn.items(), answers, strict=True) if one == wanted
    ]
    return right[:ROWS]


if __name__ == "__main__":
    main()
