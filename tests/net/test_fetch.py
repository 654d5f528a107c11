"""Fetching as the daemon does it: resumed, from several peers, only what is missing, at the pace of the settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from safetensors.numpy import load_file, save_file

from orchd.errors import DiskFull, PeerQuota, PeerTimeout, PeerUnreachable
from orchd.net import Library, Transferred, bulk, download, messages
from orchd.net.partial import Partial
from orchd.records import Manifest, Verified, sign
from orchd.registry.describe import adapter_info, file_entries
from tests.net.support import TOPIC, Cluster, Peer, cluster, now_ms, until
from tests.net.test_relay import node_of

CHUNK = 65_536


async def providers(
    made: Cluster, count: int, rank: int = 512, **settings: Any
) -> tuple[list[Peer], Verified[Manifest]]:
    """An adapter of 8 · width · rank bytes, and peers that have it."""
    peers = []
    for number in range(count):
        peers.append(await made.start(f"p{number}", **settings))
        await peers[-1].network.join(TOPIC)
    manifest = await peers[0].publish(rank=rank)
    for peer in peers[1:]:
        await peer.events.wait("adapter.announced", id=manifest.id)
        await peer.network.fetch(manifest.id)
    return peers, manifest


async def reader(made: Cluster, name: str = "reader", **settings: Any) -> Peer:
    others = list(made.peers)
    peer = await made.start(name, **settings)
    await peer.network.join(TOPIC)
    for other in others:
        await peer.network.connect(other.network.addresses()[0])
    await until(lambda: peer.network.topics()[0].members == len(others), "the reader meets everybody")
    return peer


def until_told(scope: trio.CancelScope, share: float) -> Callable[[Transferred], None]:
    """Progress that cancels when so much is done."""

    def told(far: Transferred) -> None:
        if far.done >= share * far.total:
            scope.cancel()

    return told


# ---- resuming ----------------------------------------------------------------------------------------------------


async def test_a_fetch_goes_on_where_it_was_cancelled(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=1024) as made:
        (author,), manifest = await providers(made, 1, rank=1024, upload_limit=8_000)
        peer = await reader(made)
        with trio.CancelScope() as scope:
            await peer.network.fetch(manifest.id, progress=until_told(scope, 0.3))
        first = peer.network.stats().counters["bytes_fetched"]
        assert 0.3 * manifest.record.size <= first < 0.9 * manifest.record.size
        told: list[Transferred] = []
        await peer.network.fetch(manifest.id, peers=[author.network.peer_id], progress=told.append)
        assert peer.registry.has_adapter(manifest.id)
        assert told[0].done >= first - CHUNK
        assert peer.network.stats().counters["bytes_fetched"] <= manifest.record.size + CHUNK
        assert list((peer.folder / "fetching").iterdir()) == []


async def test_where_the_only_peer_goes_it_is_said_what_is_here_and_how_it_goes_on(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=1024) as made:
        (author,), manifest = await providers(made, 1, rank=1024, upload_limit=8_000)
        peer = await reader(made)

        def stop(far: Transferred) -> None:
            if far.done >= 0.3 * manifest.record.size:
                made.stop(author)

        with pytest.raises((PeerUnreachable, PeerTimeout), match=r"; \d\.\d of \d\.\d MB are here") as caught:
            await peer.network.fetch(manifest.id, progress=stop)
        assert f"adapter fetch {manifest.id}` goes on" in caught.value.hint


CHILD = """
import sys, trio
from pathlib import Path
from tests.net.support import cluster
async def main(folder, address, adapter):
    async with cluster(Path(folder), width=1024) as made:
        peer = await made.start("reader", bootstrap=(address,))
        author = await peer.network.connect(address)
        await peer.network.fetch(adapter, peers=[author], progress=lambda far: print(far.done, flush=True))
