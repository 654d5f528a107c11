"""Three real daemons train one adapter together, in rounds, with nobody between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchd.demo.cast import Cast
from orchd.demo.examples import Examples
from orchd.demo.node import Node
from orchd.errors import ConsentMissing, FederationUnknown
from orchd.rpc.client import Client

TOPIC = "e2e/choir"
ROUNDS, STEPS = 2, 6
IDLE_SECONDS = 120.0


def played(node: Node) -> list[dict[str, Any]]:
    """What came of each round, once the last is over. As long as anything happens it goes on."""
    with Client(node.socket_path) as client:
        for event in client.events(after=0, kinds=("federation.round", "job.done", "job.progress"), idle=IDLE_SECONDS):
            if event["kind"] == "federation.round" and event["data"]["round"] == ROUNDS:
                break
    return list(node.call("federation.status")["history"])


def test_three_members_end_each_round_with_one_recipe_and_say_what_it_brought(cast: Cast) -> None:
    first = cast.start("A")
    nodes = [first, *(cast.start(name, bootstrap=first.address) for name in "BC")]
    files = Examples.find(None)
    sources: list[Path] = [files.a, files.b, files.exam]
    for node, source in zip(nodes, sources, strict=True):
        node.join(TOPIC)
        node.import_dataset(source, name="mine")
    wanted = {"topic": TOPIC, "rounds": ROUNDS, "every": 60, "min_peers": 3, "steps": STEPS, "learning_rate": 5e-3}
    with pytest.raises(ConsentMissing, match="published by themselves"):
        first.call("federation.create", **wanted, dataset="mine")
    with pytest.raises(FederationUnknown):
        first.call("federation.status")
    made = first.call("federation.create", **wanted, dataset="mine", agree=True)
    for node in nodes[1:]:
        node.wait_event("federation.announced", lambda data: bool(data["id"] == made["id"]))
        node.call("federation.join", federation=TOPIC, dataset="mine", agree=True)
    histories = [played(node) for node in nodes]
    for number in range(ROUNDS):
        rounds = [history[number] for history in histories]
        assert len({one["recipe"] for one in rounds}) == 1
        assert [one["outcome"] for one in rounds] == ["adopted"] * 3
        assert {share["author"] for share in rounds[0]["shares"]} == {node.author for node in nodes}
        assert sum(share["weight"] for share in rounds[0]["shares"]) == pytest.approx(1)
    for history in histories:
        assert history[-1]["own"]["after"] < history[0]["own"]["before"]
    adapter = first.call("adapter.show", adapter=histories[0][-1]["adapter"])
    assert len(adapter["lineage"]["leaves"]) == 3
