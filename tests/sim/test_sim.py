"""A small town of the simulation; `python -m benchmarks.net sim` runs the large one.

The last tests are controls: with a protection taken out, the villains of this town get through.
"""

from __future__ import annotations

import dataclasses

import pytest

from orchd.net.policy.gossip import Verdict
from tests.sim.net import Net
from tests.sim.node import Node
from tests.sim.scenario import Outcome, Play, Town
from tests.sim.villains import KINDS, Villain

SMALL = Town(nodes=100, topics=6, private=1, adapters=24, revocations=5, hours=1.0, seed=3)
SMALLEST = dataclasses.replace(SMALL, nodes=50, adapters=8)


@pytest.fixture(scope="module")
def play() -> Play:
    return Play(SMALL)


@pytest.fixture(scope="module")
def outcome(play: Play) -> Outcome:
    return play.run()


def test_every_adapter_reaches_everybody_who_wants_it(outcome: Outcome) -> None:
    assert outcome.late == ()
    assert outcome.reached == outcome.owed > 100


def test_nothing_forged_is_admitted_and_nothing_closed_gets_out(outcome: Outcome) -> None:
    assert outcome.forged == 0
    assert outcome.leaked == 0


def test_what_was_revoked_is_gone_everywhere(play: Play, outcome: Outcome) -> None:
    assert play.net.revoked_at
    assert outcome.revoked_and_kept == 0


def test_villains_are_found_out_and_nobody_else(play: Play, outcome: Outcome) -> None:
    assert outcome.events > 0
    assert {"forger", "liar"} <= play.net.blames.keys() <= {kind.kind for kind in KINDS}


def test_floods_meet_the_limits(play: Play, outcome: Outcome) -> None:
    assert outcome.events > 0
    assert play.net.verdicts[Verdict.NEIGHBOUR_LIMIT] > 100
    assert play.net.verdicts[Verdict.NEWCOMER_LIMIT] > 0


def test_all_kinds_of_villains_are_there_and_the_honest_ones_are_no_village(play: Play) -> None:
    nodes = play.net.nodes.values()
    assert {type(node) for node in nodes} == {Node, *KINDS}
    assert sum(isinstance(node, Villain) for node in nodes) == 20


def test_the_same_seed_is_the_same_run() -> None:
    first, again, other = (Play(one).run() for one in (SMALLEST, SMALLEST, dataclasses.replace(SMALLEST, seed=4)))
    assert first == again
    assert first.digest != other.digest


def test_without_the_comparison_of_chunks_forged_bytes_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the hostile ones of this town would get something in if they could."""
    monkeypatch.setattr("tests.sim.fetch.is_signed", lambda chunk, digest: True)
    monkeypatch.setattr(Net, "author_of", lambda *_: None)  # whoever tells of an adapter is asked first
    assert Play(SMALL).run().forged > 0


def test_without_repair_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "_repair", lambda *_: None)
    assert Play(SMALLEST).run().late
