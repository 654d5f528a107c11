"""What is remembered of tables that only acts change, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchd.registry.local import FEW, delete, put
from orchd.registry.local_rows import Pin, Release
from orchd.registry.remembered import ANSWERS, Remembered
from tests.helpers import Lab


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Lab, list[str]]:
    """A lab, and the statements that its index was asked."""
    lab, found = Lab(tmp_path), list[str]()
    stock = lab.registry.index.read

    def read(sql: str, *more: Any) -> list[tuple[Any, ...]]:
        found.append(sql)
        return stock(sql, *more)

    monkeypatch.setattr(lab.registry.index, "read", read)
    return lab, found


def test_a_table_is_read_again_when_an_act_has_changed_it(asked: tuple[Lab, list[str]]) -> None:
    lab, found = asked
    local = lab.registry.local
    assert local.all(Release) == []
    assert local.get(Release, "a") is None
    assert local.where(Release, "since > 3") == []
    begun = len(found)
    assert local.all(Release) == []
    assert local.get(Release, "b") is None
    assert local.where(Release, "since > 4") == []
    local.act("pinned", put(Pin(adapter="a")))
    assert local.all(Release) == []
    assert len(found) == begun  # an act on another table changes nothing here
    row = Release(adapter="a", since=5)
    local.act("released", put(row))
    assert local.all(Release) == [row]
    assert local.get(Release, "a") == row
    assert local.where(Release, "since > 4") == [row]
    local.act("taken back", delete(Release, "a"))
    assert local.all(Release) == []
    assert local.get(Release, "a") is None
    assert local.where(Release, "since > 4") == []


def test_an_answer_of_many_rows_is_not_kept(asked: tuple[Lab, list[str]]) -> None:
    lab, found = asked
    local = lab.registry.local
    local.act("pinned", *(put(Pin(adapter=f"{n:04}")) for n in range(FEW + 1)))
    assert len(local.all(Pin)) == FEW + 1
    begun = len(found)
    assert len(local.all(Pin)) == FEW + 1
    assert len(found) == begun + 1


def test_everything_is_read_again_when_the_rows_were_made_anew(tmp_path: Path) -> None:
    local = Lab(tmp_path).registry.local
    local.act("pinned", put(Pin(adapter="a")))
    local.index.execute("DELETE FROM pin")
    assert local.all(Pin) == []
    local.refold()
    assert local.all(Pin) == [Pin(adapter="a")]


def test_what_is_read_while_a_table_changes_is_not_kept() -> None:
    seen, asked = Remembered(), list[int]()

    def answer(table: str = "t") -> int:
        return seen.answer(table, "question", lambda: asked.append(1) or len(asked), lambda _: True)

    with seen.change({"t"}):
        assert (answer(), answer()) == (1, 2)
    assert (answer(), answer()) == (3, 3)

    def overtaken() -> int:
        with seen.change({"t"}):
            return 7

    assert seen.answer("t", "another", overtaken, lambda _: True) == 7
    assert seen.answer("t", "another", lambda: 8, lambda _: True) == 8  # 7 was read before the change ended


def test_so_many_answers_of_a_table_are_kept() -> None:
    seen = Remembered()
    for number in range(ANSWERS):
        seen.answer("t", number, lambda: "before", lambda _: True)
    assert seen.answer("t", 0, lambda: "after", lambda _: True) == "before"
    seen.answer("t", ANSWERS, lambda: "before", lambda _: True)
    assert seen.answer("t", 0, lambda: "after", lambda _: True) == "after"
