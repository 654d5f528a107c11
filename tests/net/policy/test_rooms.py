"""Whom to let go, so that there is room for members."""

from __future__ import annotations

from orchd.net.policy.rooms import CROWDED, GRACE_S, STRANGERS, Stranger, too_many

LATER = 1000.0


def strangers(count: int, place: str = "", since: float = 0.0) -> list[Stranger[str]]:
    return [Stranger(f"{place}#{number}", place or f"192.0.2.{number}", since) for number in range(count)]


def test_as_long_as_there_are_few_everybody_stays() -> None:
    assert too_many(strangers(STRANGERS), 299, LATER) == []


def test_a_flood_from_one_place_pushes_out_itself() -> None:
    honest, flood = strangers(100), strangers(120, "203.0.113.9", since=5.0)
    out = too_many(honest + flood, 220, LATER)
    assert len(out) == 20
    assert all(peer.startswith("203.0.113.9") for peer in out)


def test_among_equals_who_came_first_goes_first() -> None:
    many = [Stranger(number, f"192.0.2.{number}", float(number)) for number in range(STRANGERS + 3)]
    assert too_many(many[::-1], 210, LATER) == [0, 1, 2]


def test_who_has_just_come_may_say_what_it_shares_unless_it_is_crowded() -> None:
    many = strangers(STRANGERS + 10, since=LATER)
    assert too_many(many, CROWDED - 1, LATER + GRACE_S / 2) == []
    assert len(too_many(many, CROWDED, LATER + GRACE_S / 2)) == 10
    assert len(too_many(many, CROWDED - 1, LATER + GRACE_S)) == 10


def test_places_that_say_nothing_are_no_crowd() -> None:
    near = [Stranger(number, "", 10.0) for number in range(STRANGERS)]
    assert too_many([*near, Stranger(-1, "192.0.2.1", 0.0)], 250, LATER) == [-1]
