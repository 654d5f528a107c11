"""Where an adapter came from and what it went into: data set → run → adapter → averages → deployments.

Edges are claims by those who signed the averages, so nothing here trusts their shape: a ring, a parent that nobody has,
a thousand parents or a chain without end give a tree all the same, in which each adapter is opened once and which
stops at a limit. `tree` is pure; `why` reads the index for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from orchd.registry.index import Index
from orchd.registry.rows import AdapterRow

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

#: How far `why` looks, and how many lines it gives, in each of the two directions.
MAX_DEPTH, MAX_LINES = 64, 500
#: Edges read at one depth.
MAX_EDGES = 2_000

Kind = Literal["adapter", "run", "dataset", "deployment"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a tree, `depth` steps from the adapter that was asked about; its own lines follow it.

    `id` is an adapter's or a data set's id, a run's job, or a deployment's name. `relations`: leaf (with its `weight`),
    initial, relative_to or previous, as the manifest says; trained_in, data, deployed. An adapter that is not `here` is
    known by its id alone. `again`: it stands further up already, with what belongs to it.
    """

    depth: int
    kind: Kind
    id: str
    name: str
    relations: tuple[str, ...]
    weight: float | None = None
    here: bool = True
    state: str = ""
    reason: str = ""
    author: str = ""
    trust: str = ""
    again: bool = False


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Both trees of an adapter, each depth first. `cut`: they are longer than what is shown."""

    adapter: AdapterRow
    came_from: list[Line]
    went_into: list[Line]
    cut: bool


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """`child` says that it contains `parent`."""

    child: str
    parent: str
    kind: str
    weight: float | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of adapters, by id: themselves, and lines that hang on them (their depth counted from there)."""

    adapters: Mapping[str, Line]
    hanging: Mapping[str, Sequence[Line]]


def why(registry: Registry, text: str) -> Why:
    """Both trees of the adapter of this id, prefix or name. Raises `AdapterUnknown` or `AmbiguousId`."""
    row = registry.adapter(text)
    up, up_cut = _walk(registry.index, row.id, "child", "parent")
    down, down_cut = _walk(registry.index, row.id, "parent", "child")
    ids = {row.id, *(edge.parent for edge in up), *(edge.child for edge in down)}
    adapters = _adapters(registry.index, ids, registry.trust)
    came_from, from_cut = tree(row.id, up, Facts(adapters=adapters, hanging=_runs(registry.index, ids)), up=True)
    went_into, into_cut = tree(
        row.id, down, Facts(adapters=adapters, hanging=_deployments(registry.index, ids)), up=False
    )
    cut = up_cut or down_cut or from_cut or into_cut
    return Why(adapter=row, came_from=came_from, went_into=went_into, cut=cut)


def tree(
    root: str, edges: Sequence[Edge], facts: Facts, *, up: bool, limit: int = MAX_LINES
) -> tuple[list[Line], bool]:
    """The lines under `root`, towards parents or (not `up`) children, and whether there are more than `limit`."""
    next_to = _neighbours(edges, up=up)
    lines: list[Line] = []
    opened: set[str] = set()
    waiting = [Line(depth=0, kind="adapter", id=root, name="", relations=())]
    while waiting and len(lines) <= limit:
        line = waiting.pop()
        if line.kind == "adapter":
            below = [
                *(msgspec.structs.replace(one, depth=line.depth + one.depth) for one in facts.hanging.get(line.id, ())),
                *(_adapter_line(id, joined, line.depth + 1, facts) for id, joined in next_to.get(line.id, {}).items()),
            ]
            if below and line.id in opened:
                line = msgspec.structs.replace(line, again=True)
            else:
                waiting += reversed(below)
            opened.add(line.id)
        lines.append(line)
    return lines[1 : limit + 1], len(lines) > limit + 1 or bool(waiting)


