"""Ways in through networks as they are: a relay between two that can't reach each other, and holes in two routers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.net.ways.lab import Lab, Node, a_lab, behind_a_router


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path) as made:
        yield made


async def start(stack: AsyncExitStack, lab: Lab, relay_at: str) -> tuple[Node, Node, Node]:
    """The relay in the middle, and a node at each end that knows only that; the two have met through it."""
    relay = await stack.enter_async_context(lab.node("world"))
    here, there = [
        await stack.enter_async_context(lab.node(room, f"/ip4/{address}/tcp/4001/p2p/{relay.id}"))
        for room, address in zip(("here", "there"), relay_at.split(), strict=True)
    ]
    await here.until("addresses", lambda found: any("/p2p-circuit/" in address for address in found))
    await there.until("peers", lambda found: here.id in found)
    return relay, here, there


async def test_two_networks_that_can_not_reach_each_other(lab: Lab) -> None:
    """The machine between them is in both, and forwards nothing; a node runs on it."""
    for number, room in ((1, "here"), (2, "there")):
        lab.room(room)
        lab.cable("world", f"to-{room}", room, "uplink")
        lab.address("world", f"to-{room}", f"10.71.{number}.1")
        lab.address(room, "uplink", f"10.71.{number}.2")
        lab.way_out(room, f"10.71.{number}.1")
    async with AsyncExitStack() as stack:
        relay, here, there = await start(stack, lab, "10.71.1.1 10.71.2.1")
        assert "/p2p-circuit/" in (await there.ask("peers"))[here.id]
        adapter = await here.ask("publish 512")
        await there.until("peers", lambda found: here.id in found)
        assert await there.ask(f"fetch {adapter}") == "admitted"
        assert (await relay.ask("counters"))["relay_bytes"] > 250_000
        assert (await here.ask("counters"))["bulk_channels"] == 0
        with trio.fail_after(60):
            await here.until("counters", lambda counted: counted["punches"])
        checks = await here.ask("doctor")
        assert checks["through relays"][0] == "ok"
        assert relay.id in checks["through relays"][1]
        assert checks["hole punching"][0] == "warning"
        assert checks["reachable from outside"][0] == "unknown"


async def test_holes_in_two_routers(lab: Lab) -> None:
    """Each node is behind a router of its own that lets nothing in but answers. They end up connected directly, and a
    fetch does not pass the relay."""
    lab.forward("world")
    async with AsyncExitStack() as stack:
        for number, room in ((1, "here"), (2, "there")):
            await stack.enter_async_context(behind_a_router(lab, room, number))
        relay, here, there = await start(stack, lab, "11.71.1.1 11.71.1.1")
        found = await there.until("peers", lambda found: "/p2p-circuit" not in found.get(here.id, "/p2p-circuit"))
        assert found[here.id].startswith("/ip4/11.71.1.2/tcp/")
        for node in (here, there):
            await node.until("counters", lambda counted: counted["punches_done"])
        checks = await here.ask("doctor")
        assert checks["hole punching"][0] == "ok"
        assert checks["reachable from outside"][0] == "unknown", "who comes through a hole shows nothing"
        assert checks["through relays"][1] == f"others reach this node through {relay.id}"
        assert not any(here.id in address for address in await there.ask("addresses")), "nobody else gets through there"
        before = (await relay.ask("counters"))["relay_bytes"]
        adapter = await here.ask("publish 1024")
        assert await there.ask(f"fetch {adapter}") == "admitted"
        assert (await here.ask("counters"))["bytes_served"] > 500_000
        assert (await relay.ask("counters"))["relay_bytes"] - before < 100_000
