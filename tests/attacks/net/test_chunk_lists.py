"""A signed manifest whose chunk list is not one for its sizes: refused before a byte of a file is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchd.errors import SizeRefused
from orchd.net import Library
from orchd.records import FileEntry, Manifest, Verified, sign
from orchd.registry.admission import WEIGHTS
from tests.net.support import TOPIC, Peer, cluster, until

LISTS: dict[str, Callable[[FileEntry], dict[str, Any]]] = {
    "a chunk too few": lambda entry: {"chunks": entry.chunks[:-1]},
    "a chunk too many": lambda entry: {"chunks": (*entry.chunks, bytes(32))},
    "none": lambda entry: {"chunks": ()},
    "chunks of another size": lambda entry: {"chunk_size": entry.chunk_size // 2},
    "a file that is larger": lambda entry: {"size": entry.size + entry.chunk_size},
    "an empty file": lambda entry: {"size": 0},
    "the largest number": lambda entry: {"size": 2**53},
}


class Miscounting(Library):
    """Gives a manifest of its own, and counts what is asked for besides."""

    given: Verified[Manifest]
    reads = 0

    def announced_under(self, adapter: bytes) -> frozenset[str]:
        return frozenset({TOPIC})

    def manifest(self, adapter: bytes) -> bytes | None:
        return Miscounting.given.envelope if adapter == Miscounting.given.digest else super().manifest(adapter)

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        Miscounting.reads += 1
        return super().read(adapter, blob, offset, length)


def changed(liar: Peer, honest: Verified[Manifest], how: str) -> Verified[Manifest]:
    def change(entry: FileEntry) -> FileEntry:
        return msgspec.structs.replace(entry, **LISTS[how](entry)) if entry.path == WEIGHTS else entry

    return sign(msgspec.structs.replace(honest.record, files=tuple(map(change, honest.record.files))), liar.identity)


async def test_a_chunk_list_that_disagrees_with_the_size(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        liar = await made.start("liar", library=Miscounting)
        await liar.network.join(TOPIC)
        peer = await made.start("victim")
        await peer.network.join(TOPIC)
        await until(lambda: peer.network.topics()[0].members == 1, "they meet")
        honest = await liar.publish(rank=64)
        for how in LISTS:
            Miscounting.given, Miscounting.reads = changed(liar, honest, how), 0
            with pytest.raises(SizeRefused, match=r"chunks do not make|at most"):
                await peer.network.fetch(Miscounting.given.id, peers=[liar.network.peer_id])
            assert Miscounting.reads == 0, how
            assert peer.events.of("adapter.refused")[-1]["name"] == "SizeRefused"
            assert list((peer.folder / "fetching").iterdir()) == []
        await peer.network.fetch(honest.id)
        assert peer.registry.is_whole(honest.id)
