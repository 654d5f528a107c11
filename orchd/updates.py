"""What is fetched without asking: adapters of followed authors, and newer versions of what is here.

A newer version passes the door like anything else, and then the gate: on the newest data set that has a test part it
may do no worse than the one that it supersedes. If it does, it stays in quarantine with both figures. Deployments of
the old one go over to the new one; the old one is kept, so that `orchctl deploy` brings it back.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd.errors import OrchdError
from orchd.jobs import Job
from orchd.measuring import evaluation
from orchd.records import Manifest, Verified, text_id
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, AdapterRow
from orchd.registry.local import put
from orchd.registry.local_rows import Verdict
from orchd.registry.trust import FOLLOWED
from orchd.rpc.methods_adapters import start_fetch
from orchd.rpc.methods_serving import DeployStart, deploy_start
from orchd.train.specs import EvaluateResult

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
#: A newer version may lose this share of the old one's loss: two runs of one measurement differ by less.
TOLERANCE = 0.01
#: Adapters that are looked at, fetched or measured at once.
AT_ONCE = 2


class Updates:
    """Started by the daemon; listens to what is announced."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._seen: set[str] = set()

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. What was announced before is looked at when somebody is followed or a policy is set."""
        heard = self._node.events.subscribe(kinds=("adapter.announced", "trust.changed"))
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                nursery.start_soon(self._look_back, nursery)
                async for event in heard:
                    if event.kind == "trust.changed":
                        self._seen.clear()
                        nursery.start_soon(self._look_back, nursery)
                    else:
                        nursery.start_soon(self._consider, event.data["id"], event.data["author"])
        finally:
            heard.close()

    async def _look_back(self, nursery: trio.Nursery) -> None:
        for row in await trio.to_thread.run_sync(self._node.registry.announcements):
            if not row.here:
                nursery.start_soon(self._consider, row.adapter, row.author)

    async def _consider(self, adapter: str, announcer: str) -> None:
        async with self._limiter:
            try:
                if adapter not in self._seen and await self._is_wanted_from(announcer):
                    self._seen.add(adapter)
                    await self._bring(adapter)
            except OrchdError as error:
                self._seen.discard(adapter)
                LOG.info("%s was not fetched by itself: %s", adapter, error)

    async def _is_wanted_from(self, announcer: str) -> bool:
        """Whether anything by a followed author is fetched without asking."""
        view = await trio.to_thread.run_sync(self._node.registry.people.view)
        opinion = view.opinion(announcer)
        updates = opinion is not None and opinion.auto_update
        return view.level(announcer) == FOLLOWED and (view.policies.auto_fetch == "followed" or updates)

    async def _bring(self, adapter: str) -> None:
        node = self._node
        if await trio.to_thread.run_sync(node.registry.has_adapter, adapter):
            return
        manifest = await node.network.peek(adapter)
        view = await trio.to_thread.run_sync(node.registry.people.view)
        if view.level(manifest.author) != FOLLOWED:
            return
        opinion = view.opinion(manifest.author)
        old = await self._superseded(manifest) if opinion is not None and opinion.auto_update else None
        if old is None and view.policies.auto_fetch != "followed":
            return
        await _done(node, await start_fetch(node, adapter))
        row = await trio.to_thread.run_sync(node.registry.adapter, adapter)
        if old is not None and row.state == ADMITTED:
            await self._update(old, row)

    async def _superseded(self, manifest: Verified[Manifest]) -> AdapterRow | None:
        """The adapter here, by the same author, that a manifest supersedes."""
        registry = self._node.registry
        if manifest.record.supersedes is None:
            return None
        rows = await trio.to_thread.run_sync(registry.rows_of, [text_id(ADAPTER, manifest.record.supersedes)])
        view = await trio.to_thread.run_sync(registry.people.view)
        return rows[0] if rows and view.same(rows[0].author, manifest.author) else None

    # ---- the gate --------------------------------------------------------------------------------------------

    async def _update(self, old: AdapterRow, new: AdapterRow) -> None:
        node = self._node
        if (worse := await self._gate(old, new)) is not None:
            await trio.to_thread.run_sync(_keep_out, node, new.id, worse)
            node.events.emit("adapter.update_refused", {"id": new.id, "supersedes": old.id, "reason": worse})
            return
        node.events.emit("adapter.updated", {"id": new.id, "supersedes": old.id})
        for deployment in await trio.to_thread.run_sync(node.deployments.list):
            if deployment.adapter == old.id:
                await deploy_start(
                    node,
                    DeployStart(
                        name=deployment.name,
                        adapter=new.id,
                        target=deployment.target,
                        quantize=deployment.quantize,
                    ),
                )

    async def _gate(self, old: AdapterRow, new: AdapterRow) -> str | None:
        """Why the new one is not taken, None when it may come: it does no worse, or there is no data to tell."""
        node = self._node
        own = [row for row in await trio.to_thread.run_sync(node.datasets.list) if row.test]
        if not own or old.base != new.base:
            return None
        spec = await evaluation(node, [old, new], dataset=own[0].id, base=False)
        job = await node.jobs.submit("evaluate", spec, title=f"gate {new.name}")
        before, after = msgspec.convert((await _done(node, job)).result, EvaluateResult).rows
        if after.loss <= before.loss * (1 + TOLERANCE):
            return None
        return (
            f"worse on your data set {own[0].name} than {old.id}, which it supersedes:"
            f" loss {after.loss:.3f}, before {before.loss:.3f}"
        )


def _keep_out(node: Node, adapter: str, reason: str) -> None:
    """Into quarantine, with a reason that can be overruled by `orchctl adapter release`."""
    verdict = node.registry.local.get(Verdict, adapter)
    if verdict is not None:
        kept = msgspec.structs.replace(verdict, reasons=(*verdict.reasons, reason))
        node.registry.local.act("adapter.gate", put(kept))
        node.registry.restand([adapter])


async def _done(node: Node, job: Job) -> Job:
    """The job when it has ended. Raises `OrchdError` unless it is done."""
    ended = await node.jobs.wait(job.id)
    if ended.result is None:
        raise OrchdError(f"the job {job.title} ended as {ended.state}")
    return ended
