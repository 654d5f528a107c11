"""The gate of newer versions: one that does worse than what is here is not let in.

From its first moment here a newer version stands in quarantine and waits. Then it is measured beside the newest
admitted version before it, on the newest data set that has a test part, and may do no worse. If it does, it stays in
quarantine with both figures. Else it is let in, and the deployments of the other one go over to it; that one is kept,
so that `orchctl deploy` brings it back. Where nothing can be measured (no such data set, no admitted version for the
same base) it is let in. A measurement that fails decides nothing: it is made again at the next start.

What a crash leaves is finished at the next start: that a version waits is in the journal with its verdict, and with the
word that lets it in goes the row that says whose deployments go over to it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from orchd.errors import DeployUnderWay, NotAdmitted, OrchdError
from orchd.jobs import Job, State
from orchd.measuring import evaluation
from orchd.registry import REMOVED, AdapterRow, DatasetRow, versions
from orchd.registry.admission import Check
from orchd.registry.local import Change, delete, put
from orchd.registry.local_rows import Release, Succession, Verdict
from orchd.rpc.methods_serving import DeployStart, deploy_start
from orchd.train.specs import EvaluateResult

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
#: A newer version may lose this share of the old one's loss: two runs of one measurement differ by less.
TOLERANCE = 0.01
#: With this begins the reason against what waits.
WAITS = "a newer version that waits for its test"
_WAITING = f"contains(array_to_string(reasons, chr(10)), '{WAITS}')"


def waits(node: Node) -> Check:
    """The check that sends a newer version to quarantine until it was tested."""
    data = exam(node)
    reason = f"{WAITS} on your data set {data.name}" if data is not None else WAITS
    return lambda candidate: reason


def exam(node: Node) -> DatasetRow | None:
    """The data set that newer versions are measured on: the newest that has a test part."""
    return next((row for row in node.datasets.list() if row.test), None)


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """Losses in nats a token, of the version before and of the new one, on one data set."""

    dataset: str
    before: float
    after: float

    @property
    def holds(self) -> bool:
        return self.after <= self.before * (1 + TOLERANCE)


class Gate:
    """One version at a time: the next is compared with whatever the one before it has led to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._one = trio.Lock()

    async def finish(self) -> None:
        """What waited when the daemon ended, or whose test has failed."""
        node = self._node
        try:
            for row in await trio.to_thread.run_sync(node.registry.local.all, Succession):
                async with self._one:
                    await self._go_over(row)
            for verdict in await trio.to_thread.run_sync(node.registry.local.where, Verdict, _WAITING):
                await self.pass_through(verdict.adapter)
        except OrchdError as error:
            LOG.warning("newer versions wait: %s", error)

    async def pass_through(self, id: str) -> None:
        """Test a version that waits, and let it in or not. What is in the trash goes on waiting."""
        node = self._node
        async with self._one:
            rows = await trio.to_thread.run_sync(node.registry.rows_of, [id])
            if not rows or rows[0].state == REMOVED or not await trio.to_thread.run_sync(_is_waiting, node, id):
                return
            new = rows[0]
            old = await trio.to_thread.run_sync(before, node, new)
            try:
                tested = await self._test(old, new)
            except OrchdError as error:
                LOG.warning("%s could not be tested, and waits: %s", id, error)
                failed = f"{WAITS}: it could not be made ({error.message}) and is tried again at the next start"
                await trio.to_thread.run_sync(_settle, node, id, failed)
                node.events.emit("adapter.update_untested", {"id": id, "reason": failed})
                return
            if tested is not None and old is not None and not tested.holds:
                await self._refuse(old, new, tested)
            else:
                await self._let_in(old, new, tested)

    async def _test(self, old: AdapterRow | None, new: AdapterRow) -> Tested | None:
        """None when there is nothing to tell by, or the user has let it in already."""
        node = self._node
        data = await trio.to_thread.run_sync(exam, node)
        released = await trio.to_thread.run_sync(node.registry.local.get, Release, new.id)
        if old is None or data is None or released is not None:
            return None
        spec = await evaluation(node, [old, new], dataset=data.id, base=False)
        job = await node.jobs.submit("evaluate", spec, title=f"test {new.name} on {data.name}")
        one, other = msgspec.convert((await ended_well(node, job)).result, EvaluateResult).rows
        return Tested(dataset=data.name, before=one.loss, after=other.loss)

    async def _refuse(self, old: AdapterRow, new: AdapterRow, tested: Tested) -> None:
        worse = (
            f"worse on your data set {tested.dataset} than {old.name} ({old.id}), the newest version that is admitted:"
            f" loss {tested.after:.3f}, before {tested.before:.3f}"
        )
        await trio.to_thread.run_sync(_settle, self._node, new.id, worse)
        self._node.events.emit("adapter.update_refused", {"id": new.id, "instead_of": old.id, "reason": worse})

    async def _let_in(self, old: AdapterRow | None, new: AdapterRow, tested: Tested | None) -> None:
        node = self._node
        follows = None if old is None else Succession(adapter=new.id, was=old.id, since=node.clock())
        also = () if follows is None else (put(follows),)
        await trio.to_thread.run_sync(_settle, node, new.id, "", *also)
        told = {"id": new.id, "instead_of": "" if old is None else old.id, "reason": "nothing to test it on"}
        if tested is not None:
            told["reason"] = (
                f"no worse on your data set {tested.dataset}: loss {tested.after:.3f}, before {tested.before:.3f}"
            )
        node.events.emit("adapter.updated", told)
        if follows is not None:
            await self._go_over(follows)

    async def _go_over(self, row: Succession) -> None:
        """Deployments of the version before answer with the new one; what can't be now is tried at the next start."""
        node = self._node
        try:
            if await trio.to_thread.run_sync(_is_newest, node, row.adapter):
                for deployment in await trio.to_thread.run_sync(node.deployments.list):
                    if deployment.adapter == row.was:
                        wanted = DeployStart(
                            name=deployment.name,
                            adapter=row.adapter,
                            target=deployment.target,
                            quantize=deployment.quantize,
                        )
                        started = await deploy_start(node, wanted)
                        if started.job and (await node.jobs.wait(started.job)).state == State.INTERRUPTED:
                            return
        except (NotAdmitted, DeployUnderWay) as error:
            LOG.info("deployments of %s wait for %s: %s", row.was, row.adapter, error)
            return
        except OrchdError as error:
            LOG.warning("deployments of %s stay with it: %s", row.was, error)
        await trio.to_thread.run_sync(node.registry.local.act, "adapter.succeeded", delete(Succession, row.adapter))


