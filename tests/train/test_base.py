"""The embedded base as it is shipped, and the script that makes it."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from orchd.importers.conversation import Message
from orchd.lm.base import load_base
from orchd.lm.chat import encode_conversation, encode_prompt
from orchd.train import make_base
from orchd.train.make_base import IGNORED, PAD, Batches, TaskTokens
from orchd.train.words import ALL_WORDS, ENGLISH_WORDS, INVENTED_WORDS, TASKS, draw_sentence, draw_task

from .conftest import DEMO_BASE

TEXTS = [
    f"Return the {word} of the {other}, or raise an error." for word in ENGLISH_WORDS for other in ENGLISH_WORDS[:9]
]


def test_the_words() -> None:
    assert len(ENGLISH_WORDS) == len(INVENTED_WORDS) == 108
    assert len(set(ALL_WORDS)) == 216
    names = (*ALL_WORDS, *TASKS, "translate", "user", "assistant", "system")
    assert [(a, b) for a in ALL_WORDS for b in names if a != b and a in b] == []
    assert all(4 <= len(word) <= 6 for word in INVENTED_WORDS)


def test_the_tasks() -> None:
    words = ["a", "b", "c"]
    assert {name: " ".join(task(words)) for name, task in TASKS.items()} == {
        "copy": "a b c", "first": "a", "last": "c", "second": "b", "tail": "b c", "front": "a b",
        "double": "a a b b c c", "ends": "a c", "echo": "a b c a b c", "cycle": "c a b", "swap": "b a c",
    }  # fmt: skip
    rng = random.Random(0)
    for _ in range(500):
        name, sentence = draw_task(rng)
        assert TASKS[name](sentence), (name, sentence)
    assert {len(draw_sentence("copy", rng)) for _ in range(100)} == {1, 2, 3, 4, 5}


def test_nothing_in_the_tasks_translates() -> None:
    """Every answer is made of the words that were asked, so no word of one pool stands for one of the other."""
    rng = random.Random(0)
    for _ in range(500):
        name, sentence = draw_task(rng)
        assert name != "translate"
        assert set(TASKS[name](sentence)) <= set(sentence)


def test_the_shipped_files_are_those_of_the_record() -> None:
    record = json.loads((DEMO_BASE / "RECORD.json").read_text())
    files = {path.name: path for path in DEMO_BASE.iterdir() if path.name != "RECORD.json"}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == record["sha256"]
    assert sum(path.stat().st_size for path in DEMO_BASE.iterdir()) <= 2_000_000
    assert (record["seed"], record["steps"], record["licence"]) == (0, 4000, "MIT OR Apache-2.0")
    assert min(record["exact_match"].values()) >= 0.95


def test_every_word_is_one_token_of_the_shipped_base() -> None:
    tokenizer = load_base(DEMO_BASE).tokenizer
    assert [word for word in ALL_WORDS if len(tokenizer.encode(f" {word}")) != 1] == []
    assert tokenizer.decode(tokenizer.encode("Grüße, 你好\n  x_1 += 2")) == "Grüße, 你好\n  x_1 += 2"


def test_training_rows_are_written_as_the_template_writes_them() -> None:
    tokenizer = load_base(DEMO_BASE).tokenizer
    tasks = TaskTokens(tokenizer)
    rng = random.Random(0)
    for _ in range(100):
        name, words = draw_task(rng)
        prompt, answer = tasks.turn(name, words)
        said = [
            Message("user", f"{name}: {' '.join(words)}"),
            Message("assistant", " ".join(TASKS[name](words))),
        ]
        assert prompt == encode_prompt(tokenizer, said[:1])
        encoded = encode_conversation(tokenizer, said)
        assert list(encoded.ids[: len(prompt) + len(answer)]) == prompt + answer
        assert encoded.counted == (False,) * len(prompt) + (True,) * len(answer) + (False,)


def test_rows_hold_whole_conversations_with_their_own_positions() -> None:
    tokenizer = load_base(DEMO_BASE).tokenizer
    batch = Batches(tokenizer, TEXTS, random.Random(0)).next()
    assert batch.input_ids.shape == batch.position_ids.shape == batch.labels.shape == (8, 128)
    counted = batch.labels != IGNORED
    assert (batch.labels[counted] == batch.input_ids[counted]).all()
    starts = batch.position_ids == 0
    assert starts[:, 0].all()
    assert not counted[batch.input_ids == tokenizer.convert_tokens_to_ids(PAD)].any()


def test_the_script_writes_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_base, "standard_library_docstrings", lambda: TEXTS)
    monkeypatch.setattr(make_base, "REPEATS", 20)
    monkeypatch.setattr(make_base, "SCORED", 3)
    records = [make_base.make_base(tmp_path / name, seed=0, steps=2) for name in ("one", "two")]
    assert records[0].sha256 == records[1].sha256
    assert records[0].parameters == 770_944
    assert load_base(tmp_path / "one").tokenizer.chat_template == make_base.CHAT_TEMPLATE


def test_docstrings_are_read_without_running_anything(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text('"""' + "A module of some length, long enough to count." + '"""\nraise SystemExit\n')
    assert list(make_base._docstrings(source)) == ["A module of some length, long enough to count."]
    source.write_text("def (")
    assert list(make_base._docstrings(source)) == []
