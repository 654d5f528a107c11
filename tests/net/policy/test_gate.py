"""Half-open floods, places with many connections, and honest peers between them."""

from __future__ import annotations

from orchd.net.policy import gate as policy
from orchd.net.policy.gate import Gate, Knock


def let_in(gate: Gate, place: str, now: float = 0.0) -> Knock:
    knock, _ = gate.knock(place, now)
    assert knock is not None
    return knock


def test_an_honest_peer_comes_in() -> None:
    gate = Gate()
    knock = let_in(gate, "a")
    gate.secured(knock)
    gate.gone(knock)
    gate.left(knock)
    assert (gate._inside, gate._half_open, gate._count) == ({}, {}, 0)


def test_a_flood_from_one_place_pushes_out_its_own() -> None:
    gate = Gate()
    flood = [let_in(gate, "flood") for _ in range(policy.HALF_OPEN_PER_PLACE)]
    honest, out = gate.knock("honest", 0.0)
    assert (honest is not None, out) == (True, None)
    again, out = gate.knock("flood", 0.0)
    assert again is not None
    assert out is flood[0]


def test_a_flood_from_many_places_leaves_room() -> None:
    """The one that goes is of the place that holds most, the oldest first; never the honest one."""
    gate = Gate()
    for number in range(policy.HALF_OPEN):
        let_in(gate, f"flood{number % 3}")
    honest, out = gate.knock("honest", 0.0)
    assert honest is not None
    assert out is not None
    assert out.place.startswith("flood")
    for _ in range(1000):
        _, out = gate.knock("flood0", 100.0)
        assert out is None or out.place != "honest"
    assert honest in gate._half_open["honest"]
    assert gate._count <= policy.HALF_OPEN


def test_behind_the_floods_own_address_there_is_time_for_a_handshake() -> None:
    gate, now = Gate(), 0.0
    for _ in range(policy.HALF_OPEN_PER_PLACE):
        let_in(gate, "shared", now)
    honest = let_in(gate, "shared", now)
    for _ in range(policy.HALF_OPEN_PER_PLACE - 1):
        let_in(gate, "shared", now)
    assert honest in gate._half_open["shared"]


def test_arrivals_are_limited_by_place() -> None:
    gate, now = Gate(), 0.0
    came = 0
    for _ in range(10_000):
        knock, _ = gate.knock("flood", now)
        came += knock is not None
    assert came == policy.ARRIVALS_BURST
    assert gate.knock("honest", now)[0] is not None
    assert gate.knock("flood", 1.0)[0] is not None


def test_connections_are_limited_by_place_and_given_back() -> None:
    gate = Gate()
    inside = []
    for number in range(policy.CONNECTIONS_PER_PLACE):
        knock = let_in(gate, "crowd", float(number))
        gate.secured(knock)
        inside.append(knock)
    assert gate.knock("crowd", 100.0) == (None, None)
    assert gate.knock("other", 100.0)[0] is not None
    gate.left(inside[0])
    assert gate.knock("crowd", 100.0)[0] is not None


def test_places_that_are_remembered_are_bounded() -> None:
    gate = Gate()
    for number in range(policy.PLACES + 100):
        gate.gone(let_in(gate, str(number)))
    assert len(gate._arrivals) == policy.PLACES
