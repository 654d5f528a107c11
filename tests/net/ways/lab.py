"""Networks to try ways in: namespaces joined by cables, with routers between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.net.support import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
WHY_NOT = "not run: network namespaces need root and a kernel that has them (`ip netns add NAME` must work)"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Lab:
    """Names are short and of this lab alone."""

    prefix: str
    folder: Path
    rooms: set[str] = field(default_factory=set)

    def room(self, name: str) -> None:
        """A namespace."""
        ip("netns", "add", self.prefix + name)
        self.rooms.add(name)
        self.inside(name, "ip", "link", "set", "lo", "up")

    def forward(self, room: str) -> None:
        """Pass packets on."""
        self.inside(room, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def inside(self, room: str, *command: str) -> str:
        done = subprocess.run(self.within(room, *command), check=True, capture_output=True, text=True)
        return done.stdout

    def within(self, room: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.prefix + room, *command]

    def cable(self, room: str, name: str, other: str, other_name: str) -> None:
        """Joins two rooms. Packets go one by one and with whole sums, as a router that is no kernel needs them."""
        ip("link", "add", name, "netns", self.prefix + room, "type", "veth",
           "peer", "name", other_name, "netns", self.prefix + other)  # fmt: skip
        for place, end in ((room, name), (other, other_name)):
            self.inside(place, "ip", "link", "set", end, "gso_max_segs", "1")
            self.inside(place, "ip", "link", "set", end, "up")

    def address(self, room: str, name: str, address: str) -> None:
        self.inside(room, "ip", "addr", "add", f"{address}/24", "dev", name)

    def way_out(self, room: str, gateway: str) -> None:
        self.inside(room, "ip", "route", "add", "default", "via", gateway)

    def neighbour(self, room: str, name: str, address: str, mac: str) -> None:
        """Who does not answer when asked for."""
        self.inside(room, "ip", "neigh", "replace", address, "lladdr", mac, "dev", name, "nud", "permanent")

    def mac(self, room: str, name: str) -> str:
        return self.inside(room, "cat", f"/sys/class/net/{name}/address").strip()

    @asynccontextmanager
    async def process(self, room: str, module: str, *arguments: str) -> AsyncIterator[trio.Process]:
        command = self.within(room, sys.executable, "-m", module, *arguments)
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    @asynccontextmanager
    async def node(self, room: str, *bootstrap: str) -> AsyncIterator[Node]:
        given = {"bootstrap": bootstrap, "listen": ["/ip4/0.0.0.0/tcp/4001"]}
        folder = self.folder / room
        async with self.process(room, "tests.net.ways.node", room, str(folder), json.dumps(given)) as process:
            node = Node(process)
            node.id = await node.read()
            yield node


@dataclass
class Node:
    """One that was started."""

    process: trio.Process
    id: str = ""
    _rest: bytes = b""

    async def read(self) -> Any:
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE_S):
            while b"\n" not in self._rest:
                data = await self.process.stdout.receive_some(1 << 16)
                assert data, "the node has ended"
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    async def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(command.encode() + b"\n")
        answer = await self.read()
        assert "is" in answer, (command, answer)
        return answer["is"]

    async def until(self, command: str, is_right: Callable[[Any], Any]) -> Any:
        """The answer, as soon as it is right."""
        deadline = trio.current_time() + PATIENCE_S
        while not is_right(answer := await self.ask(command)):
            assert trio.current_time() < deadline, (command, answer)
            await trio.sleep(0.1)
        return answer


@contextmanager
def a_lab(folder: Path) -> Iterator[Lab]:
    """Skips the test where there can be none."""
    lab = Lab(f"orchd{os.getpid()}", folder)
    try:
        try:
            lab.room("world")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"{WHY_NOT}: {getattr(error, 'stderr', None) or error}")
        yield lab
    finally:
        for room in lab.rooms:
            ip("netns", "del", lab.prefix + room)


@asynccontextmanager
async def behind_a_router(lab: Lab, room: str, number: int) -> AsyncIterator[None]:
    """A namespace at 10.71.NUMBER.2, behind a router that is 11.71.NUMBER.2 outside, where the world is …1."""
    router = f"router{number}"
    outside, inside = f"11.71.{number}", f"10.71.{number}"
    lab.room(room)
    lab.room(router)
    lab.cable("world", f"to-{room}", router, "outside")
    lab.cable(router, "inside", room, "uplink")
    lab.address("world", f"to-{room}", f"{outside}.1")
    lab.address(room, "uplink", f"{inside}.2")
    lab.way_out(room, f"{inside}.1")
    lab.neighbour("world", f"to-{room}", f"{outside}.2", lab.mac(router, "outside"))
    lab.neighbour(room, "uplink", f"{inside}.1", lab.mac(router, "inside"))
    beyond = lab.mac("world", f"to-{room}"), lab.mac(room, "uplink")
    module = "tests.net.ways.router"
    async with lab.process(router, module, "outside", "inside", f"{outside}.2", *beyond) as process:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE_S):
            assert b"routing" in await process.stdout.receive_some(100)
        yield