trio.run(main, *sys.argv[1:])
"""


async def test_killed_a_fetch_goes_on_with_at_most_one_chunk_twice(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=1024) as made:
        (author,), manifest = await providers(made, 1, rank=1024, upload_limit=8_000)
        address, size = author.network.addresses()[0], manifest.record.size
        command = [sys.executable, "-c", CHILD, str(tmp_path), address, manifest.id]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - read in threads
        stdout = child.stdout
        assert stdout is not None
        done = 0
        while done < 0.3 * size:
            done = int(await trio.to_thread.run_sync(stdout.readline))
        child.send_signal(signal.SIGKILL)
        rest = await trio.to_thread.run_sync(stdout.read)
        await trio.to_thread.run_sync(child.wait)
        stdout.close()
        done = max([done, *(int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n"))])
        assert done < size, "it was killed on the way"
        peer = await reader(made)
        await peer.network.fetch(manifest.id)
        assert peer.network.stats().counters["bytes_fetched"] <= size - done + CHUNK
        assert peer.registry.has_adapter(manifest.id)


async def test_a_line_that_breaks_costs_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, given, put, kept = bulk.Line.write, list[int](), Partial.put, list[int]()

    def keep(partial: Partial, file: int, first: int, data: memoryview) -> int:
        kept.append(len(data))
        return put(partial, file, first, data)

    def write(line: bulk.Line, data: bytes | memoryview) -> None:
        given.append(len(data))
        if sum(given) > 3 << 20:
            given.clear()
            line.hang_up()
        real(line, data)

    async with cluster(tmp_path, width=1024) as made:
        (author,), manifest = await providers(made, 1, rank=1024)
        peer = await reader(made)
        monkeypatch.setattr(bulk.Line, "write", write)
        monkeypatch.setattr(Partial, "put", keep)
        await peer.network.fetch(manifest.id)
        assert author.network.stats().counters["bulk_channels"] > 1, "it broke"
        assert sum(kept) == manifest.record.size


async def test_two_fetches_of_one_adapter_bring_it_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        _, manifest = await providers(made, 1)
        peer = await reader(made)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(peer.network.fetch, manifest.id)
        assert peer.network.stats().counters["bytes_fetched"] == manifest.record.size


# ---- several peers -----------------------------------------------------------------------------------------------


async def test_several_peers_bring_parts(tmp_path: Path) -> None:
    """None goes on after its first answer until all three have brought something, however busy the machine is."""
    together, begun = trio.Event(), set[int]()
    together.set()

    class Waiting(Library):
        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            if id(self) in begun:
                trio.from_thread.run(together.wait)
            begun.add(id(self))
            return super().read(adapter, blob, offset, length)

    async with cluster(tmp_path, width=1024) as made:
        peers, manifest = await providers(made, 3, library=Waiting)
        before = [peer.network.stats().counters["bytes_served"] for peer in peers]
        peer = await reader(made)
        together = trio.Event()
        begun.clear()

        def told(far: Transferred) -> None:
            if far.peers == 3:
                together.set()

        await peer.network.fetch(manifest.id, peers=[other.network.peer_id for other in peers], progress=told)
        assert together.is_set()
        served = [peer.network.stats().counters["bytes_served"] - was for peer, was in zip(peers, before, strict=True)]
        assert min(served) > 0
        assert peer.registry.is_whole(manifest.id)


@pytest.mark.parametrize(("enough", "used"), [(0.0, 1), (float("inf"), 2)], ids=["fast", "slow"])
async def test_another_channel_is_opened_where_those_of_the_cores_bring_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: float, used: int
) -> None:
    monkeypatch.setattr(download, "LINES", 1)
    monkeypatch.setattr(download, "ENOUGH", enough)
    async with cluster(tmp_path, width=1024) as made:
        peers, manifest = await providers(made, 2, upload_limit=3_000)
        peer = await reader(made)
        await peer.network.fetch(manifest.id, peers=[other.network.peer_id for other in peers])
        assert peer.network.stats().counters["bulk_channels_used"] == used
        assert peer.registry.is_whole(manifest.id)


async def test_one_that_turns_up_joins_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The author goes on when the late one has begun to give."""
    joined = trio.Event()
    joined.set()

    class Waiting(Library):
        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            trio.from_thread.run(joined.wait)
            return super().read(adapter, blob, offset, length)

    class Late(Library):
        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            trio.from_thread.run_sync(joined.set)
            return super().read(adapter, blob, offset, length)

    monkeypatch.setattr("orchd.net.providers.MORE_S", 0.1)
    async with cluster(tmp_path, width=512) as made, trio.open_nursery() as nursery:
        author, late = await made.start("author", library=Waiting), await made.start("late", library=Late)
        for peer in (author, late):
            await peer.network.join(TOPIC)
        manifest = await author.publish(rank=512)
        await late.events.wait("adapter.announced", id=manifest.id)
        await late.network.fetch(manifest.id)
        made.stop(late)
        await until(lambda: made.stopped(late))
        reading = await made.start("reader")
        await reading.network.join(TOPIC)
        await until(lambda: reading.network.topics()[0].members == 1, "the reader meets the author")
        joined, begun = trio.Event(), trio.Event()

        async def turn_up() -> None:
            await begun.wait()
            await made.run(late)
            await late.network.connect(reading.network.addresses()[0])

        nursery.start_soon(turn_up)
        await reading.network.fetch(manifest.id, progress=lambda far: begun.set())
        assert late.network.stats().counters["bytes_served"] > 0


