"""An adapter's standing is told before its rows are made; what is decided meanwhile counts all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchd.registry import registry as registry_module
from orchd.registry.local import put
from orchd.registry.local_rows import Release, Trust
from orchd.registry.trust import AUTHOR, BLOCK
from orchd.registry.weighing import Weighing
from tests.helpers import ALICE, BOB, Lab

BLOCKED = Trust(subject=ALICE.author, kind=AUTHOR, verdict=BLOCK, note="", auto_update=False, since=1)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """BOB's: ALICE, who signs what comes, is a stranger."""
    return Lab(tmp_path, author=BOB)


def block(lab: Lab) -> None:
    """As the user does it (`methods_trust.py`), up to the point where standings are computed."""
    lab.registry.local.act("trust.block", put(BLOCKED))
    lab.registry.people.forget()


def test_where_nothing_else_was_decided_it_is_weighed_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.registry, "restand", lambda *_, **__: pytest.fail("it was weighed again"))
    assert lab.admit(lab.folder()).verdict == "admitted"


def test_reasons_of_the_door_count(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.registry, "restand", lambda *_, **__: pytest.fail("it was weighed again"))
    admission = lab.admit(lab.folder(), checks=[lambda _: "it looks odd"])
    assert (admission.verdict, admission.reason) == ("quarantined", "it looks odd")


def test_what_was_released_before_it_was_thrown_out_is_let_in(lab: Lab) -> None:
    folder = lab.folder()
    signed = lab.claim(folder)
    id = lab.admit(folder, signed).id
    lab.registry.local.act("adapter.release", put(Release(adapter=id, since=1)))
    lab.registry.index.execute("DELETE FROM adapter")
    assert lab.admit(folder, signed, checks=[lambda _: "it looks odd"]).verdict == "admitted"


def test_a_block_between_the_weighing_and_the_rows_counts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, seen = Weighing.begin, list[Any]()

    def begin(*arguments: Any) -> Weighing:
        weighing = stock(*arguments)
        block(lab)
        return weighing

    def use(self: Weighing) -> None:
        seen.append(stock_use(self))
        return seen[-1]

    stock_use = Weighing.use
    monkeypatch.setattr(Weighing, "begin", begin)
    monkeypatch.setattr(Weighing, "use", use)
    admission = lab.admit(lab.folder())
    assert admission.verdict == "quarantined"
    assert "is blocked here" in admission.reason
    assert seen == [None]  # nobody has seen it admitted


def test_a_view_that_is_forgotten_while_the_rows_are_made_is_looked_at_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block was written down before the weighing, which still saw the old view."""
    lab.registry.people.view()
    lab.registry.local.act("trust.block", put(BLOCKED))
    stock = registry_module.insert_adapter

    def insert(*arguments: Any) -> None:
        stock(*arguments)
        lab.registry.people.forget()

    monkeypatch.setattr(registry_module, "insert_adapter", insert)
    admission = lab.admit(lab.folder())
    assert admission.verdict == "quarantined"
    assert "is blocked here" in admission.reason


def test_two_acts_of_one_transaction_leave_it_for_later(lab: Lab) -> None:
    weighing = Weighing(lab.registry.local, lab.registry.people)
    lab.registry.local.act("one", put(Release(adapter="a", since=1)))
    lab.registry.local.act("another", put(Release(adapter="b", since=1)))
    assert weighing.use() is None
    assert not weighing.holds()
