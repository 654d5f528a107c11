"""Fetch one adapter: who has it, its manifest, its files, and through the registry's door."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial as partial_call
from pathlib import Path

import trio
from libp2p.peer.id import ID

from orchd.errors import AdapterRevoked, DiskFull, NoProvider, OrchdError, PeerBlocked, Refused
from orchd.identity import KEY_PREFIX
from orchd.net import asking
from orchd.net.context import Context
from orchd.net.download import Download, Progress
from orchd.net.here import places
from orchd.net.host import peer_id_of
from orchd.net.node import Node
from orchd.net.partial import Partial
from orchd.net.policy.plan import Plan, Shape, Span
from orchd.net.providers import Search, searching
from orchd.records import Manifest, Verified, parse_id, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.admission import Check
from orchd.registry.registry import Admission, Registry

log = logging.getLogger(__name__)

#: Peers that are known at the start are expected within so many seconds, and looked for this often.
COMING_S, COMING_LOOK_S = 10.0, 0.1


def look(registry: Registry, id: str, followed: Collection[str]) -> tuple[Admission | None, dict[str, int]]:
    """In a thread, before anybody is asked: the adapter, where it is here with all its files; else who is likely to
    give it."""
    if registry.is_whole(id):
        return registry.admit(registry.manifest(id).envelope, {}, origin="fetched"), {}
    return None, _likely(registry, id, followed)


async def fetch(
    node: Node,
    context: Context,
    adapter: bytes,
    peers: Sequence[ID],
    progress: Progress,
    checks: Sequence[Check],
    likely: Mapping[str, int],
) -> Admission:
    """The adapter, admitted. With `peers` only those are asked, else the `likely` ones first; `checks` come after the
    door's own.

    Raises `NoProvider`, `AdapterRevoked`, what the last peer did (`DigestMismatch`, `PeerTimeout`, …), or the door's
    refusal.
    """
    id = text_id(ADAPTER, adapter)
    context.events.emit("adapter.fetching", {"id": id, "peers": [str(peer) for peer in peers]})
    if not peers:
        await _company(node, context)
    async with _providers(node, context, adapter, peers, likely) as providers:
        try:
            manifest = await providers.first()
        except NoProvider as error:
            raise await trio.to_thread.run_sync(_nobody, context.registry, id, error) from None
        return await _fetch_files(node, context, manifest, providers, progress, checks)


async def _company(node: Node, context: Context) -> None:
    """Just after the start, peers that this node knows of are being dialled: wait for the first of them."""
    with trio.move_on_at(node.begun + COMING_S):
        while not node.news.members() and (context.bootstrap or context.book.peers()):  # noqa: ASYNC110 - no event tells
            await trio.sleep(COMING_LOOK_S)


def _nobody(registry: Registry, id: str, error: NoProvider) -> OrchdError:
    """Whoever had it may not give it any more because it was revoked."""
    if said := registry.people.revoked().get(id):
        return AdapterRevoked(f"{id} was {said}")
    if said := registry.people.said_revoked().get(id):
        return NoProvider(f"{error.message}; it was {said}")
    return error


async def peek(node: Node, context: Context, adapter: bytes) -> Verified[Manifest]:
    """Its signed manifest alone. Raises `NoProvider`."""
    id = text_id(ADAPTER, adapter)
    likely = await trio.to_thread.run_sync(_likely, context.registry, id, context.followed)
    async with _providers(node, context, adapter, (), likely) as providers:
        return await providers.first()


async def _fetch_files(
    node: Node,
    context: Context,
    manifest: Verified[Manifest],
    providers: Search,
    progress: Progress,
    checks: Sequence[Check],
) -> Admission:
    """Two fetches of one adapter come one after the other, and the second finds it here."""

    def refused(peer: ID, error: OrchdError) -> None:
        _tell_refused(context, manifest.id, str(peer), error)
        node.distrust(peer)

    registry, transfers = context.registry, context.transfers
    async with transfers.fetching(manifest.digest):
        async with _door(context, manifest):
            partial, plan, here = await trio.to_thread.run_sync(_begin, registry, manifest)
        with partial:
            try:
                context.count("bytes_reused", manifest.record.size - plan.left)
                download = Download(
                    manifest,
                    plan,
                    partial,
                    partial_call(asking.open_channel, node.host),
                    transfers.down,
                    progress,
                    refused,
                    node.bulk_host,
                    context.count,
                )
                await download.run(providers)
                async with _door(context, manifest):
                    admission, unproven = await trio.to_thread.run_sync(
                        _admit, registry, manifest, partial, here, checks
                    )
            except DiskFull:
                partial.discard()
                raise
            finally:
                if partial.is_empty():
                    partial.discard()
    if unproven:  # it may contain an adapter that was revoked before
        node.spawn(node.prove_everywhere)
    return admission


def _admit(
    registry: Registry,
    manifest: Verified[Manifest],
    partial: Partial,
    here: Mapping[int, Path],
    checks: Sequence[Check],
) -> tuple[Admission, list[str]]:
    """Through the door; whatever it says, the unfinished files are not needed any more. Also the revoked adapters of
    which somebody has to show whose they are."""
    entries = manifest.record.files
    try:
        brought = [n for n in range(len(entries)) if n not in here]
        verified = {entries[n].path: partial.digest(n) for n in brought}
        files = {entries[n].path: here.get(n) or partial.path(n) for n in range(len(entries))}
        admission = registry.admit(manifest.envelope, files, origin="fetched", checks=checks, verified=verified)
        return admission, registry.people.unproven()
    finally:
        partial.discard()


def _begin(registry: Registry, manifest: Verified[Manifest]) -> tuple[Partial, Plan[ID], dict[int, Path]]:
    """Before the first byte: what came of it before, what is left to fetch, and the files that are here, by number.

    Raises what the door says of the record, or `DiskFull`; nothing of it stays then.
    """
    registry.check_record(manifest)
    partial = Partial(staging(registry.data) / manifest.id, manifest.record.files, registry.blobs.check_room)
    try:
        return partial, *_plan(registry, manifest, partial)
    except BaseException as error:
        with partial:
            if isinstance(error, DiskFull) or partial.is_empty():
                partial.discard()
        raise


def _plan(registry: Registry, manifest: Verified[Manifest], partial: Partial) -> tuple[Plan[ID], dict[int, Path]]:
    entries = manifest.record.files
    blobs = {
        n: registry.blobs.path(entry.sha256) for n, entry in enumerate(entries) if registry.blobs.keep(entry.sha256)
    }
    shapes = [Shape(entry.size, entry.chunk_size) for entry in entries]
    here = [Span(n, 0, shapes[n].chunks) for n in blobs] + partial.found()
    plan = Plan[ID](shapes, here)
    registry.blobs.check_room(plan.left + sum(entry.size for n, entry in enumerate(entries) if n not in blobs))
    return Plan(shapes, here + _copy(registry, manifest, partial, plan)), blobs


def _copy(registry: Registry, manifest: Verified[Manifest], partial: Partial, plan: Plan[ID]) -> list[Span]:
    """Chunks that other adapters have are copied from there; which."""
    missing = [
        (file, chunk, digest)
        for file, entry in enumerate(manifest.record.files)
        for chunk, digest in enumerate(entry.chunks)
        if plan.is_missing(file, chunk)
    ]
    found = places(registry, manifest, {digest for _, _, digest in missing})
    copied = []
    for file, chunk, digest in missing:
        if digest in found and partial.put(file, chunk, memoryview(found[digest].read())):
            copied.append(Span(file, chunk, 1))
    return copied


def staging(data: Path) -> Path:
    """Where downloads lie until they are admitted; `network.py` tidies it at start."""
    return data / "fetching"


@asynccontextmanager
async def _door(context: Context, manifest: Verified[Manifest]) -> AsyncIterator[None]:
    """What the door refuses is told; it is nobody's fault in particular."""
    try:
        yield
    except Refused as error:
        if isinstance(error, AdapterRevoked):  # whose it is, is known now: the next time nobody has to ask
            await trio.to_thread.run_sync(context.registry.news.prove, manifest)
        _tell_refused(context, manifest.id, "", error)
        raise


