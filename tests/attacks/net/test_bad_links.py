"""Links that lose and delay, that stall, and that die without a word: two nodes in namespaces of their own.

`ORCHD_STALL_S=60` stalls for a minute; `make test` for a few seconds. How long a silent link may stay (ten seconds in a
transfer, three minutes idle) are figures of `pulse.py`, which the idle part makes smaller here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.attacks.net.wire import FAR, NEAR, Wire, wire
from tests.net.support import PATIENCE_S, until

STALL_S = float(os.environ.get("ORCHD_STALL_S", "3"))
ROOT = Path(__file__).resolve().parents[3]


class End:
    """A node at one end, as a process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.said: list[dict[str, Any]] = []
        self._changed = trio.Event()
        self.address = ""

    async def listen(self, *, task_status: Any) -> None:
        """Until it ends. Started when the node is up."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.said.append(json.loads(line))
                if "up" in self.said[-1]:
                    self.address = self.said[-1]["up"]
                    task_status.started()
            self._changed.set()
            self._changed = trio.Event()

    async def do(self, *words: Any) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(words).encode() + b"\n")

    async def hear(self, since: int = 0, **wanted: Any) -> dict[str, Any]:
        """The first thing that it says (after so many others) with these values."""
        with trio.fail_after(PATIENCE_S + 2 * STALL_S):
            while True:
                for said in self.said[since:]:
                    if all(said.get(key) == value for key, value in wanted.items()):
                        return said
                await self._changed.wait()

    async def ask(self, *words: Any) -> Any:
        """Do, and what it is. Raises `AssertionError` when it is refused."""
        since = len(self.said)
        await self.do(*words)
        done = await self.hear(since, did=words[0])
        assert "error" not in done, done
        return done["is"]


@pytest.fixture
def laid() -> Iterator[tuple[Wire, str, str]]:
    try:
        with wire() as laid:
            yield laid
    except OSError as error:
        pytest.skip(f"not run: two namespaces and a wire want root and `ip` ({error})")


@asynccontextmanager
async def ends(laid: tuple[Wire, str, str], folder: Path, **settings: Any) -> AsyncIterator[tuple[End, End, Wire]]:
    """The near node, the far one and the wire; they are connected. `settings` are the far one's."""
    link, near, far = laid
    made: list[End] = []
    async with trio.open_nursery() as nursery:
        for name, space, address, own in (("near", near, NEAR, {}), ("far", far, FAR, settings)):
            words = [sys.executable, "-m", "tests.attacks.net.end", name, str(folder / name), address, json.dumps(own)]
            process = await nursery.start(_run, ["ip", "netns", "exec", space, *words])
            made.append(End(process))
            with trio.fail_after(PATIENCE_S):
                await nursery.start(made[-1].listen)
        await made[0].ask("connect", made[1].address)
        yield made[0], made[1], link
        link.is_cut = link.is_held = False
        for end in made:
            status = await end.ask("status")
            assert (status["restarts"], status["bans"]) == (0, 0)
        nursery.cancel_scope.cancel()


async def _run(words: list[str], *, task_status: Any) -> None:
    await trio.run_process(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        check=False,
        cwd=ROOT,
        task_status=task_status,
    )


async def publish(far: End, near: End, seed: int, rank: int) -> str:
    id: str = await far.ask("publish", seed, rank)
    await near.hear(event="adapter.announced", id=id)
    with trio.fail_after(PATIENCE_S):
        while not (await near.ask("status"))["members"]:  # gossip may come before the greeting
            pass
    return id


async def test_a_link_that_loses_and_delays(laid: tuple[Wire, str, str], tmp_path: Path) -> None:
    async with ends(laid, tmp_path) as (near, far, link):
        link.loss, link.delay_s = 0.01, 0.15
        for seed, rank in ((1, 64), (2, 768)):  # over the stream, and in bulk
            assert await near.ask("fetch", await publish(far, near, seed, rank)) == "admitted"
        assert link.lost
        assert not [said for said in near.said if said.get("event") == "net.peer.lost"]


async def test_a_link_that_stalls(laid: tuple[Wire, str, str], tmp_path: Path) -> None:
    """Between transfers it is waited for. In one the fetch may end, and is then done again, and goes on."""
    async with ends(laid, tmp_path) as (near, far, link):
        link.is_held = True
        id = await far.ask("publish", 1, 512)
        await trio.sleep(STALL_S)
        link.is_held = False
        await near.hear(event="adapter.announced", id=id)
        link.delay_s = 0.05
        since = len(near.said)
        await near.do("fetch", id)
        await near.hear(since, event="adapter.fetching")
        link.is_held = True
        await trio.sleep(STALL_S)
        link.is_held = False
        if "error" in await near.hear(since, did="fetch"):
            await near.ask("connect", far.address)
            assert await near.ask("fetch", id) == "admitted"


@pytest.mark.parametrize("rank", [128, 1024], ids=["stream", "bulk"])
async def test_a_link_that_dies_in_a_transfer(laid: tuple[Wire, str, str], tmp_path: Path, rank: int) -> None:
    """The peer is given up, and had again when the link is back."""
    async with ends(laid, tmp_path, upload_limit=200_000) as (near, far, link):
        id = await publish(far, near, 1, rank)
        since = len(near.said)
        await near.do("fetch", id)
        await near.hear(since, event="adapter.fetching")
        wanted = link.carried + 60
        await until(lambda: link.carried >= wanted, "some of it has come")
        begun = trio.current_time()
        link.is_cut = True
        assert "error" in await near.hear(since, did="fetch")
        print(f"given up after {trio.current_time() - begun:.1f} s")
        link.is_cut = False
        await near.ask("connect", far.address)
        assert await near.ask("fetch", id) == "admitted"


async def test_a_link_that_dies_idle(laid: tuple[Wire, str, str], tmp_path: Path) -> None:
    async with ends(laid, tmp_path) as (near, far, link):
        for end in (near, far):
            await end.ask("pulse", "IDLE_QUIET_S", 1.0)
            await end.ask("pulse", "IDLE_ANSWER_S", 1.0)
        link.is_cut = True
        for end in (near, far):
            await end.hear(event="net.peer.lost")
            assert (await end.ask("status"))["peers"] == 0
        link.is_cut = False
        await near.ask("connect", far.address)
        assert await near.ask("fetch", await publish(far, near, 1, 4)) == "admitted"
