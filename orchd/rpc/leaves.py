"""Leaves of averages that are not here: they are fetched before these are averaged again, or left out if so asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import trio

from orchd.average.recipe import Expanded, weights_ppm
from orchd.errors import AverageSpecInvalid, JobNotRunning, LeavesUnknown, OrchdError
from orchd.jobs import Job, LocalContext
from orchd.node import Node
from orchd.notes import Averaged
from orchd.records import parse_id, text_id
from orchd.records.ids import ADAPTER
from orchd.registry import Registry
from orchd.rpc.methods_adapters import start_fetch
from orchd.rpc.methods_jobs import JobStarted

PARTIAL = "--allow-partial"


def absent(registry: Registry, leaves: Sequence[bytes]) -> list[str]:
    """Ids of those that are not here with all their files."""
    return [id for id in (text_id(ADAPTER, leaf) for leaf in leaves) if not registry.is_whole(id)]


def left_out(expanded: Expanded, without: Sequence[str]) -> Expanded:
    """The same average without some leaves; the others' weights grow so that they sum to a million again.

    Raises `AverageSpecInvalid` when fewer than two are left.
    """
    gone = {parse_id(id, ADAPTER) for id in without}
    kept = [(leaf, ppm) for leaf, ppm in expanded.leaves if leaf not in gone]
    if gone and len(kept) < 2:
        told = f"{len(kept)} of {len(expanded.leaves)} leaves are left without those that can't be had"
        raise AverageSpecInvalid(told, hint="Fetch them from somebody who has them.", field="adapters")
    return Expanded(tuple(sorted(weights_ppm(kept).items())), expanded.strength_ppm) if gone else expanded


async def gather(
    node: Node,
    title: str,
    missing: Sequence[str],
    go_on: Callable[[tuple[str, ...]], Awaitable[JobStarted]],
    *,
    partial: bool,
) -> JobStarted:
    """A job that fetches the `missing` leaves and then goes on with the average, whose result is its own.

    `go_on` starts that one, and is told who could not be had. The job fails with `LeavesUnknown`, which names them,
    unless the average may be `partial`.
    """

    async def work(context: LocalContext) -> Averaged:
        reasons = dict[str, str]()
        for place, id in enumerate(missing):
            context.progress(place, len(missing), "leaves")
            try:
                await _fetch(node, id)
            except OrchdError as error:
                reasons[id] = error.message
                context.log(f"{id}: {error.message}")
        if reasons and not partial:
            raise unknown(reasons)
        started = await go_on(tuple(reasons))
        return msgspec.convert((await _followed(node, context, started.job)).result, Averaged)

    return JobStarted(job=(await node.jobs.submit_local("average.leaves", title, work)).id)


def unknown(reasons: dict[str, str]) -> LeavesUnknown:
    """Names the leaves that can't be had, each with the reason."""
    told = "; ".join(f"{id} ({reason})" for id, reason in reasons.items())
    what = "leaf can't be had" if len(reasons) == 1 else "leaves can't be had"
    hint = f"Find a node that has what is named, or say {PARTIAL}: the others' weights then grow to fill the gap."
    return LeavesUnknown(f"{len(reasons)} {what}: {told}", hint=hint, field="adapters")


async def _fetch(node: Node, id: str) -> None:
    ended = await node.jobs.wait((await start_fetch(node, id)).id)
    if ended.error is not None:
        raise ended.error.exception()


async def _followed(node: Node, context: LocalContext, id: str) -> Job:
    """The job when it has ended well; its progress is told on the way, and it is cancelled if this one is.

    Raises its error.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_mirror, node, context, id)
            ended = await node.jobs.wait(id)
            nursery.cancel_scope.cancel()
    except trio.Cancelled:
        with trio.CancelScope(shield=True), suppress(JobNotRunning):
            await node.jobs.cancel(id)
        raise
    if ended.result is None:
        raise OrchdError(f"the job {id} ended as {ended.state}") if ended.error is None else ended.error.exception()
    return ended


async def _mirror(node: Node, context: LocalContext, id: str) -> None:
    events = node.events.subscribe(kinds=("job.progress",))
    try:
        async for event in events:
            if event.job == id:
                context.progress(event.data["done"], event.data["total"], event.data["unit"])
    finally:
        events.close()
