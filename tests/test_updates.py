"""What is wanted and could not be had is tried again."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from orchd import updates
from orchd.errors import NoProvider, OrchdError, Refused
from orchd.net.policy.again import PAUSE_S
from orchd.updates import Updates


class Heard:
    """A subscription to events that are put in by hand."""

    def __init__(self) -> None:
        self.put, self._take = trio.open_memory_channel[Any](10)

    def __aiter__(self) -> Any:
        return self._take

    def close(self) -> None:
        pass


def made(monkeypatch: pytest.MonkeyPatch, failures: list[OrchdError]) -> tuple[Updates, Heard, list[float]]:
    """Updates to which everything is wanted; each try fails as the next of `failures` says, then all go well."""
    heard, tries = Heard(), list[float]()
    found = Updates(SimpleNamespace(events=SimpleNamespace(subscribe=lambda kinds: heard)))  # type: ignore[arg-type]

    async def bring(adapter: str) -> None:
        tries.append(trio.current_time())
        if failures:
            raise failures.pop(0)

    async def nothing(*_: Any) -> Any:
        return None

    monkeypatch.setattr(updates, "_wanted", lambda view, author: (True, False))
    monkeypatch.setattr(found, "_bring", bring)
    monkeypatch.setattr(found, "_view", nothing)
    monkeypatch.setattr(found, "_look_back", nothing)
    monkeypatch.setattr(found._gate, "finish", nothing)
    return found, heard, tries


def announced() -> Any:
    return SimpleNamespace(kind="adapter.announced", data={"id": "adapter", "author": "key"})


async def test_an_adapter_whose_author_is_away_is_tried_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, heard, tries = made(monkeypatch, [NoProvider("nobody"), NoProvider("nobody")])
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        heard.put.send_nowait(announced())
        await trio.sleep(3600.0)  # of a clock that jumps
        nursery.cancel_scope.cancel()
    assert [after - before for before, after in pairwise(tries)] == [PAUSE_S, 2 * PAUSE_S]


async def test_what_was_refused_is_not_tried_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, heard, tries = made(monkeypatch, [Refused("the door")])
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        heard.put.send_nowait(announced())
        await trio.sleep(36_000.0)
        nursery.cancel_scope.cancel()
    assert len(tries) == 1


async def test_somebody_who_comes_may_have_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, heard, tries = made(monkeypatch, [NoProvider("nobody")] * 8)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        heard.put.send_nowait(announced())
        await trio.sleep(2000.0)
        count, now = len(tries), trio.current_time()
        heard.put.send_nowait(SimpleNamespace(kind="net.peer.connected", data={}))
        await trio.sleep(updates.GREETED_S + 1.0)
        nursery.cancel_scope.cancel()
    assert tries[count:] == [now + updates.GREETED_S]
