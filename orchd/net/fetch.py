"""Fetch one adapter: who has it, its manifest, its files, and through the registry's door."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio
from libp2p.peer.id import ID

from orchd.errors import AdapterRevoked, DigestMismatch, NoProvider, OrchdError, PeerBlocked, Refused
from orchd.identity import KEY_PREFIX
from orchd.net import exchange
from orchd.net.download import Download, Progress
from orchd.net.host import peer_id_of
from orchd.net.node import Context, Node
from orchd.records import Manifest, Verified, parse_id, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.admission import Check
from orchd.registry.registry import Admission

log = logging.getLogger(__name__)

#: Peers asked whether they have an adapter, and how long to wait for more of them after the first yes, in seconds.
PEERS_ASKED, MORE_PEERS_S = 32, 0.5


async def fetch(
    node: Node,
    context: Context,
    adapter: bytes,
    peers: Sequence[ID],
    progress: Progress,
    checks: Sequence[Check] = (),
) -> Admission:
    """The adapter, admitted. With `peers` only those are asked; `checks` come after the door's own.

    Raises `NoProvider`, what the last peer did (`DigestMismatch`, `PeerTimeout`, …), or the door's refusal.
    """
    id = text_id(ADAPTER, adapter)
    context.events.emit("adapter.fetching", {"id": id, "peers": [str(peer) for peer in peers]})
    manifest, providers = await _find(node, context, adapter, peers)
    try:
        await trio.to_thread.run_sync(context.registry.check_record, manifest)
        return await _fetch_files(node, context, manifest, providers, progress, checks)
    except Refused as error:
        if isinstance(error, AdapterRevoked):  # whose it is, is known now: the next time nobody has to ask
            await trio.to_thread.run_sync(context.registry.news.prove, manifest)
        if not isinstance(error, DigestMismatch):  # that one has been told with its peer
            _tell_refused(context, id, "", error)
        raise


async def peek(node: Node, context: Context, adapter: bytes) -> Verified[Manifest]:
    """Its signed manifest alone. Raises `NoProvider`."""
    manifest, _ = await _find(node, context, adapter, ())
    return manifest


async def _fetch_files(
    node: Node,
    context: Context,
    manifest: Verified[Manifest],
    providers: Sequence[ID],
    progress: Progress,
    checks: Sequence[Check],
) -> Admission:
    registry = context.registry
    here = {entry.path: registry.blobs.path(entry.sha256) for entry in manifest.record.files}
    missing = [entry for entry in manifest.record.files if not registry.blobs.has(entry.sha256)]
    registry.blobs.check_room(2 * sum(entry.size for entry in missing))

    def refused(peer: ID, error: OrchdError) -> None:
        _tell_refused(context, manifest.id, str(peer), error)
        node.distrust(peer)

    folder = Path(tempfile.mkdtemp(dir=staging(registry.data)))
    try:
        download = Download(
            manifest, missing, folder, lambda peer: exchange.open_channel(node.host, peer), progress, refused
        )
        files = {**here, **await download.run(providers)}
        context.count("bytes_fetched", sum(entry.size for entry in missing))
        admission = await trio.to_thread.run_sync(
            lambda: registry.admit(manifest.envelope, files, origin="fetched", checks=checks)
        )
        node.spawn(node.prove_everywhere)
        return admission
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staging(data: Path) -> Path:
    """Where downloads lie until they are admitted; `network.py` empties it at start."""
    folder = data / "fetching"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tell_refused(context: Context, id: str, peer: str, error: OrchdError) -> None:
    context.events.emit(
        "adapter.refused", {"id": id, "peer": peer, "reason": error.message, "code": error.code, "name": error.name}
    )


async def _find(
    node: Node, context: Context, adapter: bytes, peers: Sequence[ID]
) -> tuple[Verified[Manifest], list[ID]]:
    """The manifest and who has it, the fastest first."""
    asked = list(peers) or await _candidates(node, context, text_id(ADAPTER, adapter))
    found: list[Verified[Manifest]] = []
    providers: list[ID] = []
    failures: list[OrchdError] = []
    async with trio.open_nursery() as nursery:

        async def ask_one(peer: ID) -> None:
            try:
                found.append(await _manifest_from(node, adapter, peer))
                providers.append(peer)
            except OrchdError as error:
                failures.append(error)
                # Not a peer that lacks it, nor one that the user wants nothing of, but one that lies.
                if isinstance(error, Refused) and not isinstance(error, PeerBlocked):
                    _tell_refused(context, text_id(ADAPTER, adapter), str(peer), error)
                    node.distrust(peer)
                return
            if len(found) == 1:
                nursery.cancel_scope.deadline = trio.current_time() + MORE_PEERS_S

        for peer in asked[:PEERS_ASKED]:
            nursery.start_soon(ask_one, peer)
    if not found:
        why = f": {failures[0]}" if failures else ", because nobody who might is connected"
        raise NoProvider(f"nobody gives {text_id(ADAPTER, adapter)}{why}")
    return found[0], providers


async def _manifest_from(node: Node, adapter: bytes, peer: ID) -> Verified[Manifest]:
    if not node.host.connected(peer):
        await node.connect(peer, node.host.known_addresses(peer))
    return await node.manifest_from(adapter, peer)


async def _candidates(node: Node, context: Context, id: str) -> list[ID]:
    """Connected peers: whom the user follows, then the author, who told us of it, and the other members."""
    rows = await trio.to_thread.run_sync(context.registry.announcements)
    mine = [row for row in rows if row.adapter == id]
    likely = sorted(context.followed) + [str(_author_peer(row.author)) for row in mine] + [row.peer for row in mine]
    peers = [peer for peer in node.news.members() if not node.avoids(peer)]
    order = {peer: likely.index(str(peer)) if str(peer) in likely else len(likely) for peer in peers}
    return sorted(peers, key=lambda peer: order[peer])


def _author_peer(author: str) -> ID:
    return peer_id_of(parse_id(author, KEY_PREFIX))
