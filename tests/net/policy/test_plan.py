"""Who fetches what, on a simulated clock: peers of different speeds, slow ones, dead ones."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.net.policy.plan import AHEAD_MAX, ASK_MAX, SLOW_AFTER_S, Plan, Shape, Span

KIB, MIB = 1 << 10, 1 << 20
ADAPTER = (Shape(700, 65_536), Shape(40 * MIB + 7, 262_144))


@dataclass
class Run:
    """Peers bring at steady speeds (bytes a second) after `delay` seconds; what is done is told step by step."""

    plan: Plan[str]
    speeds: dict[str, float]
    delay: float = 0.0
    asked: list[tuple[str, Span]] = field(default_factory=list)
    brought: dict[str, int] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def until_done(self, patience_s: float = 3600.0) -> float:
        """Seconds until everything is here."""
        order = itertools.count()
        ready = dict.fromkeys(self.speeds, 0.0)
        events: list[tuple[float, int, str, Span | None, int]] = [(0.0, next(order), peer, None, 0) for peer in ready]
        heapq.heapify(events)
        while self.plan.left:
            now, _, peer, span, chunk = heapq.heappop(events)
            assert now < patience_s, f"{self.plan.left} bytes are left after {now:.0f} s"
            if peer in self.dropped:
                continue
            if span is not None:
                piece = Span(span.file, chunk, 1)
                self.plan.heard(peer, self.plan.bytes_of(piece), now)
                if self.plan.came(peer, span.file, chunk):
                    self.brought[peer] = self.brought.get(peer, 0) + self.plan.bytes_of(piece)
                if chunk == span.end - 1:
                    self.plan.finished(peer, span, now)
            elif self.plan.is_too_slow(peer, now):
                self.plan.lost(peer)
                self.dropped.add(peer)
                continue
            else:
                heapq.heappush(events, (now + 0.1, next(order), peer, None, 0))
            while (found := self.plan.take(peer, now)) is not None:
                self.asked.append((peer, found))
                at = max(ready[peer], now + self.delay)
                for each in range(found.first, found.end):
                    at += self.plan.bytes_of(Span(found.file, each, 1)) / self.speeds[peer]
                    heapq.heappush(events, (at, next(order), peer, found, each))
                ready[peer] = at
        return now


def total(shapes: tuple[Shape, ...] = ADAPTER) -> int:
    return sum(shape.size for shape in shapes)


def test_one_peer_brings_every_byte_once() -> None:
    run = Run(Plan(ADAPTER), {"a": 10e6})
    assert run.until_done() == pytest.approx(total() / 10e6, rel=0.02)
    assert run.brought == {"a": total()}
    assert run.plan.twice == 0
    assert all(run.plan.bytes_of(span) <= ASK_MAX for _, span in run.asked)


def test_four_peers_take_a_quarter_of_the_time() -> None:
    run = Run(Plan(ADAPTER), dict.fromkeys("abcd", 2.5e6))
    assert run.until_done() <= 1.1 * total() / 10e6
    assert run.plan.twice <= 4 * ASK_MAX


def test_a_slow_peer_holds_nobody_up() -> None:
    """Without work stealing the slow one's first question alone takes 52 s."""
    run = Run(Plan(ADAPTER), {"fast": 10e6, "slow": 10e3})
    assert run.until_done() <= 1.3 * total() / 10e6
    assert run.brought["fast"] >= 0.95 * total()


def test_a_dead_peer_holds_nobody_up() -> None:
    run = Run(Plan(ADAPTER), {"fast": 10e6, "dead": 1e-9})
    assert run.until_done() <= 1.3 * total() / 10e6


def test_a_slow_peer_is_told_and_dropped_when_a_faster_one_is_there() -> None:
    run = Run(Plan((Shape(400 * MIB, 262_144),)), {"fast": 8e6, "slow": 20e3})
    run.until_done()
    assert run.dropped == {"slow"}


def test_a_slow_peer_that_is_alone_is_kept() -> None:
    run = Run(Plan((Shape(MIB, 65_536),)), {"slow": 10e3})
    assert run.until_done() > 3 * SLOW_AFTER_S
    assert run.dropped == set()


