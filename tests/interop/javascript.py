"""A js-libp2p member (js/main.mjs) as a process: orders in, answers and events out, one JSON text a line."""

from __future__ import annotations

import json
import subprocess
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.interop.fetch import JS, NODE
from tests.net.support import PATIENCE_S


class JavaScriptFailed(Exception):
    """What an order ended with, in the client's own words."""


class JsMember:
    """`peer` is its peer id, `addresses` where it listens."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        self._orders = process.stdin
        self._answers: deque[dict[str, Any]] = deque()
        self._changed = trio.Event()
        self.events: list[dict[str, Any]] = []
        self.peer = ""
        self.addresses: tuple[str, ...] = ()

    async def order(self, do: str, **what: Any) -> Any:
        """What came of it. Raises `JavaScriptFailed`."""
        await self._orders.send_all(json.dumps({"do": do} | what).encode() + b"\n")
        with trio.fail_after(PATIENCE_S):
            while not self._answers:
                await self._changed.wait()
        answer = self._answers.popleft()
        if "failed" in answer:
            raise JavaScriptFailed(f"{do}: {answer['failed']}")
        return answer["done"]

    async def event(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The first event of a kind with these values, when it has come."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                for event in self.events:
                    if event["event"] == kind and all(event.get(key) == value for key, value in wanted.items()):
                        return event
                await self._changed.wait()
        raise AssertionError(f"no {kind} with {wanted} came, but {self.events}")

    async def read(self, lines: trio.abc.ReceiveStream) -> None:
        rest = b""
        async for data in lines:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                self._hear(json.loads(line))
            self._changed.set()
            self._changed = trio.Event()

    def _hear(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.events.append(message)
        else:
            self._answers.append(message)


@asynccontextmanager
async def js_member(relay: str = "") -> AsyncIterator[JsMember]:
    """One that runs inside the block; with the address of a `relay` it can be reached through that alone.

    What went wrong in it without being asked for fails the test at the end.
    """
    process = await trio.lowlevel.open_process(
        [str(NODE), "main.mjs", *([relay] if relay else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=JS
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with trio.open_nursery() as nursery:
            member = JsMember(process)
            nursery.start_soon(member.read, process.stdout)
            started = await member.event("started")
            member.peer, member.addresses = started["peer"], tuple(started["addresses"])
            yield member
            await process.stdin.aclose()  # it ends, and with it what it says
            with trio.fail_after(PATIENCE_S):
                status = await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    trouble = [event["text"] for event in member.events if event["event"] == "trouble"]
    if status or trouble:
        raise JavaScriptFailed(f"it ended with {status}, having told: {trouble}")
