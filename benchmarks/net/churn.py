"""Row `lookup-churn-30`: who is there under a topic, when three of ten nodes have just died.

Fifty nodes each announce two of `TOPICS` topics, and the dead ones are still in everybody's routing tables and records.
Nodes that live look up topics that they have not announced themselves, a few at once, from the moment of the deaths. A
lookup counts when it finds every living node that announced the topic; `some` counts those that found one at least.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field

import trio
from libp2p.peer.id import ID

from benchmarks.net.village import percentile, village
from benchmarks.report import Row
from orchd.net import topics
from orchd.net.host import Host
from tests.net.support import Peer

NODES, DEAD, LOOKUPS, AT_ONCE, SEED = 50, 15, 120, 4, 1
TOPICS, ANNOUNCERS = 20, 5
SHARE, P95_S = 98.0, 5.0


@dataclass
class Found:
    """Seconds of each lookup; how many found all, and some, of those who live."""

    seconds: list[float] = field(default_factory=list)
    whole: int = 0
    some: int = 0


def host_of(peer: Peer) -> Host:
    assert peer.network._node is not None
    return peer.network._node.host


async def announce(peer: Peer, name: str, limiter: trio.CapacityLimiter) -> None:
    async with limiter:
        if not await topics.announce(host_of(peer).dht, name):
            print(f"{peer.name} could not announce {name}", file=sys.stderr)


async def measure() -> Found:
    rng, found, limiter = random.Random(SEED), Found(), trio.CapacityLimiter(AT_ONCE)
    async with village(NODES) as living:
        places = {f"bench/{number}": rng.sample(living.peers, ANNOUNCERS) for number in range(TOPICS)}
        async with trio.open_nursery() as nursery:
            for name, announcers in places.items():
                for peer in announcers:
                    nursery.start_soon(announce, peer, name, limiter)
        dead = rng.sample(living.peers, DEAD)
        for peer in dead:
            living.made.stop(peer)
        alive = [peer for peer in living.peers if peer not in dead]

        async def look_up(seeker: Peer, name: str) -> None:
            wanted = {ID.from_string(peer.network.peer_id) for peer in places[name] if peer in alive}
            async with limiter:
                begun = trio.current_time()
                answer = await topics.lookup(host_of(seeker).dht, name)
                found.seconds.append(trio.current_time() - begun)
            found.whole += wanted <= answer.keys()
            found.some += not wanted.isdisjoint(answer)

        async with trio.open_nursery() as nursery:
            for _ in range(LOOKUPS):
                name = rng.choice(
                    [name for name, peers in places.items() if not set(map(id, peers)) <= set(map(id, dead))]
                )
                nursery.start_soon(look_up, rng.choice([peer for peer in alive if peer not in places[name]]), name)
    found.seconds.sort()
    return found


def rows() -> list[Row]:
    found = trio.run(measure)
    share, p95 = 100 * found.whole / LOOKUPS, percentile(found.seconds, 0.95)
    met = share >= SHARE and p95 <= P95_S
    figures = {
        "p50": percentile(found.seconds, 0.5),
        "p95": p95,
        "some": 100 * found.some / LOOKUPS,
        "lookups": float(LOOKUPS),
    }
    goal = f"≥ {SHARE:g} %, p95 ≤ {P95_S:g} s"
    return [Row("lookup-churn-30", "%", round(share, 2), "-", None, None, goal, met, figures)]