def test_one_that_drips_is_dropped_also_when_it_is_alone() -> None:
    plan: Plan[str] = Plan((Shape(MIB, 65_536),))
    plan.take("drip", 0.0)
    for second in range(100):
        plan.heard("drip", 1, float(second))
    assert plan.is_too_slow("drip", 100.0)


def test_a_long_line_is_kept_full() -> None:
    """300 ms of delay and 10 MB/s: what is under way grows until the delay costs little."""
    run = Run(Plan((Shape(100 * MIB, 262_144),)), {"far": 10e6}, delay=0.3)
    assert run.until_done() <= 1.25 * 100 * MIB / 10e6


def test_a_small_file_is_not_asked_for_twice_at_once() -> None:
    plan: Plan[str] = Plan((Shape(60_000, 65_536),))
    assert plan.take("a", 0.0) == Span(0, 0, 1)
    assert plan.take("b", 0.0) is None
    assert plan.take("b", 0.3) is None
    assert plan.take("b", 3.0) == Span(0, 0, 1), "but when the first one is silent"
    assert plan.take("c", 60.0) is None, "and never three times"


def test_what_is_under_way_has_a_bound() -> None:
    plan: Plan[str] = Plan((Shape(100 * MIB, 65_536),))
    plan.take("a", 0.0)
    plan.heard("a", 1 << 40, 1.0)
    held = 0
    while (span := plan.take("a", 1.0)) is not None:
        held += plan.bytes_of(span)
    assert held <= AHEAD_MAX


def test_what_a_lost_peer_had_is_taken_by_others() -> None:
    plan: Plan[str] = Plan((Shape(4 * 65_536, 65_536),))
    span = plan.take("a", 0.0)
    assert span == Span(0, 0, 4)
    assert plan.came("a", 0, 0)
    plan.lost("a")
    assert plan.take("b", 0.0) == Span(0, 1, 3)
    assert plan.left == 3 * 65_536


def test_an_answer_that_ends_early_frees_the_rest() -> None:
    plan: Plan[str] = Plan((Shape(4 * 65_536, 65_536),))
    span = plan.take("a", 0.0)
    assert span is not None
    plan.came("a", 0, 2)
    plan.finished("a", span, 1.0)
    assert plan.take("a", 1.0) == Span(0, 0, 2)
    assert plan.take("a", 1.0) == Span(0, 3, 1)


def test_what_is_here_is_not_asked_for() -> None:
    run = Run(Plan(ADAPTER, here=[Span(0, 0, 1), Span(1, 3, 100)]), {"a": 10e6})
    run.until_done()
    assert sum(span.count for _, span in run.asked) == 161 - 100
    assert not any(span.file == 1 and span.first < 103 and span.end > 3 for _, span in run.asked)


def test_a_chunk_larger_than_a_question_is_asked_whole() -> None:
    plan: Plan[str] = Plan((Shape(9 * MIB, 4 * MIB),))
    assert plan.take("a", 0.0) == Span(0, 0, 1)


def test_an_empty_file_needs_nobody() -> None:
    plan: Plan[str] = Plan((Shape(0, 65_536),))
    assert plan.left == 0
    assert plan.take("a", 0.0) is None


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.lists(st.integers(20, 5_000), min_size=1, max_size=5),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_everything_comes_whoever_is_slow(sizes: list[int], speeds: list[int], data: st.DataObject) -> None:
    shapes = tuple(Shape(size * 65_536 + (size % 3), 65_536) for size in sizes)
    here = [
        Span(number, first, 1)
        for number, shape in enumerate(shapes)
        for first in data.draw(st.sets(st.integers(0, max(0, shape.chunks - 1)), max_size=5))
        if shape.chunks
    ]
    plan: Plan[str] = Plan(shapes, here)
    wanted = plan.left
    run = Run(plan, {f"p{number}": speed * 1e3 for number, speed in enumerate(speeds)})
    if wanted:
        run.until_done(1e6)
    assert plan.left == 0
    assert sum(run.brought.values()) == wanted
    assert not any(
        plan.is_missing(number, chunk) for number, shape in enumerate(shapes) for chunk in range(shape.chunks)
    )
