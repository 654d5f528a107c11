"""Who gets a slot and a circuit, and whose slots are asked for."""

from __future__ import annotations

from orchd.net.policy.relay import (
    ASKED_BURST,
    CIRCUIT_BYTES,
    CIRCUITS,
    CIRCUITS_FROM,
    CIRCUITS_TO,
    HOURLY_BYTES,
    SLOT_S,
    SLOTS,
    SLOTS_PER_PLACE,
    STRANGERS,
    WANTED,
    Candidate,
    Circuit,
    Refusal,
    Slots,
    choose,
)


def opened(slots: Slots[str], source: str, target: str, place: str = "", now: float = 0.0) -> Circuit[str]:
    circuit = slots.connect(source, target, place, now)
    assert isinstance(circuit, Circuit), circuit
    return circuit


def test_a_slot_is_for_an_hour_and_goes_with_the_connection() -> None:
    slots = Slots[str]()
    assert slots.connect("b", "a", "", 0.0) is Refusal.NO_SLOT
    assert slots.reserve("a", "", True, 0.0) is None
    slots.close(opened(slots, "b", "a"))
    assert slots.connect("b", "a", "", SLOT_S) is Refusal.NO_SLOT
    assert slots.reserve("a", "", True, SLOT_S) is None
    assert slots.has("a")
    slots.gone("a")
    assert slots.connect("b", "a", "", SLOT_S + 100) is Refusal.NO_SLOT
    assert slots.held == slots.open == 0


def test_half_of_the_slots_are_for_those_who_share_a_topic() -> None:
    slots = Slots[int]()
    granted = [slots.reserve(number, f"192.0.2.{number}", False, 0.0) is None for number in range(SLOTS)]
    assert granted == [True] * STRANGERS + [False] * (SLOTS - STRANGERS)
    granted = [slots.reserve(1000 + number, f"198.51.100.{number}", True, 0.0) is None for number in range(SLOTS)]
    assert sum(granted) == SLOTS - STRANGERS
    assert slots.held == SLOTS
    assert slots.reserve(0, "192.0.2.0", False, 1.0) is None, "one that is held is renewed"


def test_one_place_gets_few() -> None:
    slots = Slots[int]()
    granted = [slots.reserve(number, "192.0.2.1", True, 0.0) is None for number in range(20)]
    assert sum(granted) == SLOTS_PER_PLACE
    assert slots.reserve(99, "192.0.2.2", True, 0.0) is None


def test_circuits_are_few_in_all_and_of_each() -> None:
    slots = Slots[str]()
    for target in "abcdefgh":
        slots.reserve(target, "", True, 0.0)
    from_one = [slots.connect("x", target, "", 0.0) for target in "abcdefgh"]
    assert [isinstance(one, Circuit) for one in from_one] == [True] * CIRCUITS_FROM + [False] * (8 - CIRCUITS_FROM)
    to_one = [slots.connect(f"y{number}", "h", "", 0.0) for number in range(10)]
    assert sum(isinstance(one, Circuit) for one in to_one) == CIRCUITS_TO
    for number in range(100):
        slots.connect(f"z{number}", "abcdefg"[number % 7], "", 0.0)
    assert slots.open == CIRCUITS
    slots.close(from_one[0])  # type: ignore[arg-type]
    assert isinstance(slots.connect("w", "a", "", 0.0), Circuit)


def test_who_asks_again_and_again_waits() -> None:
    slots = Slots[str]()
    slots.reserve("a", "", True, 0.0)
    answers = []
    for _ in range(20):
        answer = slots.connect("x", "a", "", 0.0)
        answers.append(answer)
        if isinstance(answer, Circuit):
            slots.close(answer)
    assert sum(isinstance(one, Circuit) for one in answers) == ASKED_BURST
    assert answers[-1] is Refusal.FULL
    assert isinstance(slots.connect("x", "a", "", 100.0), Circuit)


def test_a_circuit_carries_so_much_and_a_place_so_much_in_an_hour() -> None:
    slots = Slots[str]()
    slots.reserve("a", "", True, 0.0)
    circuit = opened(slots, "x", "a", "192.0.2.1")
    assert slots.carry(circuit, CIRCUIT_BYTES, 0.0)
    assert not slots.carry(circuit, 1, 0.0)
    for number in range(HOURLY_BYTES // CIRCUIT_BYTES - 1):
        assert slots.carry(opened(slots, f"x{number}", "a", "192.0.2.1"), CIRCUIT_BYTES, 0.0)
    assert not slots.carry(opened(slots, "y", "a", "192.0.2.1"), 1, 0.0), "another key at the same address"
    assert slots.carry(opened(slots, "z", "a", "192.0.2.2"), 1, 0.0)


def test_off_is_off() -> None:
    slots = Slots[str](is_on=False)
    assert slots.reserve("a", "", True, 0.0) is Refusal.OFF
    assert slots.connect("b", "a", "", 0.0) is Refusal.OFF


def test_nobody_is_connected_with_itself() -> None:
    slots = Slots[str]()
    slots.reserve("a", "", True, 0.0)
    assert slots.connect("a", "a", "", 0.0) is Refusal.NO_SLOT


def candidate(peer: str, place: str, *, near: bool = False, trusted: bool = False) -> Candidate[str]:
    return Candidate(peer, place, near, trusted)


def test_whose_slots_are_asked_for() -> None:
    near = candidate("near", "10.0.0.1", near=True, trusted=True)
    far = [candidate(f"far{number}", "192.0.2.1") for number in range(3)]
    member = candidate("member", "192.0.2.2", trusted=True)
    assert choose([near, *far, member], [], 0, 0) == [member, far[0]], "two places, trusted and far ones first"
    assert choose([near, *far, member], [member], 0, 0) == [far[0]]
    assert choose([near, *far], [member, far[0]], 0, 0) == []
    assert len(choose([near, *far, member], [], 0, 0)) == WANTED


def test_who_was_reached_directly_asks_nobody() -> None:
    near, far = candidate("near", "10.0.0.1", near=True), candidate("far", "192.0.2.1")
    assert choose([near, far], [], 3, 1) == []
    assert choose([near, far], [], 3, 0) == [far], "reached from this network alone"
