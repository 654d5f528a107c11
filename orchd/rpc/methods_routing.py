"""Routing: who would answer and why, how often who did, and what the user says of it."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from orchd.node import Node
from orchd.rpc.table import Params, Result, method
from orchd.serve.routes import LeftOut

TEXT = 1_000_000  # characters


class RouteExplain(Params, frozen=True, kw_only=True):
    """`base` None: that of the most adapters that are deployed."""

    text: Annotated[str, Meta(max_length=TEXT)]
    base: str | None = None


class RouteDistance(Result, frozen=True, kw_only=True):
    """Mahalanobis distance to a deployment's prompts. `adapter` None is the plain base."""

    deployment: str
    adapter: str | None
    distance: float


class RouteExplained(Result, frozen=True, kw_only=True):
    """`deployment` would answer. `unsure`: the one that is nearly as near. `tokens` of the text were looked at, and it
    was `cut` there. `ms` is what the choice took, `lost` that the router could not say."""

    base: str
    deployment: str
    adapter: str | None
    why: str
    unsure: str | None
    distances: list[RouteDistance]
    left_out: list[LeftOut]
    tokens: int
    cut: bool
    ms: float
    lost: bool


@method("route.explain", RouteExplain, RouteExplained, "Who would answer a text, and how near each is to it.")
async def route_explain(node: Node, p: RouteExplain) -> RouteExplained:
    lineup, routed = await node.routes.explain(p.text, p.base)
    decision = routed.decision
    return RouteExplained(
        base=lineup.base,
        deployment=routed.deployment,
        adapter=routed.adapter,
        why=routed.why,
        unsure=None if decision.unsure is None else decision.unsure or lineup.plain,
        distances=[
            RouteDistance(
                deployment=one.name or lineup.plain,
                adapter=lineup.adapters.get(one.name),
                distance=round(math.sqrt(one.squared), 2),
            )
            for one in decision.distances
        ],
        left_out=list(node.routes.left_out(lineup)),
        tokens=decision.tokens,
        cut=decision.cut,
        ms=round(routed.ms, 2),
        lost=routed.lost,
    )


class RouteOf(Params, frozen=True, kw_only=True):
    """`base` None: that of the most adapters that are deployed."""

    base: str | None = None


class RouteShare(Result, frozen=True, kw_only=True):
    """How often a deployment was chosen since the daemon started. `corrections` name it as the right one."""

    deployment: str
    adapter: str | None
    chosen: int
    corrections: int


class RouteStatus(Result, frozen=True, kw_only=True):
    """`running`: the router's process is up."""

    base: str
    rows: list[RouteShare]
    left_out: list[LeftOut]
    running: bool


@method("route.status", RouteOf, RouteStatus, "Who takes part in routing, and how often each was chosen.")
async def route_status(node: Node, p: RouteOf) -> RouteStatus:
    lineup = await node.routes.lineup(p.base)
    taught = [lesson.name or lineup.plain for lesson in lineup.lessons]
    left_out = node.routes.left_out(lineup)
    out = {one.name for one in left_out}
    names = [*(name for name in lineup.adapters if name not in out), lineup.plain]
    return RouteStatus(
        base=lineup.base,
        rows=[
            RouteShare(
                deployment=name,
                adapter=lineup.adapters.get(name),
                chosen=node.routes.counts[name],
                corrections=taught.count(name),
            )
            for name in names
        ],
        left_out=list(left_out),
        running=node.routes.runtime.worker_pid is not None,
    )


class RouteCorrect(Params, frozen=True, kw_only=True):
    """`deployment` is who should have answered; None: the next nearest. `text` None: what was routed last."""

    deployment: str | None = None
    text: Annotated[str, Meta(min_length=1, max_length=TEXT)] | None = None
    base: str | None = None


class RouteCorrected(Result, frozen=True, kw_only=True):
    """`was` answered such a request before, `deployment` does from now on."""

    was: str
    deployment: str


@method("route.correct", RouteCorrect, RouteCorrected, "That was the wrong one: say who should have answered.")
async def route_correct(node: Node, p: RouteCorrect) -> RouteCorrected:
    was, right = await node.routes.correct(p.deployment, p.text, p.base)
    return RouteCorrected(was=was, deployment=right)
