"""Many nodes in one process, each with its own registry, that know each other under some topics."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from orchd.errors import OrchdError
from orchd.net.policy.seeking import MEMBERS_WANTED
from orchd.records import Manifest, Verified
from tests.net import support
from tests.net.support import TOPIC, Cluster, Peer, cluster, until

#: Adapters of 8 · WIDTH · RANK bytes: a quarter of a megabyte.
WIDTH, RANK = 512, 64
#: Nodes that join at once, so that fifty on two cores do not all wait for each other.
JOINING = 4
#: After a fetch that failed, in seconds, until it is tried again.
RETRY_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: How long anything may take, in seconds.
PATIENCE_S = 600.0

Emit = Callable[[str, dict[str, Any]], None]


class Village:
    """`peers` are nodes that know each other, or enough of the others. Times are trio's, in seconds."""

    def __init__(self, made: Cluster, nursery: trio.Nursery) -> None:
        self.made = made
        self.peers: list[Peer] = []
        #: By adapter: when it was announced. By node and adapter: when it was admitted.
        self.announced: dict[str, float] = {}
        self.admitted: dict[tuple[str, str], float] = {}
        #: Of fetches, also of those that were tried again.
        self.failures: list[str] = []
        self._nursery = nursery

    async def grow(self, count: int, topics: Sequence[str], **settings: Any) -> None:
        """Start `count` nodes that begin with the address of the first alone, and let them meet."""
        limiter = trio.CapacityLimiter(JOINING)

        async def one(number: int) -> None:
            async with limiter:
                peer = await self.made.start(f"node{number}", **settings)
                for topic in topics:
                    await peer.network.join(topic)
                self.peers.append(peer)

        await one(0)
        async with trio.open_nursery() as nursery:
            for number in range(1, count):
                nursery.start_soon(one, number)
        wanted = min(count - 1, MEMBERS_WANTED // 2)
        for peer in self.peers:
            await until(lambda peer=peer: min(one.members for one in peer.network.topics()) >= wanted, peer.name)  # type: ignore[misc]

    def want_everything(self) -> None:
        """From now on every node fetches what it hears of."""
        for peer in self.peers:
            peer.events.emit = self._wanting(peer, peer.events.emit)  # type: ignore[method-assign]

    def _wanting(
        self, peer: Peer, emit: Callable[[str, dict[str, Any]], None]
    ) -> Callable[[str, dict[str, Any]], None]:
        def heard(kind: str, data: dict[str, Any], /) -> None:
            emit(kind, data)
            if kind == "adapter.announced":
                self._nursery.start_soon(self._fetch, peer, data["id"])

        return heard

    async def _fetch(self, peer: Peer, id: str) -> None:
        """As whoever wants it would: when nobody gives it yet, once more after a while."""
        for pause_s in RETRY_S:
            try:
                admission = await peer.network.fetch(id)
            except OrchdError as error:
                self.failures.append(f"{peer.name}: {error}")
                await trio.sleep(pause_s)
                continue
            if admission.verdict == "admitted":
                self.admitted[peer.name, id] = trio.current_time()
            return

    async def publish(self, peer: Peer, manifest: Verified[Manifest]) -> None:
        """Announce what was made before; the clock runs from here."""
        self.announced[manifest.id] = trio.current_time()
        await peer.network.tell(peer.announcement(manifest))

    @property
    def expected(self) -> int:
        """Pairs of an adapter and another node than its own."""
        return len(self.announced) * (len(self.peers) - 1)

    def delays(self) -> list[float]:
        """Seconds from announced to admitted, of all pairs that are through, sorted."""
        return sorted(at - self.announced[id] for (_, id), at in self.admitted.items())


@asynccontextmanager
async def village(count: int, topics: Sequence[str] = (TOPIC,), **settings: Any) -> AsyncIterator[Village]:
    """So many nodes under these topics, below the current folder."""
    support.PATIENCE_S = PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd()) as name:
        async with cluster(Path(name), WIDTH) as made, trio.open_nursery() as nursery:
            found = Village(made, nursery)
            await found.grow(count, topics, **settings)
            yield found
            nursery.cancel_scope.cancel()


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; infinite where there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("inf")