def _neighbours(edges: Iterable[Edge], *, up: bool) -> dict[str, dict[str, list[Edge]]]:
    """By adapter, the adapters next to it with the edges between the two, the heaviest first."""
    found: dict[str, dict[str, list[Edge]]] = defaultdict(lambda: defaultdict(list))
    for edge in sorted(edges, key=lambda edge: (-(edge.weight or 0.0), edge.child, edge.parent, edge.kind)):
        here, there = (edge.child, edge.parent) if up else (edge.parent, edge.child)
        found[here][there].append(edge)
    return found


def _adapter_line(id: str, joined: Sequence[Edge], depth: int, facts: Facts) -> Line:
    known = facts.adapters.get(id) or Line(depth=0, kind="adapter", id=id, name="", relations=(), here=False)
    weights = [edge.weight for edge in joined if edge.weight is not None]
    return msgspec.structs.replace(
        known,
        depth=depth,
        relations=tuple(edge.kind for edge in joined),
        weight=sum(weights) if weights else None,
    )


# ---- from the index -------------------------------------------------------------------------------------------------


def _walk(index: Index, id: str, here: str, there: str) -> tuple[list[Edge], bool]:
    """Every edge that is reached from an adapter, and whether a limit cut some off."""
    sql = (
        "SELECT e.child, e.parent, e.kind, e.weight FROM edge e LEFT JOIN adapter a ON a.digest = e.child"
        f" WHERE e.{here} IN (SELECT unnest(?::VARCHAR[]))"
        " ORDER BY a.state = 'admitted' DESC, e.weight DESC NULLS LAST, e.child, e.parent LIMIT ?"
    )
    edges: list[Edge] = []
    seen, frontier = {id}, [id]
    for _ in range(MAX_DEPTH):
        if not frontier:
            return edges, False
        found = [
            Edge(child=child, parent=parent, kind=kind, weight=weight)
            for child, parent, kind, weight in index.read(sql, (frontier, MAX_EDGES))
        ]
        edges += found
        reached = {getattr(edge, there) for edge in found}
        frontier = sorted(reached - seen)
        seen |= reached
        if len(found) == MAX_EDGES or len(edges) > MAX_EDGES:
            return edges, True
    return edges, bool(frontier)


def _adapters(index: Index, ids: Iterable[str], trust: Callable[[str], str]) -> dict[str, Line]:
    sql = (
        "SELECT a.digest, a.name, a.author, a.state, a.reason FROM unnest(?::VARCHAR[]) u(d)"
        " JOIN adapter a ON a.digest = u.d"
    )
    return {
        id: Line(
            depth=0,
            kind="adapter",
            id=id,
            name=name,
            relations=(),
            author=author,
            trust=trust(author),
            state=state,
            reason=reason,
        )
        for id, name, author, state, reason in index.read(sql, (sorted(ids),))
    }


def _runs(index: Index, ids: Iterable[str]) -> dict[str, list[Line]]:
    """By adapter that was trained here: its run, and under it the data set."""
    sql = (
        "SELECT r.adapter, r.job, r.dataset, d.name FROM unnest(?::VARCHAR[]) u(d) JOIN run r ON r.adapter = u.d"
        " LEFT JOIN dataset d ON d.id = r.dataset"
    )
    return {
        adapter: [
            Line(depth=1, kind="run", id=job, name="", relations=("trained_in",)),
            Line(depth=2, kind="dataset", id=dataset, name=name or "", relations=("data",), here=name is not None),
        ]
        for adapter, job, dataset, name in index.read(sql, (sorted(ids),))
    }


def _deployments(index: Index, ids: Iterable[str]) -> dict[str, list[Line]]:
    """By adapter: what it is deployed as, and what fell back from it to the base."""
    sql = (
        "SELECT u.d, p.name, p.target, p.state FROM unnest(?::VARCHAR[]) u(d)"
        " JOIN deployment p ON p.adapter = u.d OR p.was = u.d WHERE p.state <> 'removed' ORDER BY p.name"
    )
    found = defaultdict(list)
    for adapter, name, target, state in index.read(sql, (sorted(ids),)):
        found[adapter].append(
            Line(depth=1, kind="deployment", id=name, name=target, relations=("deployed",), state=state)
        )
    return found
