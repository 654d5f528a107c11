"""How an attack over the network ends: the node is up, nothing is left of the attacker, honest peers are served."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from orchd.identity import Identity
from orchd.net.company import Company
from orchd.net.host import Host, run_host
from orchd.net.node import Node
from orchd.net.policy.scores import Offence
from tests.net.support import LOOPBACK, PATIENCE_S, TOPIC, Cluster, Peer, until

MESHSUB, KAD = "/meshsub/1.1.0", "/ipfs/kad/1.0.0"
#: A node that has begun nothing for so many seconds has started.
SETTLED_S = 0.3
IDENTIFY, IDENTIFY_PUSH, PING = "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"


@asynccontextmanager
async def attacker(victim: Peer | Host, name: bytes = b"attacker") -> AsyncIterator[Host]:
    """A host of whoever means ill, connected to the victim. It speaks no protocol of ours by itself."""
    async with run_host(Identity.from_seed(name.ljust(32, b"\0")), LOOPBACK) as host:
        await connect(host, victim)
        yield host


async def connect(host: Host, victim: Peer | Host) -> None:
    target = host_of(victim)
    await host.connect(target.id, target.basic.get_transport_addrs())


def node_of(peer: Peer) -> Node:
    assert peer.network._node is not None
    return peer.network._node


def host_of(victim: Peer | Host) -> Host:
    return node_of(victim).host if isinstance(victim, Peer) else victim


async def send(attacker: Host, victim: Peer | Host, protocol: str, data: bytes) -> bytes:
    """Send bytes on a new stream, end it, and read what comes back; what fails is the attacker's business."""
    got = b""
    with trio.move_on_after(PATIENCE_S):
        try:
            stream = await attacker.basic.new_stream(host_of(victim).id, [TProtocol(protocol)])
            await stream.write(data)
            await stream.close_write()
            while piece := await stream.read(1 << 16):
                got += piece
        except Exception:
            pass
    return got


async def still_serves(made: Cluster, victim: Peer, name: str = "honest", seed: int = 99) -> Peer:
    """An honest node comes by, hears what the victim announces and fetches it."""
    honest = await made.start(name)
    await honest.network.join(TOPIC)
    await serves(victim, honest, seed)
    return honest


async def serves(victim: Peer, honest: Peer, seed: int, rank: int = 4) -> None:
    """The victim makes an adapter, and an honest node that is there hears of it and fetches it."""
    manifest = await victim.publish(seed=seed, rank=rank)
    await honest.events.wait("adapter.announced", id=manifest.id)
    await honest.network.fetch(manifest.id)
    assert victim.network.status().restarts == 0


@asynccontextmanager
async def leaves_nothing(victim: Peer) -> AsyncIterator[None]:
    """After the block no descriptor and no task is there that was not there before, and no file in the data folder
    outside of the index; and the node has not fallen."""
    tasks = await settled()
    descriptors, files = open_descriptors(), files_in(victim.folder)
    yield
    try:
        await until(lambda: open_descriptors() <= descriptors, "its descriptors are closed")
        await until(lambda: not tasks_now() - tasks, "its tasks have ended")
    except AssertionError as error:
        raise AssertionError(f"{error}; more than before: {dict(tasks_now() - tasks)}") from None
    assert files_in(victim.folder) == files
    assert victim.network.status().restarts == 0


async def settled() -> Counter[str]:
    """The tasks that are there, by name, when none has come or gone for a while: a node that starts has more to do."""
    seen, since = tasks_now(), trio.current_time()
    while trio.current_time() - since < SETTLED_S:
        await trio.sleep(SETTLED_S / 10)
        if (now := tasks_now()) != seen:
            seen, since = now, trio.current_time()
    return seen


def tasks_now() -> Counter[str]:
    found: Counter[str] = Counter()
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        task = waiting.pop()
        if task is not None:
            found[task.name] += 1
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def files_in(folder: Path) -> list[Path]:
    """The index's log comes and goes, and the book of peers is written from time to time."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".wal", ".json"))


@contextmanager
def nobody_is_banned() -> Iterator[list[tuple[ID, Offence]]]:
    """Offences are noted and nothing follows, so that an attacker can go on. What was noted."""
    noted: list[tuple[ID, Offence]] = []

    def blame(self: Company, peer: ID, offence: Offence, reason: str) -> None:
        noted.append((peer, offence))

    before: Any = Company.blame
    Company.blame = blame  # type: ignore[method-assign]
    try:
        yield noted
    finally:
        Company.blame = before  # type: ignore[method-assign]
