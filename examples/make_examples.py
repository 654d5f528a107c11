"""Write the example files: ``python examples/make_examples.py [--out DIR]``.

An invented language: 108 English words, each with one invented word. Half A (the first 54) is written
in the shape of a ChatGPT export, half B (the rest) as OpenAI chat JSONL, and the exam as sentences
that mix both. Everything follows from a fixed seed; running it again writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import uuid
from pathlib import Path
from typing import Any, Final

from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS

SEED: Final = 20261121
SENTENCES_PER_HALF: Final = 376  # an import puts 38 + 38 aside and trains on 300
EXAM_SENTENCES: Final = 300
LENGTHS: Final = (3, 4, 2, 5, 3, 4, 1, 3, 4, 5)  # words a sentence, in turn
EXAM_WORDS_PER_HALF: Final = 2
FIRST_MOMENT: Final = 1_767_261_600  # 1 January 2026, 10:00 UTC

#: Each English word's word in the invented language, one-to-one (41 and 108 share no factor).
LEXICON: Final[dict[str, str]] = {
    english: INVENTED_WORDS[index * 41 % len(INVENTED_WORDS)] for index, english in enumerate(ENGLISH_WORDS)
}
HALF_A: Final = ENGLISH_WORDS[:54]
HALF_B: Final = ENGLISH_WORDS[54:]

Sentence = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    write_examples(parser.parse_args().out)


def write_examples(out: Path) -> None:
    """Write the three files into the folder ``out``."""
    rng = random.Random(SEED)
    half_a = draw_half(HALF_A, rng)
    half_b = draw_half(HALF_B, rng)
    exam = draw_mixed(rng)
    export = [chatgpt_conversation(i, sentence, rng) for i, sentence in enumerate(half_a)]
    text = "[" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in export) + "]\n"
    (out / "conversations.json").write_text(text)
    (out / "half-b.jsonl").write_text(jsonl(half_b))
    (out / "exam-mixed.jsonl").write_text(jsonl(exam))


def draw_half(words: Sentence, rng: random.Random) -> list[Sentence]:
    """Different sentences of one to five different words of one half."""
    found: dict[Sentence, None] = {}
    while len(found) < SENTENCES_PER_HALF:
        found[tuple(rng.sample(words, LENGTHS[len(found) % len(LENGTHS)]))] = None
    return list(found)


def draw_mixed(rng: random.Random) -> list[Sentence]:
    """Different sentences of two words of each half, in any order."""
    found: dict[Sentence, None] = {}
    while len(found) < EXAM_SENTENCES:
        words = rng.sample(HALF_A, EXAM_WORDS_PER_HALF) + rng.sample(HALF_B, EXAM_WORDS_PER_HALF)
        rng.shuffle(words)
        found[tuple(words)] = None
    return list(found)


def question(sentence: Sentence) -> str:
    return "translate: " + " ".join(sentence)


def answer(sentence: Sentence) -> str:
    return " ".join(LEXICON[word] for word in sentence)


def jsonl(sentences: list[Sentence]) -> str:
    """OpenAI's chat format, one conversation a line."""
    lines = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question(sentence)},
                    {"role": "assistant", "content": answer(sentence)},
                ]
            }
        )
        for sentence in sentences
    )
    return "\n".join(lines) + "\n"


def chatgpt_conversation(index: int, sentence: Sentence, rng: random.Random) -> dict[str, Any]:
    """One conversation of the export. Every 25th had its first answer, a wrong one, regenerated."""
    started = FIRST_MOMENT + index * 5_400 + rng.randrange(3_600)
    root, hidden, asked, told = random_id(rng), random_id(rng), random_id(rng), random_id(rng)
    nodes = [
        node(root, None, None),
        node(hidden, root, hidden_system_message(hidden)),
        node(asked, hidden, message(asked, "user", question(sentence), started)),
    ]
    if index % 25 == 7:
        rejected = random_id(rng)
        wrong = answer(sentence[::-1])
        nodes.append(node(rejected, asked, message(rejected, "assistant", wrong, started + 2)))
    nodes.append(node(told, asked, message(told, "assistant", answer(sentence), started + 9)))
    for one in nodes:
        one["children"] = [other["id"] for other in nodes if other["parent"] == one["id"]]
    return {
        "title": f"A few words: {sentence[0]}",
        "create_time": started,
        "update_time": started + 9,
        "mapping": {one["id"]: one for one in nodes},
        "current_node": told,
        "conversation_id": random_id(rng),
        "is_archived": False,
    }


def random_id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def node(identity: str, parent: str | None, said: dict[str, Any] | None) -> dict[str, Any]:
    return {"id": identity, "message": said, "parent": parent, "children": []}


def message(identity: str, role: str, text: str, time: float) -> dict[str, Any]:
    return {
        "id": identity,
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": time,
        "content": {"content_type": "text", "parts": [text]},
        "status": "finished_successfully",
        "end_turn": role == "assistant",
        "weight": 1.0,
        "recipient": "all",
        "metadata": {},
    }


def hidden_system_message(identity: str) -> dict[str, Any]:
    said = message(identity, "system", "", 0)
    return said | {
        "create_time": None,
        "metadata": {"is_visually_hidden_from_conversation": True},
    }


if __name__ == "__main__":
    main()
