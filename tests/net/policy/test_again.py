"""When what could not be fetched is tried again."""

from __future__ import annotations

from orchd.net.policy import again
from orchd.net.policy.again import PAUSE_MAX_S, PAUSE_S, Again


def test_the_pause_doubles_up_to_its_longest() -> None:
    waiting: Again[str] = Again()
    now, pauses = 0.0, list[float]()
    for _ in range(12):
        waiting.failed("a", now)
        pauses.append(waiting.next_at() - now)
        now = waiting.next_at()
        assert waiting.take_due(now - 0.1) == []
        assert waiting.take_due(now) == ["a"]
    assert pauses[:3] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]
    assert pauses[-1] == PAUSE_MAX_S
    waiting.forget("a")
    assert waiting.next_at() == float("inf")
    waiting.failed("a", now)
    assert waiting.next_at() - now == PAUSE_S


def test_a_newcomer_may_have_it() -> None:
    waiting: Again[str] = Again()
    for _ in range(8):
        waiting.failed("a", 1000.0)
    waiting.somebody_came(1001.0)
    assert waiting.next_at() == 1000.0 + PAUSE_S, "not before the shortest pause"
    waiting.failed("a", 2000.0)
    waiting.somebody_came(2000.0 + PAUSE_S + 5)
    assert waiting.take_due(2000.0 + PAUSE_S + 5) == ["a"]


def test_memory_is_bounded() -> None:
    waiting: Again[int] = Again()
    for number in range(again.WAITING + 10):
        waiting.failed(number, 0.0)
    assert len(waiting) == again.WAITING
    assert 0 not in waiting.take_due(PAUSE_S)
