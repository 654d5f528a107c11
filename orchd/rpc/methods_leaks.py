"""The leak report of an adapter: how much of its training data it gives away."""

from __future__ import annotations

import msgspec

from orchd import leaks
from orchd.node import Node
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import Params, method


class AdapterLeakReport(Params, frozen=True, kw_only=True):
    """`dataset` is what it was trained on, where that is not known here. `routing` makes the centroid of the prompts
    too, which is signed and counted."""

    adapter: str
    dataset: str | None = None
    routing: bool = False


@method(
    "adapter.leak_report",
    AdapterLeakReport,
    JobStarted,
    "Measure how much of its training data an adapter gives away, and sign the verdict.",
)
async def adapter_leak_report(node: Node, p: AdapterLeakReport) -> JobStarted:
    """One that runs already is the same job."""
    spec, note = await leaks.plan(node, p.adapter, p.dataset, routing=p.routing)
    running = node.jobs.under_way("leak", msgspec.to_builtins(note))
    title = f"leak report {note.adapter[:12]}"
    return JobStarted(job=(running or await node.jobs.submit("leak", spec, title=title, note=note)).id)
