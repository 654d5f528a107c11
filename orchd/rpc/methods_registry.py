"""The registry itself: what is in it, and what keeps it in order. Pins, releases, the trash, undo."""

from __future__ import annotations

import logging
import time

import msgspec
import trio

from orchd.errors import OrchdError
from orchd.jobs import LocalContext
from orchd.net.policy.names import PRIVATE
from orchd.node import Node, in_thread
from orchd.records.ids import ADAPTER, DATASET
from orchd.registry import ADMITTED, AdapterRow
from orchd.registry import upkeep as keeping
from orchd.registry.local import Undone
from orchd.registry.own import SECRET
from orchd.registry.rebuild import Rebuilt, rebuild
from orchd.registry.trust import PREFIX
from orchd.registry.upkeep import Collected, Progress, Stats
from orchd.rollback import ROLLED_BACK, ROLLING_BACK
from orchd.rpc.deciding import Affected, of_changes, tell_trust_changed
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_network import called, follow
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import NoParams, Params, Result, method

LOG = logging.getLogger(__name__)

TOLD_EVERY = 0.2  # seconds


@method("registry.stats", NoParams, Stats, "How much is in the registry, and what was said when it was opened.")
async def registry_stats(node: Node, _: NoParams) -> Stats:
    found = await in_thread(keeping.stats, node.registry)
    return msgspec.structs.replace(found, quota_bytes=node.config.registry.quota_mb * 1_000_000)


class RegistryGc(Params, frozen=True, kw_only=True):
    """`empty_trash`: also what was removed less than 30 days ago. `preview` only says what would go."""

    empty_trash: bool = False
    preview: bool = False


@method(
    "registry.gc",
    RegistryGc,
    Collected,
    "Throw away the old part of the trash, and bytes that no adapter here needs any more.",
)
async def registry_gc(node: Node, p: RegistryGc) -> Collected:
    gone = await in_thread(keeping.collect, node.registry, dry_run=p.preview, empty_trash=p.empty_trash)
    purged = await in_thread(node.datasets.purge, dry_run=p.preview, empty_trash=p.empty_trash)
    return msgspec.structs.replace(gone, datasets=purged.datasets, bytes=gone.bytes + purged.bytes)


class ScrubDone(Result, frozen=True, kw_only=True):
    """`damaged` and `missing` are the adapters with such a file, `repaired` those that a peer gave again at once.

    `mended` blobs that were so before are whole now.
    """

    blobs: int
    bytes: int
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    mended: int
    repaired: tuple[str, ...]


@method(
    "registry.scrub", NoParams, JobStarted, "Hash every byte again; what is damaged is fetched again or quarantined."
)
async def registry_scrub(node: Node, _: NoParams) -> JobStarted:
    async def work(context: LocalContext) -> ScrubDone:
        found = await in_thread(keeping.scrub, node.registry, _telling(context, "bytes"))
        wanted = dict.fromkeys([*found.damaged, *found.missing])
        repaired = tuple([id for id in wanted if await _repaired(node, id)])
        return ScrubDone(**msgspec.structs.asdict(found), repaired=repaired)

    job = await node.jobs.submit_local("scrub", "scrub the registry", work)
    return JobStarted(job=job.id)


async def _repaired(node: Node, id: str) -> bool:
    """Whether a connected peer had the adapter's file and gave it."""
    try:
        await node.network.fetch(id)
    except OrchdError as error:
        LOG.info("scrub: %s is not repaired: %s", id, error)
        return False
    return await in_thread(node.registry.is_whole, id)


@method("registry.rebuild", NoParams, JobStarted, "Make the index again from manifests, blobs and the journal.")
async def registry_rebuild(node: Node, _: NoParams) -> JobStarted:
    async def work(context: LocalContext) -> Rebuilt:
        return await in_thread(rebuild, node.registry, _telling(context, "adapters"))

    job = await node.jobs.submit_local("rebuild", "rebuild the index", work)
    return JobStarted(job=job.id)


def _telling(context: LocalContext, unit: str) -> Progress:
    """Tells the job of progress from a thread, some times a second; raises there when the job was cancelled."""
    next_at = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at or done == total:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(context.progress, done, total, unit)
            next_at = time.monotonic() + TOLD_EVERY

    return tell


