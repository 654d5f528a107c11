"""Which conversations are taken, and what is odd about a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchd.errors import ParamsInvalid
from orchd.importers.conversation import Conversation, Message
from orchd.importers.pick import DAY_MS, Pick, bounds
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog

MARCH = 1_740_787_200_000  # 1 March 2025, UTC


def one(**changes: Any) -> Conversation:
    said = (Message("user", "How do I bake bread?"), Message("assistant", "Slowly."))
    about = {"id": "abc123", "title": "Baking", "updated_ms": MARCH + 5, "model": "gpt-4o", "messages": said}
    return Conversation(**(about | changes))


@pytest.mark.parametrize(
    ("pick", "wanted"),
    [
        (Pick(), True),
        (Pick(ids=("zzz", "abc")), True),
        (Pick(ids=("zzz",)), False),
        (Pick(title="bAK"), True),
        (Pick(title="cook"), False),
        (Pick(search="SLOW"), True),
        (Pick(search="fast"), False),
        (Pick(model="4o"), True),
        (Pick(model="o3"), False),
        (Pick(since_ms=MARCH, until_ms=MARCH + DAY_MS), True),
        (Pick(since_ms=MARCH + 6), False),
        (Pick(until_ms=MARCH + 5), False),
        (Pick(title="bak", search="fast"), False),
    ],
)
def test_all_that_is_given_must_fit(pick: Pick, wanted: bool) -> None:
    assert pick.wants(one()) is wanted


def test_without_a_date_nothing_is_in_time() -> None:
    assert not Pick(until_ms=MARCH).wants(one(updated_ms=0))
    assert Pick(until_ms=MARCH + 9).wants(one(updated_ms=0, created_ms=MARCH))


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [("2025-03-01", "2025-03-01", 1), ("2025-02", "2025-02", 28), ("2024", "2024", 366), ("2025-12", "2025-12", 31)],
)
def test_dates_take_in_the_whole_of_what_they_name(since: str, until: str, days: int) -> None:
    low, high = bounds(since, until)
    assert high - low == days * DAY_MS


@pytest.mark.parametrize("text", ["yesterday", "2025-13", "25-01-01", "2025-02-30", "2025-3"])
def test_no_date(text: str) -> None:
    with pytest.raises(ParamsInvalid, match="is no date") as told:
        bounds(text, "")
    assert told.value.field == "since"


def test_what_is_not_picked_is_counted_and_is_no_error(tmp_path: Path) -> None:
    records = [
        {"uuid": f"u{n}", "name": f"Talk {n}", "updated_at": f"2025-0{n}-01T00:00:00Z", "chat_messages": [
            {"sender": "human", "text": "q"}, {"sender": "assistant", "text": "a"}]}
        for n in (1, 2, 3)
    ]  # fmt: skip
    (path := tmp_path / "conversations.json").write_text(json.dumps(records))
    low, high = bounds("2025-02", "2025-02")
    log = ImportLog()
    found = list(read_examples(path, log, Reading(pick=Pick(since_ms=low, until_ms=high))))
    assert [example.id for example in found] == ["u2"]
    assert (log.not_picked, log.skipped) == (2, 0)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"messages": [{"role": "bot", "content": "x"}, {"role": "user", "content": "q"}]},
         "message 1: no such role: 'bot'; it is left out"),
        ({"messages": [{"role": "user", "content": "q"}, "junk"]}, "message 2 is no object"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
         "message 2 has no text; it is left out"),
        ({"messages": "q"}, "messages is no list"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "robot", "value": "a"}]},
         "message 2: no such from: 'robot'; it is left out"),
        ({"instruction": "q"}, "no output to the instruction"),
        ({"messages": [{"role": "user", "content": "q"}] * 2 + [{"role": "assistant", "content": "a"}]},
         "two user messages in a row"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
         "it begins with an answer"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                       {"role": "user", "content": "q"}]}, "it ends with a question"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "s"},
                       {"role": "assistant", "content": "a"}]}, "a system message after the first one"),
    ],
)  # fmt: skip
def test_what_is_odd_is_told_with_its_line_and_a_fix(tmp_path: Path, record: dict[str, Any], told: str) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (path := tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, (good, record, good))))
    log = ImportLog()
    list(read_examples(path, log))
    first = log.problems[0]
    assert (first.line, first.text) == (2, told)
    assert first.fix


def test_tool_calls_are_nothing_odd(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "a"},
    ]
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"messages": said}))
    log = ImportLog()
    assert len(list(read_examples(path, log))) == 1
    assert log.problems == []


def test_lines_of_a_pretty_printed_file(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    text = json.dumps([good, {"odd": 1}, good, {"odd": 2}], indent=1)
    (path := tmp_path / "in.json").write_text(text)
    log = ImportLog()
    list(read_examples(path, log))
    numbered = text.split("\n")
    starts = [numbered.index(f'  "odd": {n}') for n in (1, 2)]
    assert [problem.line for problem in log.problems] == starts


def test_a_text_that_is_cut_is_told(tmp_path: Path) -> None:
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "x" * 10_000_000}))
    log = ImportLog()
    (found,) = read_examples(path, log)
    assert isinstance(found, Conversation)
    assert len(found.messages[1].content) == 2_000_000
    assert log.problems[0].text == "a text was cut at 2 MB"
