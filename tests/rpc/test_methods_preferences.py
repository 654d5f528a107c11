"""Blind picks: counted by the two files, whichever is named first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from orchd.errors import DeploymentUnknown, PreferenceRefused
from orchd.node import Node
from orchd.registry.local_rows import Deployment
from orchd.registry.own import Deployments
from orchd.rpc.methods_preferences import ChatPick, ChatStanding, chat_pick, chat_standing
from tests.helpers import Lab


@pytest.fixture
def node(lab: Lab) -> Node:
    made = cast(
        Node,
        SimpleNamespace(deployments=Deployments(lab.registry.local), registry=lab.registry, clock=lambda: 3),
    )
    for name, blob in (("x", "bb"), ("y", "aa"), ("z", "bb")):
        made.deployments.put(
            Deployment(
                name=name,
                adapter=None,
                target="embedded",
                state="ready",
                base="demo",
                blob=blob * 32,
                size=1,
                quantize="F16",
                parity=None,
                created=0,
            )
        )
    return made


async def test_nothing_is_said_before_the_first_pick(node: Node) -> None:
    found = await chat_standing(node, ChatStanding(first="x", second="y"))
    assert (found.rate, found.low, found.better) == (None, None, "")


async def test_picks_are_counted_from_either_side(node: Node) -> None:
    for _ in range(7):
        await chat_pick(node, ChatPick(first="x", second="y", picked="second"))
    await chat_pick(node, ChatPick(first="y", second="x", picked="second"))
    found = await chat_pick(node, ChatPick(first="y", second="x", picked="neither"))
    assert (found.first_picked, found.second_picked, found.neither) == (7, 1, 1)
    assert found.rate == pytest.approx(1 / 8)
    assert found.better == "y"
    other = await chat_standing(node, ChatStanding(first="x", second="y"))
    assert (other.first_picked, other.second_picked, other.better) == (1, 7, "y")
    assert (other.low, other.high) == (pytest.approx(0.52911, abs=1e-5), pytest.approx(0.97758, abs=1e-5))


async def test_a_close_race_is_called_open(node: Node) -> None:
    await chat_pick(node, ChatPick(first="x", second="y", picked="first"))
    for _ in range(2):
        found = await chat_pick(node, ChatPick(first="x", second="y", picked="second"))
    assert found.better == ""


async def test_what_is_deployed_anew_begins_anew(node: Node) -> None:
    await chat_pick(node, ChatPick(first="x", second="y", picked="first"))
    node.deployments.put(msgspec.structs.replace(node.deployments.get("y"), blob="cc" * 32))
    assert (await chat_standing(node, ChatStanding(first="x", second="y"))).rate is None


async def test_two_names_of_one_file(node: Node) -> None:
    with pytest.raises(PreferenceRefused):
        await chat_standing(node, ChatStanding(first="x", second="z"))
    with pytest.raises(DeploymentUnknown):
        await chat_standing(node, ChatStanding(first="x", second="nobody"))