async def test_a_silent_peer_is_taken_over_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its time limit, which is an hour here."""

    class Silent(Library):
        def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
            trio.from_thread.run(trio.sleep_forever)
            return None

    monkeypatch.setattr(download, "SILENCE_S", 3600.0)
    async with cluster(tmp_path, width=512) as made:
        silent = await made.start("silent", library=Silent)
        await silent.network.join(TOPIC)
        (author,), manifest = await providers(made, 1)
        await silent.events.wait("adapter.announced", id=manifest.id)
        await silent.network.fetch(manifest.id)
        peer = await reader(made)
        with trio.fail_after(60):
            await peer.network.fetch(manifest.id, peers=[silent.network.peer_id, author.network.peer_id])
        assert peer.registry.has_adapter(manifest.id)


# ---- what is here already ----------------------------------------------------------------------------------------


#: Bytes of the only chunk in which `next_version` differs: the last one, of 2 MiB and a header.
LAST_CHUNK = 232


def next_version(author: Peer, first: Verified[Manifest], folder: Path) -> Verified[Manifest]:
    """The same adapter with its last bytes changed, admitted at its author."""
    folder.mkdir()
    files = author.registry.files(first.id)
    (folder / "adapter_config.json").write_bytes(files["adapter_config.json"].read_bytes())
    tensors = load_file(files["adapter_model.safetensors"])
    name = max(tensors)
    tensors[name][-1, -1] += np.float32(1)
    save_file(tensors, folder / "adapter_model.safetensors")
    record = Manifest(
        **{field: getattr(first.record, field) for field in Manifest.__struct_fields__}
        | {
            "adapter": adapter_info(folder),
            "files": file_entries(folder),
            "created_ms": now_ms(),
            "supersedes": first.digest,
        }
    )
    manifest = sign(record, author.identity)
    paths = {entry.path: folder / entry.path for entry in record.files}
    assert author.registry.admit(manifest.envelope, paths, origin="trained").verdict == "admitted"
    return manifest


async def test_of_a_new_version_only_the_difference_travels(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        (author,), first = await providers(made, 1)
        peer = await reader(made)
        await peer.network.fetch(first.id)
        second = next_version(author, first, tmp_path / "second")
        await author.network.tell(author.announcement(second))
        before = peer.network.stats().counters["bytes_fetched"]
        await peer.network.fetch(second.id)
        assert peer.network.stats().counters["bytes_fetched"] - before == LAST_CHUNK
        assert peer.network.stats().counters["bytes_reused"] == second.record.size - LAST_CHUNK
        assert peer.registry.is_whole(second.id)


async def test_a_damaged_chunk_here_is_fetched(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        (author,), first = await providers(made, 1)
        peer = await reader(made)
        await peer.network.fetch(first.id)
        weights = next(entry for entry in first.record.files if entry.path == "adapter_model.safetensors")
        blob = peer.registry.blobs.path(weights.sha256)
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(3 * CHUNK)
            file.write(b"rotten")
        second = next_version(author, first, tmp_path / "second")
        await author.network.tell(author.announcement(second))
        before = peer.network.stats().counters["bytes_fetched"]
        await peer.network.fetch(second.id)
        assert peer.network.stats().counters["bytes_fetched"] - before == CHUNK + LAST_CHUNK


# ---- limits ------------------------------------------------------------------------------------------------------


async def test_limits_of_both_sides_hold(tmp_path: Path) -> None:
    for side in ("upload_limit", "download_limit"):
        async with cluster(tmp_path / side, width=512) as made:
            giving = {side: 1_000} if side == "upload_limit" else {}
            _, manifest = await providers(made, 1, **giving)
            peer = await reader(made, "reader", **({} if giving else {side: 1_000}))
            begun = trio.current_time()
            await peer.network.fetch(manifest.id)
            least = (manifest.record.size - 2 * 500_000) / 1e6  # two portions go at once
            assert trio.current_time() - begun > least, side


@pytest.mark.parametrize("bulk", [True, False], ids=["bulk", "stream"])
async def test_a_quota_ends_a_fetch_that_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bulk: bool
) -> None:
    """1 MB in an hour: a chunk of 64 KiB comes back in four minutes, which is waited for only if it is allowed to."""
    async with cluster(tmp_path, width=512) as made:
        (author,), manifest = await providers(made, 1, upload_quota_mb=1, bulk=bulk)
        peer = await reader(made)
        with pytest.raises(PeerQuota, match=r"gives more in \d+ (s|minutes); \d\.\d of 2\.1 MB are here") as caught:
            await peer.network.fetch(manifest.id)
        assert author.network.peer_id in caught.value.message
        assert f"`orchctl adapter fetch {manifest.id}` goes on" in (caught.value.hint or "")
        served = author.network.stats().counters["bytes_served"]
        assert 1_000_000 - CHUNK < served <= 1_000_000, "all that it gives was taken"
        transfers = node_of(author)._context.transfers
        transfers.quotas._buckets.clear()  # an hour later
        transfers.quotas._limit = 0
        await peer.network.fetch(manifest.id)
        assert peer.registry.is_whole(manifest.id)
        assert peer.network.stats().counters["bytes_fetched"] <= manifest.record.size


async def test_a_short_quota_is_waited_for_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, width=512) as made:
        (author,), manifest = await providers(made, 1, upload_quota_mb=1)
        quotas = node_of(author)._context.transfers.quotas
        quotas._period_s = 1.0
        peer = await reader(made)
        told: list[Transferred] = []
        await peer.network.fetch(manifest.id, progress=told.append)
        waits = [far.waits for far in told if far.waits]
        assert waits
        assert all(f"{author.network.peer_id} has given this node its share" in one for one in waits)
        assert all(one.endswith("it gives more in 1 s") for one in waits)


async def test_where_one_peer_has_given_its_share_another_gives_the_rest(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        peers, manifest = await providers(made, 2)
        quotas = node_of(peers[0])._context.transfers.quotas
        quotas._limit = 1_000_000
        peer = await reader(made)
        await peer.network.fetch(manifest.id, peers=[one.network.peer_id for one in peers])
        assert peer.registry.is_whole(manifest.id)


def test_a_peer_that_does_not_say_when_is_asked_again_for_a_minute() -> None:
    error = messages.refusal("p", messages.Failed(reason=messages.QUOTA))
    assert isinstance(error, PeerQuota)
    assert error.after_s == 0
    assert download._when(error.after_s) == "it does not say when it gives more"
    assert messages.decode_reply(messages.encode(messages.Failed(reason=messages.QUOTA, after_s=7))[4:]) == (
        messages.Failed(reason=messages.QUOTA, after_s=7)
    )


async def test_a_full_disk_is_told_and_left_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, width=512) as made:
        _, manifest = await providers(made, 1)
        peer = await reader(made)

        def full(*_: object) -> int:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("orchd.net.partial.os.pwrite", full)
        with pytest.raises(DiskFull):
            await peer.network.fetch(manifest.id)
        assert list((peer.folder / "fetching").iterdir()) == []
        monkeypatch.undo()
        await peer.network.fetch(manifest.id)
