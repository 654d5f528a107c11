"""The registry itself: what is in it, and what keeps it in order. Pins, releases, the trash, undo."""

from __future__ import annotations

import trio

from orchd.jobs import LocalContext
from orchd.node import Node, in_thread
from orchd.registry import AdapterRow
from orchd.registry import upkeep as keeping
from orchd.registry.local import Undone
from orchd.registry.rebuild import Rebuilt, rebuild
from orchd.registry.upkeep import Collected, Scrubbed, Stats
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import NoParams, Params, Result, method


@method("registry.stats", NoParams, Stats, "How much is in the registry, and what was said when it was opened.")
async def registry_stats(node: Node, _: NoParams) -> Stats:
    return await in_thread(keeping.stats, node.registry)


class RegistryGc(Params, frozen=True, kw_only=True):
    """`empty_trash`: also what was removed less than 30 days ago. `preview` only says what would go."""

    empty_trash: bool = False
    preview: bool = False


@method("registry.gc", RegistryGc, Collected, "Throw away the old part of the trash, and bytes that nothing has.")
async def registry_gc(node: Node, p: RegistryGc) -> Collected:
    return await in_thread(keeping.collect, node.registry, dry_run=p.preview, empty_trash=p.empty_trash)


@method("registry.scrub", NoParams, JobStarted, "Hash every byte again, and quarantine what is damaged or missing.")
async def registry_scrub(node: Node, _: NoParams) -> JobStarted:
    async def work(context: LocalContext) -> Scrubbed:
        def tell(done: int, total: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(context.progress, done, total, "bytes")

        return await in_thread(keeping.scrub, node.registry, tell)

    job = await node.jobs.submit_local("scrub", "scrub the registry", work)
    return JobStarted(job=job.id)


@method("registry.rebuild", NoParams, JobStarted, "Make the index again from manifests, blobs and the journal.")
async def registry_rebuild(node: Node, _: NoParams) -> JobStarted:
    async def work(context: LocalContext) -> Rebuilt:
        return await in_thread(rebuild, node.registry)

    job = await node.jobs.submit_local("rebuild", "rebuild the index", work)
    return JobStarted(job=job.id)


class BackedUp(Result, frozen=True, kw_only=True):
    """`path` is the copy's, `size` its bytes."""

    path: str
    size: int


@method("registry.backup", NoParams, BackedUp, "Copy the index, as it is done every night.")
async def registry_backup(node: Node, _: NoParams) -> BackedUp:
    path = await in_thread(keeping.backup, node.registry)
    return BackedUp(path=str(path), size=path.stat().st_size)


@method("registry.undo", NoParams, Undone, "Take back what was done last, where that can be.")
async def registry_undo(node: Node, _: NoParams) -> Undone:
    return await in_thread(node.registry.undo)


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
