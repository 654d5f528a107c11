"""A peer that gives other bytes, too many, too few, or none: it is found out, dropped and named; honest ones serve."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from orchd.errors import (
    DigestMismatch,
    NoProvider,
    OrchdError,
    PeerMisbehaved,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
)
from orchd.net import Library, download
from orchd.net import bulk as bulk_channel
from orchd.net.partial import Partial
from orchd.records import Manifest, Verified
from orchd.registry import Registry
from tests.net.support import Cluster, Peer, cluster, joined_cluster, until


class Tampering(Library):
    """Has everything, with one bit changed in every answer."""

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        data = super().read(adapter, blob, offset, length)
        return None if not data else data[:-1] + bytes([data[-1] ^ 1])


class Generous(Library):
    """Sends a byte more than was asked for, whatever the protocol's limit says."""

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        data = super().read(adapter, blob, offset, length)
        return None if data is None else data + b"x"


class Stingy(Library):
    """Sends half of what was asked for."""

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        data = super().read(adapter, blob, offset, length)
        return None if data is None else data[: len(data) // 2]


class Swapping(Library):
    """Answers every question for a manifest with the same other one."""

    other = b""

    def manifest(self, adapter: bytes) -> bytes | None:
        return self.other


class Forging(Library):
    """Changes a byte of the manifest's payload."""

    def manifest(self, adapter: bytes) -> bytes | None:
        envelope = super().manifest(adapter)
        return envelope and envelope.replace(b"CC0-1.0", b"CC0-2.0")


class Patient(Library):
    """An honest one that reads nothing while `gate` is closed."""

    gate: trio.Event

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        trio.from_thread.run(Patient.gate.wait)
        return super().read(adapter, blob, offset, length)


async def author_and_liar(
    made: Cluster, library: type[Library], author_library: type[Library] = Library
) -> tuple[Peer, Peer, Verified[Manifest]]:
    """A published adapter, and a hostile node that fetched it honestly."""
    author = await made.start("author", library=author_library)
    liar = await made.start("liar", library=library)
    for peer in (author, liar):
        await peer.network.join("test/topic")
    manifest = await author.publish(rank=512)
    await liar.events.wait("adapter.announced", id=manifest.id)
    await liar.network.fetch(manifest.id, peers=[author.network.peer_id])
    return author, liar, manifest


async def victim(made: Cluster, author: Peer, manifest: Verified[Manifest], *, bulk: bool = True) -> Peer:
    """Fetches over TLS sockets, or over streams of libp2p."""
    peer = await made.start("victim", bulk=bulk)
    await peer.network.join("test/topic")
    await peer.events.wait("adapter.announced", id=manifest.id)
    await until(lambda: peer.network.topics()[0].members == len(made.peers) - 1, "the victim meets everybody")
    return peer


def nothing_left(peer: Peer, manifest: Verified[Manifest]) -> bool:
    """Neither the adapter, nor a byte that was not signed: good chunks of an unfinished one may stay."""
    blobs = any(peer.registry.blobs.has(entry.sha256) for entry in manifest.record.files)
    for folder in (peer.folder / "fetching").glob("*"):
        with Partial(folder, manifest.record.files, lambda needed: None) as partial:
            noted = (folder / "journal").stat().st_size // 8
            assert 0 < noted == len(partial.found()), "a folder without a good chunk, or with a bad one"
    return not peer.registry.has_adapter(manifest.id) and not blobs


BOTH_WAYS = pytest.mark.parametrize("bulk", [True, False])


@BOTH_WAYS
@pytest.mark.parametrize(("library", "error"), [(Tampering, DigestMismatch), (Generous, PeerMisbehaved)])
async def test_other_bytes_are_refused_and_the_peer_named(
    tmp_path: Path, library: type[Library], error: type[OrchdError], bulk: bool
) -> None:
    async with cluster(tmp_path, width=512) as made:
        author, liar, manifest = await author_and_liar(made, library)
        peer = await victim(made, author, manifest, bulk=bulk)
        with pytest.raises(error, match=liar.network.peer_id) as caught:
            await peer.network.fetch(manifest.id, peers=[liar.network.peer_id])
        (told,) = peer.events.of("adapter.refused")
        assert (told["id"], told["peer"], told["code"]) == (manifest.id, liar.network.peer_id, error.code)
        assert told["reason"] == caught.value.message
        assert nothing_left(peer, manifest)
        await peer.events.wait("net.peer.lost", peer=liar.network.peer_id)
        await peer.network.fetch(manifest.id)
        assert peer.registry.has_adapter(manifest.id)


async def test_a_liar_may_not_come_back_but_the_user_may_ask_for_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        author, liar, manifest = await author_and_liar(made, Tampering)
        peer = await victim(made, author, manifest)
        for _ in range(2):
            with pytest.raises(DigestMismatch):
                await peer.network.fetch(manifest.id, peers=[liar.network.peer_id])
            await until(lambda: liar.network.peer_id not in {seen.peer for seen in peer.network.peers()})
            with suppress(PeerUnreachable):
                await liar.network.connect(peer.network.addresses()[0])
            await until(lambda: peer.network.peer_id not in {seen.peer for seen in liar.network.peers()})


async def test_an_honest_peer_beside_a_liar_is_enough(tmp_path: Path) -> None:
    """What the honest one brings comes after the lie: else it might bring everything before."""
    Patient.gate = trio.Event()
    Patient.gate.set()
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        author, liar, manifest = await author_and_liar(made, Tampering, Patient)
        peer = await victim(made, author, manifest)
        Patient.gate = trio.Event()

        async def go_on() -> None:
            await peer.events.wait("adapter.refused", peer=liar.network.peer_id)
            Patient.gate.set()

        nursery.start_soon(go_on)
        admission = await peer.network.fetch(manifest.id, peers=[liar.network.peer_id, author.network.peer_id])
        assert admission.verdict == "admitted"


@BOTH_WAYS
async def test_too_few_bytes(tmp_path: Path, bulk: bool) -> None:
    async with cluster(tmp_path, width=512) as made:
        author, liar, manifest = await author_and_liar(made, Stingy)
        peer = await victim(made, author, manifest, bulk=bulk)
        with pytest.raises(PeerRefused, match="only"):
            await peer.network.fetch(manifest.id, peers=[liar.network.peer_id])
        assert nothing_left(peer, manifest)


@pytest.mark.parametrize("library", [Swapping, Forging])
async def test_another_manifest(tmp_path: Path, library: type[Library]) -> None:
    async with cluster(tmp_path) as made:
        author, liar, manifest = await author_and_liar(made, library)
        Swapping.other = author.make(seed=1).envelope
        peer = await victim(made, author, manifest)
        with pytest.raises(NoProvider, match=r"another adapter|does not hold"):
            await peer.network.fetch(manifest.id, peers=[liar.network.peer_id])
        (told,) = peer.events.of("adapter.refused")
        assert told["peer"] == liar.network.peer_id
        assert nothing_left(peer, manifest)


@BOTH_WAYS
async def test_no_answer_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bulk: bool) -> None:
    class Silent(Library):
        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            trio.from_thread.run(trio.sleep_forever)
            return None

    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    monkeypatch.setattr(bulk_channel, "SILENCE_S", 1.0)
    async with cluster(tmp_path, width=512) as made:
        author, liar, manifest = await author_and_liar(made, Silent)
        peer = await victim(made, author, manifest, bulk=bulk)
        with pytest.raises(PeerTimeout, match=liar.network.peer_id):
            await peer.network.fetch(manifest.id, peers=[liar.network.peer_id])
        assert liar.network.stats().counters["bulk_channels"] == bulk
        assert nothing_left(peer, manifest)
        monkeypatch.undo()
        await peer.network.fetch(manifest.id, peers=[author.network.peer_id])