def _tell_refused(context: Context, id: str, peer: str, error: OrchdError) -> None:
    context.events.emit(
        "adapter.refused", {"id": id, "peer": peer, "reason": error.message, "code": error.code, "name": error.name}
    )


@asynccontextmanager
async def _providers(
    node: Node, context: Context, adapter: bytes, peers: Sequence[ID], likely: Mapping[str, int]
) -> AsyncIterator[Search]:
    """Who gives it, of `peers` if there are any, else of those who share a topic with us, the `likely` ones first."""
    id = text_id(ADAPTER, adapter)

    async def ask(peer: ID) -> Verified[Manifest]:
        try:
            if not node.host.connected(peer):
                await node.company.connect(peer, node.host.known_addresses(peer))
            return await node.manifest_from(adapter, peer)
        except Refused as error:
            # Not one that lacks it, nor one that the user wants nothing of, but one that lies.
            if not isinstance(error, PeerBlocked):
                _tell_refused(context, id, str(peer), error)
                node.distrust(peer)
            raise

    def candidates() -> Sequence[ID]:
        return peers or _members(node, likely)

    async with searching(id, ask, candidates, everybody=bool(peers)) as search:
        yield search


def _likely(registry: Registry, id: str, followed: Collection[str]) -> dict[str, int]:
    """Peers (ids as text) who should have it, the best first: the author, who told us of it, whom the user follows."""
    rows = registry.index.read("SELECT author, peer FROM announcement WHERE adapter = $1", (id,))
    likely = [str(_author_peer(author)) for author, _ in rows] + [peer for _, peer in rows] + sorted(followed)
    return {peer: place for place, peer in reversed(list(enumerate(likely)))}


def _members(node: Node, likely: Mapping[str, int]) -> list[ID]:
    """Connected peers that share a topic with us, the likely ones first."""
    peers = [peer for peer in node.news.members() if not node.company.is_unwelcome(peer)]
    return sorted(peers, key=lambda peer: likely.get(str(peer), len(likely)))


def _author_peer(author: str) -> ID:
    return peer_id_of(parse_id(author, KEY_PREFIX))
