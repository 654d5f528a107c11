"""A node that gives one adapter, as a process. usage: python -m benchmarks.net.giver FOLDER ADAPTER SETTINGS

Its library reads the files where they lie: what is measured is the taker's way, and giving. Prints the adapter's
manifest in hexadecimal and an address; leaves when its input ends.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from orchd.config import NetConfig
from orchd.identity import Identity
from orchd.net import Library, Network
from orchd.records import BaseRef, Manifest, Verified, sign
from orchd.registry import Registry
from orchd.registry.describe import adapter_info, file_entries
from tests.helpers import bare_manifest

AUTHOR = Identity.from_seed(bytes(31) + b"\1")


class Silent:
    def emit(self, kind: str, data: dict[str, object], /) -> None:
        pass


class Shelf(Library):
    """One folder's files, open to everybody."""

    def __init__(self, registry: Registry, manifest: Verified[Manifest], folder: Path) -> None:
        super().__init__(registry)
        self._manifest = manifest
        self._paths = {entry.sha256: folder / entry.path for entry in manifest.record.files}

    def announced_under(self, adapter: bytes) -> frozenset[str]:
        return frozenset({"bench"})

    def manifest(self, adapter: bytes) -> bytes | None:
        return self._manifest.envelope

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        self._registry.is_shared(self._manifest.id)  # what it costs to ask: this base is unknown, so the answer is no
        with self._paths[blob].open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


def describe(folder: Path) -> Verified[Manifest]:
    """The manifest of an adapter for a base that nobody has."""
    manifest = bare_manifest(
        name="bench",
        created_ms=1,
        author=AUTHOR.public_key,
        base=BaseRef(fingerprint=bytes(32), hint="none", architecture="None"),
        adapter=adapter_info(folder),
        files=file_entries(folder),
    )
    return sign(manifest, AUTHOR)


@contextmanager
def network_at(
    folder: Path, seed: int, library: tuple[Verified[Manifest], Path] | None, **settings: Any
) -> Iterator[Network]:
    """A network with a registry below `folder`, on loopback."""
    identity = Identity.from_seed(seed.to_bytes(32, "big"))
    registry = Registry.open(folder, lambda: time.time_ns() // 1_000_000, identity.author)
    config = NetConfig(**({"listen": ("/ip4/127.0.0.1/tcp/0",), "mdns": False} | settings))
    shelf = None if library is None else Shelf(registry, *library)
    yield Network(identity, config, registry, Silent(), registry.clock, random.Random(seed), library=shelf)
    registry.close()


async def give(place: Path, folder: Path, settings: dict[str, Any]) -> None:
    manifest = describe(folder)
    seed = random.SystemRandom().getrandbits(64)
    with network_at(place, seed, (manifest, folder), **settings) as network:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            print(manifest.envelope.hex(), network.addresses()[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(give, Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