async def test_a_provider_that_dies_on_the_way_is_replaced(tmp_path: Path) -> None:
    class Dying(Library):
        """Gives one answer, then the process is gone."""

        die: trio.Event
        given = 0

        def __init__(self, registry: Registry) -> None:
            super().__init__(registry)
            self.token = trio.lowlevel.current_trio_token()

        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            Dying.given += 1
            if Dying.given > 1:
                self.token.run_sync_soon(Dying.die.set)
                trio.from_thread.run(trio.sleep_forever)
            return super().read(adapter, blob, offset, length)

    Dying.die = trio.Event()
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        author, dying, manifest = await author_and_liar(made, Dying)
        peer = await victim(made, author, manifest)

        async def kill() -> None:
            await Dying.die.wait()
            made.stop(dying)

        nursery.start_soon(kill)
        await peer.network.fetch(manifest.id, peers=[dying.network.peer_id, author.network.peer_id])
        assert peer.registry.has_adapter(manifest.id)
        nursery.cancel_scope.cancel()


async def test_ranges_of_what_is_no_part_of_the_adapter(tmp_path: Path) -> None:
    """Blobs of unpublished adapters can't be had by naming a published one."""
    async with cluster(tmp_path) as made:
        (a,) = await joined_cluster(made, 1)
        public, private = await a.publish(seed=1), a.make(seed=2)
        library = Library(a.registry)
        secret = private.record.files[-1].sha256
        assert library.read(public.digest, public.record.files[-1].sha256, 0, 10)
        assert library.read(public.digest, secret, 0, 10) is None
        assert library.read(private.digest, secret, 0, 10) is None
        assert library.manifest(private.digest) is None
        assert library.read(public.digest, public.record.files[-1].sha256, 1 << 40, 10) == b""