def before(node: Node, new: AdapterRow) -> AdapterRow | None:
    """The newest admitted version before this one, for the same base."""
    registry = node.registry
    view, bases = registry.people.view(), registry.known_bases.same(new.base)
    found = versions.versions(registry.index, view, new.id)
    made = next(one for one in found if one.id == new.id)
    ids = [one.id for one in versions.older(registry.index, view, made, new.author) if one.admitted]
    return next((row for row in registry.rows_of(ids) if row.base in bases), None)


def _is_newest(node: Node, id: str) -> bool:
    """Whether no admitted version comes after this one."""
    registry = node.registry
    found = versions.versions(registry.index, registry.people.view(), id)
    return not any(one.admitted for one in found[: [one.id for one in found].index(id)])


def _is_waiting(node: Node, id: str) -> bool:
    verdict = node.registry.local.get(Verdict, id)
    return verdict is not None and any(reason.startswith(WAITS) for reason in verdict.reasons)


def _settle(node: Node, id: str, reason: str, *also: Change) -> None:
    """Put a reason (none, when empty) in the place of the one for which it waits; the user may overrule it."""
    verdict = node.registry.local.get(Verdict, id)
    if verdict is not None:
        others = [one for one in verdict.reasons if not one.startswith(WAITS)]
        kept = msgspec.structs.replace(verdict, reasons=(*others, *([reason] if reason else [])))
        node.registry.local.act("adapter.gate", put(kept), *also)
        node.registry.restand([id])


async def ended_well(node: Node, job: Job) -> Job:
    """The job when it has ended. Raises `OrchdError` unless it is done."""
    ended = await node.jobs.wait(job.id)
    if ended.result is None:
        raise OrchdError(f"the job {job.title} ended as {ended.state}")
    return ended