class BackedUp(Result, frozen=True, kw_only=True):
    """`path` is the copy's, `size` its bytes."""

    path: str
    size: int


@method("registry.backup", NoParams, BackedUp, "Copy the index, as it is done every night.")
async def registry_backup(node: Node, _: NoParams) -> BackedUp:
    path = await in_thread(keeping.backup, node.registry)
    return BackedUp(path=str(path), size=path.stat().st_size)


class RegistryUndo(Params, frozen=True, kw_only=True):
    """`what`: only what was done to this: an adapter's name, an id or the beginning of one, a base's or a topic's name.

    `preview` only says what would be taken back.
    """

    what: str = ""
    preview: bool = False


class TakenBack(Result, frozen=True, kw_only=True):
    """The act, what it was about (names of adapters, keys, peers, policies) and whose standing changes back.

    `changed` are the first 50 of `changed_in_all`. `passed_over` are newer acts that can't be taken back any more:
    what they changed was changed again since. `deployments` fell back to the base and may answer as before, once
    `orchctl deploy` is run.
    """

    act: str
    done_ms: int
    keys: tuple[str, ...]
    about: list[str]
    changed: list[Affected]
    changed_in_all: int
    passed_over: tuple[str, ...]
    deployments: list[str]
    preview: bool


@method("registry.undo", RegistryUndo, TakenBack, "Take back what was done last, where that can be.")
async def registry_undo(node: Node, p: RegistryUndo) -> TakenBack:
    what = f"{p.what}/" if p.what.startswith(PRIVATE) and p.what.count("/") == 1 else p.what  # a tag follows
    done = await in_thread(node.registry.undo, what, preview=p.preview)
    done = msgspec.structs.replace(done, keys=tuple(key for key in done.keys if not key.startswith(SECRET)))
    if done.act.startswith("topic.") and not p.preview:
        for name in done.keys:
            await follow(node, name)
    if done.act.startswith("trust.") and not p.preview:
        await tell_trust_changed(node, "", "undo", "")
    if done.act == "dataset.delete" and not p.preview:
        for id in (key for key in done.keys if key.startswith(DATASET)):
            await in_thread(node.datasets.back, id)
    changed = of_changes(done.changes)
    return TakenBack(
        act=done.act,
        done_ms=done.done_ms,
        keys=done.keys,
        about=await in_thread(_about, node, done),
        changed=changed.named,
        changed_in_all=changed.in_all,
        passed_over=done.passed_over,
        deployments=await in_thread(_usable_again, node, done),
        preview=p.preview,
    )


def _usable_again(node: Node, done: Undone) -> list[str]:
    """Deployments with the plain base, whose adapter may be used again now."""
    now = {change.id for change in done.changes if change.after == ADMITTED}
    return [row.name for row in node.deployments.list() if row.state in (ROLLED_BACK, ROLLING_BACK) and row.was in now]


def _about(node: Node, done: Undone) -> list[str]:
    rows = node.registry.rows_of([key for key in done.keys if key.startswith(ADAPTER)])
    names = {row.id: row.name for row in rows} | {row.id: row.name for row in node.datasets.list()}
    if done.act.startswith("topic."):
        names |= {key: called(key) for key in done.keys}
    return [names.get(key, key.removeprefix(PREFIX)) for key in done.keys]


@method("adapter.pin", AdapterNamed, AdapterRow, "Keep an adapter whatever the quota says.")
async def adapter_pin(node: Node, p: AdapterNamed) -> AdapterRow:
    return await _pin(node, p, True)


@method("adapter.unpin", AdapterNamed, AdapterRow, "Let an adapter go when room has to be made.")
async def adapter_unpin(node: Node, p: AdapterNamed) -> AdapterRow:
    return await _pin(node, p, False)


async def _pin(node: Node, p: AdapterNamed, pinned: bool) -> AdapterRow:
    row = await in_thread(node.registry.adapter, p.adapter)
    await in_thread(node.registry.pin, row.id, pinned)
    return await in_thread(node.registry.adapter, row.id)


@method("adapter.release", AdapterNamed, AdapterRow, "Let an adapter out of quarantine by hand.")
async def adapter_release(node: Node, p: AdapterNamed) -> AdapterRow:
    row = await in_thread(node.registry.adapter, p.adapter)
    return await in_thread(node.registry.release, row.id)
