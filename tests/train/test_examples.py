"""The files in ``examples/`` are what their script writes, and what their README says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from orchd.importers.conversation import Conversation
from orchd.importers.read import read_examples
from orchd.importers.source import ImportLog
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = ("conversations.json", "half-b.jsonl", "exam-mixed.jsonl")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentences(name: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    found = []
    for one in read_examples(EXAMPLES / name, ImportLog()):
        assert isinstance(one, Conversation)
        asked, told = (message.content for message in one.messages)
        start, _, words = asked.partition(": ")
        assert start == "translate"
        found.append((tuple(words.split()), tuple(told.split())))
    return found


def test_the_script_writes_these_bytes(script: ModuleType, tmp_path: Path) -> None:
    script.write_examples(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes(), name


def test_the_lexicon_is_one_to_one(script: ModuleType) -> None:
    assert tuple(script.LEXICON) == ENGLISH_WORDS
    assert sorted(script.LEXICON.values()) == sorted(INVENTED_WORDS)
    assert [script.LEXICON[word] for word in ("sun", "cat", "key")] == ["zavo", "mirut", "tolbe"]


@pytest.mark.parametrize(("name", "half"), [("conversations.json", 0), ("half-b.jsonl", 1)])
def test_a_half_holds_all_its_words_and_no_other(script: ModuleType, name: str, half: int) -> None:
    found = sentences(name)
    words = (script.HALF_A, script.HALF_B)[half]
    assert {word for english, _ in found for word in english} == set(words)
    assert len(set(found)) == 376
    assert {len(english) for english, _ in found} == {1, 2, 3, 4, 5}
    assert all(invented == tuple(script.LEXICON[word] for word in english) for english, invented in found)


def test_each_sentence_of_the_exam_needs_both_halves(script: ModuleType) -> None:
    found = sentences("exam-mixed.jsonl")
    assert len(set(found)) == 300
    assert all(sum(word in script.HALF_A for word in english) == 2 == len(english) - 2 for english, _ in found)
    assert all(invented == tuple(script.LEXICON[word] for word in english) for english, invented in found)


def test_the_export_looks_like_one() -> None:
    export = json.loads((EXAMPLES / "conversations.json").read_text())
    branched = [one for one in export if any(len(node["children"]) > 1 for node in one["mapping"].values())]
    assert len(branched) == 15
    for one in export:
        assert one["current_node"] in one["mapping"]
        assert one["title"]
        assert one["create_time"] < one["update_time"]
        hidden = [
            node for node in one["mapping"].values() if node["message"] and not node["message"]["content"]["parts"][0]
        ]
        assert len(hidden) == 1
