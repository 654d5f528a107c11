"""The training environment: what it is, making it, repairing it, removing it."""

from __future__ import annotations

from orchd.environment.environment import Removed, State
from orchd.jobs.entry import LocalContext
from orchd.node import Node
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import NoParams, method

KIND = "environment"


@method(
    "environment.show", NoParams, State, "Where training finds its packages; what making an environment would take."
)
async def environment_show(node: Node, _: NoParams) -> State:
    return await node.environment.state()


@method("environment.make", NoParams, JobStarted, "Download what training needs, where it is not installed.")
async def environment_make(node: Node, _: NoParams) -> JobStarted:
    return await _start(node, repair=False)


@method("environment.repair", NoParams, JobStarted, "Look through the training environment; make it anew if not whole.")
async def environment_repair(node: Node, _: NoParams) -> JobStarted:
    return await _start(node, repair=True)


@method("environment.remove", NoParams, Removed, "Remove the training environment and what was downloaded for it.")
async def environment_remove(node: Node, _: NoParams) -> Removed:
    return await node.environment.remove()


async def _start(node: Node, *, repair: bool) -> JobStarted:
    async def work(context: LocalContext) -> State:
        return await (node.environment.repair(context) if repair else node.environment.make(context))

    verb = "repair" if repair else "make"
    job = await node.jobs.submit_local(f"{KIND}.{verb}", f"{verb} the training environment", work)
    return JobStarted(job=job.id)
