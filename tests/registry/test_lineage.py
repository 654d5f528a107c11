"""The tree of an adapter, whatever its edges claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchd.registry.lineage import Edge, Facts, Line, tree

NOTHING = Facts(adapters={}, hanging={})


def leaf(child: str, parent: str, weight: float = 0.5) -> Edge:
    return Edge(child=child, parent=parent, kind="leaf", weight=weight)


def adapter(id: str) -> Line:
    return Line(depth=0, kind="adapter", id=id, name=f"name of {id}", relations=(), state="admitted")


def shape(lines: list[Line]) -> list[tuple[int, str]]:
    return [(line.depth, line.id) for line in lines]


def test_leaves_stand_by_weight_with_what_hangs_on_them() -> None:
    run = Line(depth=1, kind="run", id="job", name="", relations=("trained_in",))
    data = Line(depth=2, kind="dataset", id="data", name="mine", relations=("data",))
    facts = Facts(adapters={"a": adapter("a")}, hanging={"b": [run, data]})
    lines, cut = tree("avg", [leaf("avg", "a", 0.3), leaf("avg", "b", 0.7)], facts, up=True)
    assert shape(lines) == [(1, "b"), (2, "job"), (3, "data"), (1, "a")]
    assert [line.weight for line in lines] == [0.7, None, None, 0.3]
    assert not cut
    assert [line.here for line in lines] == [False, True, True, True]
    assert lines[3].name == "name of a"


def test_down_goes_to_averages_and_their_deployments() -> None:
    chat = Line(depth=1, kind="deployment", id="chat", name="llama", relations=("deployed",), state="ready")
    facts = Facts(adapters={}, hanging={"avg": [chat]})
    lines, _ = tree("a", [leaf("avg", "a"), Edge(child="b", parent="avg", kind="initial")], facts, up=False)
    assert shape(lines) == [(1, "avg"), (2, "chat"), (2, "b")]


def test_two_relations_to_one_adapter_are_one_line() -> None:
    lines, _ = tree("r", [leaf("r", "p"), Edge(child="r", parent="p", kind="previous")], NOTHING, up=True)
    assert [(line.relations, line.weight) for line in lines] == [(("leaf", "previous"), 0.5)]


def test_what_is_reached_twice_is_opened_once() -> None:
    edges = [leaf("top", "l"), leaf("top", "r", 0.4), leaf("l", "bottom"), leaf("r", "bottom"), leaf("bottom", "x")]
    lines, _ = tree("top", edges, NOTHING, up=True)
    assert shape(lines) == [(1, "l"), (2, "bottom"), (3, "x"), (1, "r"), (2, "bottom")]
    assert [line.again for line in lines] == [False, False, False, False, True]


def test_a_ring_ends() -> None:
    ring = [leaf("a", "b"), leaf("b", "c"), leaf("c", "a"), leaf("a", "a")]
    for up in (True, False):
        lines, cut = tree("a", ring, NOTHING, up=up)
        assert not cut
        assert sum(line.again for line in lines) == 2


def test_a_ladder_of_diamonds_stays_small() -> None:
    """Written out it would have two to the hundredth lines."""
    edges = [leaf(f"{n}", f"{n + 1}{side}") for n in range(100) for side in "lr"]
    edges += [leaf(f"{n + 1}{side}", f"{n + 1}") for n in range(100) for side in "lr"]
    lines, cut = tree("0", edges, NOTHING, up=True)
    assert len(lines) == 400
    assert not cut


def test_too_many_parents_are_cut_and_that_is_said() -> None:
    lines, cut = tree("a", [leaf("a", f"p{n}") for n in range(50)], NOTHING, up=True, limit=20)
    assert (len(lines), cut) == (20, True)
    lines, cut = tree("a", [leaf("a", f"p{n}") for n in range(20)], NOTHING, up=True, limit=20)
    assert (len(lines), cut) == (20, False)


_pool = st.sampled_from("abcdef")


@given(st.lists(st.tuples(_pool, _pool), unique=True), st.booleans())
def test_any_edges_give_a_tree(pairs: list[tuple[str, str]], up: bool) -> None:
    """Every edge that can be reached is a line just once."""
    edges = [leaf(child, parent) for child, parent in pairs]
    lines, cut = tree("a", edges, NOTHING, up=up)
    assert not cut
    depth = 0
    for line in lines:
        assert 1 <= line.depth <= depth + 1
        depth = line.depth
    assert len(lines) == len(_reached(pairs, up))


def _reached(pairs: list[tuple[str, str]], up: bool) -> set[tuple[str, str]]:
    steps = pairs if up else [(parent, child) for child, parent in pairs]
    reached, frontier = set(), {"a"}
    while frontier:
        new = {step for step in steps if step[0] in frontier} - reached
        reached |= new
        frontier = {there for _, there in new}
    return reached
