"""Adapters by what followed people measured: each person once, the author never, by the lower end of the interval."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchd.identity import Identity
from orchd.records import Attestation, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry.attested import DIFFERENCE_INTERVAL, Gain, standing, standings
from orchd.registry.local import put
from orchd.registry.local_rows import Received
from orchd.registry.search import Query, search
from orchd.registry.trust import ATTESTATION
from tests.helpers import BOB, MALLORY, NOW_MS, Lab

from .test_search import Shelf

MICRO = 1_000_000


@pytest.fixture
def shelf(lab: Lab) -> Shelf:
    found = Shelf(lab)
    for name in ("good", "better", "unknown"):
        found.add(name)
    return found


def attest(
    shelf: Shelf,
    name: str,
    by: Identity,
    gain: float,
    half: float = 0.1,
    *,
    at: int = 0,
    metric: str = "loss",
    **more: Any,
) -> None:
    """`by` says that the loss is 2 - gain where the base's is 2, and that it is sure to `half`."""
    id = shelf.ids[name]
    record = Attestation(
        manifest=parse_id(id, ADAPTER),
        evaluator=by.public_key,
        metric=metric,
        value=round((2 - gain) * MICRO),
        base_value=more.get("base_value", 2 * MICRO),
        examples=20,
        interval=round(half * MICRO),
        created_ms=NOW_MS + at,
        extra=more.get("extra", {DIFFERENCE_INTERVAL: round(half * MICRO)}),
    )
    signed = sign(record, by)
    row = Received(digest=signed.id, kind=ATTESTATION, adapter=id, author=by.author, envelope=signed.envelope, since=0)
    shelf.lab.registry.local.act("attested", put(row))
    shelf.lab.registry.people.forget()


def told(shelf: Shelf) -> dict[str, Any]:
    names = {id: name for name, id in shelf.ids.items()}
    registry = shelf.lab.registry
    return {names[id]: one for id, one in standings(registry, registry.people.view()).items()}


def test_only_those_who_are_followed_count_and_not_the_author(shelf: Shelf) -> None:
    attest(shelf, "good", BOB, 1.0)
    attest(shelf, "better", MALLORY, 1.9)
    shelf.add("bobs", BOB)
    attest(shelf, "bobs", BOB, 2.0, 0.0)
    assert told(shelf) == {}
    shelf.judge(BOB, "follow")
    assert list(told(shelf)) == ["good"]
    assert told(shelf)["good"].evaluators == 1
    assert told(shelf)["good"].gain == pytest.approx(1.0)
    assert told(shelf)["good"].low == pytest.approx(0.9)


def test_each_person_counts_once_with_their_newest_word(shelf: Shelf) -> None:
    shelf.judge(BOB, "follow")
    for at, gain in ((2, 1.8), (7, 0.4), *((at, 1.9) for at in range(3, 7))):
        attest(shelf, "good", BOB, gain, at=at)
    attest(shelf, "good", BOB, 0.9, metric="exact_match", at=9)
    attest(shelf, "good", BOB, 0.9, base_value=None, at=8)
    (found,) = told(shelf).values()
    assert found.evaluators == 1
    assert found.gain == pytest.approx(0.4)


def test_without_the_interval_of_the_difference_it_is_taken_wide(shelf: Shelf) -> None:
    shelf.judge(BOB, "follow")
    attest(shelf, "good", BOB, 1.0, 0.1, extra={})
    assert told(shelf)["good"].low == pytest.approx(0.8)
    attest(shelf, "good", BOB, 1.0, 0.1, extra={DIFFERENCE_INTERVAL: "wide"}, at=1)
    assert told(shelf)["good"].low == pytest.approx(0.8)


def test_a_sound_measurement_stands_above_a_lucky_one(shelf: Shelf) -> None:
    for who in (BOB, MALLORY):
        shelf.judge(who, "follow")
    attest(shelf, "better", BOB, 1.5, 1.2)
    attest(shelf, "good", BOB, 0.9, 0.1)
    attest(shelf, "good", MALLORY, 1.0, 0.1)
    registry = shelf.lab.registry
    found = search(registry, Query(sort="attested"))
    assert [row.name for row in found.adapters] == ["good", "better", "unknown"]
    assert {one.evaluators for one in found.attested.values()} == {1, 2}
    assert shelf.ids["unknown"] not in found.attested
    assert [row.name for row in search(registry, Query(sort="attested", reverse=True)).adapters] == [
        "better", "good", "unknown"]  # fmt: skip
    pages, cursor = list[str](), None
    while True:
        page = search(registry, Query(sort="attested", limit=1, cursor=cursor))
        pages += [row.name for row in page.adapters]
        if (cursor := page.next) is None:
            break
    assert pages == ["good", "better", "unknown"]
    assert search(registry, Query(sort="name")).attested.keys() == found.attested.keys()


def test_people_who_differ_are_less_sure_than_each_says() -> None:
    alike = standing([Gain("a", 1.0, 0.196), Gain("b", 1.0, 0.196)])
    assert alike.low == pytest.approx(1.0 - 0.196 / math.sqrt(2))
    apart = standing([Gain("a", 0.0, 0.196), Gain("b", 2.0, 0.196)])
    assert apart.gain == 1
    assert apart.low == pytest.approx(1.0 - 1.96)
