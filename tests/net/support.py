"""Nodes for tests: real registries with a tiny base, real hosts on loopback, and ways to wait for what must happen."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trio
from safetensors.numpy import save_file

from orchd.config import NetConfig
from orchd.identity import Identity
from orchd.net import Library, Network
from orchd.records import Announcement, BaseRef, Manifest, Verified, sign
from orchd.registry import Registry
from orchd.registry.describe import adapter_info, file_entries
from tests.helpers import bare_manifest

#: How long anything may take on a starved machine, in seconds. A test that passes never waits for it.
PATIENCE_S = 60.0
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
TOPIC = "test/topic"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Recorder:
    """Events as they come, and a way to wait for one."""

    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    def emit(self, kind: str, data: dict[str, Any], /) -> None:
        self.seen.append((kind, data))
        self._changed.set()
        self._changed = trio.Event()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for seen, data in self.seen if seen == kind]

    async def wait(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The first event of a kind with these values, when it has come."""
        with trio.fail_after(PATIENCE_S):
            while True:
                for data in self.of(kind):
                    if all(data.get(key) == value for key, value in wanted.items()):
                        return data
                await self._changed.wait()


async def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """What `condition` returns as soon as that is true. For states that no event tells of."""
    deadline = trio.current_time() + PATIENCE_S
    while not (value := condition()):
        if trio.current_time() > deadline:
            raise AssertionError(f"{what} did not come within {PATIENCE_S:.0f} s")
        await trio.sleep(0.005)
    return value


def make_base(folder: Path, width: int = 64) -> Path:
    """A base that nobody could run: one module `q_proj` of width × width."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["Tiny"]}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"model.q_proj.weight": np.zeros((width, width), np.float32)}, folder / "model.safetensors")
    return folder


def make_adapter(folder: Path, width: int = 64, rank: int = 4, seed: int = 0) -> Path:
    """A PEFT folder for that base: 8 · width · rank bytes of random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {
        "base_model.model.model.q_proj.lora_A.weight": rng.standard_normal((rank, width)).astype(np.float32),
        "base_model.model.model.q_proj.lora_B.weight": rng.standard_normal((width, rank)).astype(np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass
class Peer:
    """One node of a test."""

    name: str
    folder: Path
    identity: Identity
    registry: Registry
    events: Recorder
    network: Network
    base: bytes
    width: int

    def make(self, seed: int = 0, rank: int = 4) -> Verified[Manifest]:
        """An adapter of this node, admitted here."""
        folder = make_adapter(self.folder / f"made-{seed}-{rank}", self.width, rank, seed)
        manifest = sign(
            bare_manifest(
                name=f"{self.name}-{seed}",
                created_ms=now_ms(),
                author=self.identity.public_key,
                base=BaseRef(fingerprint=self.base, hint="tiny", architecture="Tiny"),
                adapter=adapter_info(folder),
                files=file_entries(folder),
            ),
            self.identity,
        )
        files = {entry.path: folder / entry.path for entry in manifest.record.files}
        admission = self.registry.admit(manifest.envelope, files, origin="trained")
        assert admission.verdict == "admitted", admission.reason
        return manifest

    def announcement(self, manifest: Verified[Manifest], *topics: str) -> Verified[Announcement]:
        return sign(
            Announcement(
                manifest=manifest.digest,
                topics=topics or (TOPIC,),
                size=manifest.record.size,
                created_ms=now_ms(),
                base=self.base,
                author=self.identity.public_key,
                seq=self.registry.next_seq(),
            ),
            self.identity,
        )

    async def publish(self, seed: int = 0, rank: int = 4, topic: str = TOPIC) -> Verified[Manifest]:
        """Make an adapter and announce it."""
        manifest = self.make(seed, rank)
        await self.network.tell(self.announcement(manifest, topic))
        return manifest


class Cluster:
    """Nodes in one process. The first one started is the bootstrap peer of all the others."""

    def __init__(self, folder: Path, nursery: trio.Nursery, width: int) -> None:
        self._folder, self._nursery, self._width = folder, nursery, width
        self.peers: list[Peer] = []
        self._stopped: set[str] = set()
        self._scopes: dict[str, trio.CancelScope] = {}
        self._base = make_base(folder / "base", width)

    async def start(
        self,
        name: str,
        *,
        library: Callable[[Registry], Library] | None = None,
        bootstrap: tuple[str, ...] | None = None,
        **settings: Any,
    ) -> Peer:
        peer = self.make(name, library=library, bootstrap=bootstrap, **settings)
        await self.run(peer)
        return peer

    def make(
        self,
        name: str,
        *,
        library: Callable[[Registry], Library] | None = None,
        bootstrap: tuple[str, ...] | None = None,
        **settings: Any,
    ) -> Peer:
        folder = self._folder / name
        identity = Identity.from_seed(name.encode().ljust(32, b"\0")[:32])
        registry = Registry.open(folder, now_ms, identity.author, {"tiny": self._base})
        if bootstrap is None:
            bootstrap = tuple(self.peers[0].network.addresses()) if self.peers else ()
        config = NetConfig(**({"listen": LOOPBACK, "mdns": False, "bootstrap": bootstrap} | settings))
        events = Recorder()
        network = Network(
            identity,
            config,
            registry,
            events,
            now_ms,
            random.Random(name),
            library=library(registry) if library else None,
        )
        base = registry.base("tiny").digest
        peer = Peer(name, folder, identity, registry, events, network, base, self._width)
        self.peers.append(peer)
        return peer

    async def run(self, peer: Peer) -> None:
        """Start a peer that was made."""
        await self._nursery.start(self._run, peer)

    async def _run(self, peer: Peer, *, task_status: Any) -> None:
        with trio.CancelScope() as scope:
            self._scopes[peer.name] = scope
            self._stopped.discard(peer.name)
            await peer.network.run(task_status=task_status)
        self._stopped.add(peer.name)

    def stop(self, peer: Peer) -> None:
        self._scopes[peer.name].cancel()

    def stopped(self, peer: Peer) -> bool:
        return peer.name in self._stopped


@asynccontextmanager
async def cluster(folder: Path, width: int = 64) -> AsyncIterator[Cluster]:
    """Everything that is started in it is stopped at its end."""
    made: Cluster | None = None
    try:
        async with trio.open_nursery() as nursery:
            made = Cluster(folder, nursery, width)
            try:
                yield made
            finally:
                nursery.cancel_scope.cancel()
    finally:  # when no thread reads any more
        for peer in made.peers if made else ():
            peer.registry.close()


async def joined_cluster(made: Cluster, count: int, topic: str = TOPIC) -> list[Peer]:
    """`count` nodes that know each other under `topic`, having started from the address of the first alone."""
    peers = [await made.start(f"node{number}") for number in range(count)]
    for peer in peers:
        await peer.network.join(topic)
    for peer in peers:
        await until(lambda peer=peer: peer.network.topics()[0].members == count - 1, f"{peer.name} meets everybody")
    return peers
