"""Rows `fetch-256MB` and `fetch-tls`: fetching from one node over loopback, against libtorrent and plain TLS.

Everybody connects, writes to the disk, hashes what comes, and syncs it; orchd moves it into its registry besides and
writes down that it is there. What admission's checks of the content take has a figure of its own, `checks`, and is not
in orchd's. Runs are in turn, and the ratio is the median of the ratios of neighbours: on a busy machine single runs
differ by a factor of two. `fetch-10MB` and `fetch-100MB` are the same with smaller adapters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio

from benchmarks.net.giver import network_at
from benchmarks.registry import large
from benchmarks.report import Row, lower_is_better
from orchd.net import Network, Transferred
from orchd.records import Manifest, verify
from orchd.registry import admission
from orchd.registry.admission import CONTENT_CHECKS, Candidate, Check

#: Megabytes of numbers, and how many runs of each.
SIZES = {10: 5, 100: 5, 256: 7}
#: The one that has a goal.
GOAL = 256
FOLDER = Path(__file__).resolve().parent
PYTHON, TORRENT = FOLDER / ".venv" / "bin" / "python", FOLDER / "torrent.py"


@dataclass(frozen=True)
class Took:
    """Seconds: from connecting until the adapter is in the registry, without the checks of its content, and for those;
    until its last byte had come; and of the first for connecting alone."""

    seconds: float
    checks: float
    came: float
    connecting: float


@contextmanager
def process(*command: object) -> Iterator[str]:
    """The first line that a process prints; it is told to leave at the end."""
    child = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child.stdout.readline()
    finally:
        child.stdin.close()
        child.wait(30)
        child.stdout.close()


@contextmanager
def giver(place: Path, adapter: Path, **settings: Any) -> Iterator[tuple[str, str]]:
    """The id of the adapter, and an address of a node that gives it."""
    with process(sys.executable, "-m", "benchmarks.net.giver", place, adapter, json.dumps(settings)) as line:
        envelope, address = line.split()
        yield verify(bytes.fromhex(envelope), Manifest).id, address


@contextmanager
def checks_timed() -> Iterator[list[float]]:
    """The seconds that each look at an adapter's content takes."""
    times = list[float]()

    def judge(candidate: Candidate, checks: Sequence[Check]) -> list[str]:
        begun = time.perf_counter()
        reasons = admission.judge(candidate, checks)
        if set(CONTENT_CHECKS) <= set(checks):
            times.append(time.perf_counter() - begun)
        return reasons

    with patch("orchd.registry.registry.judge", judge):
        yield times


def take(place: Path, adapter: str, addresses: Sequence[str], **settings: Any) -> Took:
    """Fetch it into a new registry, which is thrown away."""
    came: list[float] = []

    def told(far: Transferred) -> None:
        if far.done == far.total:
            came.append(time.perf_counter())

    async def fetch() -> tuple[float, float, float]:
        with network_at(place, 7, None, **settings) as network:
            async with trio.open_nursery() as nursery:
                await nursery.start(network.run)
                begun = time.perf_counter()
                peers = await connect_all(network, addresses)
                connected = time.perf_counter()
                await network.fetch(adapter, peers=peers, progress=told)
                ended = time.perf_counter()
                nursery.cancel_scope.cancel()
        return begun, connected, ended

    with checks_timed() as checks:
        begun, connected, ended = trio.run(fetch)
    shutil.rmtree(place)
    return Took(ended - begun - sum(checks), sum(checks), came[0] - begun, connected - begun)


async def connect_all(network: Network, addresses: Sequence[str]) -> list[str]:
    """At once; the ids of the peers."""
    peers: list[str] = []

    async def connect(address: str) -> None:
        peers.append(await network.connect(address))

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(connect, address)
    return peers


def by_torrent(file: Path, place: Path, port: str) -> float:
    place.mkdir()
    with process(PYTHON, TORRENT, "leech", file, place, port) as line:
        seconds = float(line)
    shutil.rmtree(place)
    return seconds


def by_tls(place: Path, port: str) -> float:
    """Another process sends (`tls.py`), this one reads, hashes, writes and syncs: the standard library alone."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    digest, view = hashlib.sha256(), memoryview(bytearray(262_144))
    begun = time.perf_counter()
    with (
        client.wrap_socket(socket.create_connection(("127.0.0.1", int(port)))) as secured,
        place.open("wb", buffering=0) as target,
    ):
        filled = 0
        while count := secured.recv_into(view[filled:]):
            filled += count
            if filled == len(view):  # the file is a multiple of it, but for a header that nobody misses
                digest.update(view)
                target.write(view)
                filled = 0
        os.fsync(target.fileno())
    seconds = time.perf_counter() - begun
    place.unlink()
    return seconds


def has_torrent() -> bool:
    """Whether libtorrent is there: it is put into a folder of its own at the first run."""
    if PYTHON.exists():
        return True
    venv.create(FOLDER / ".venv", with_pip=True)
    put = [PYTHON, "-m", "pip", "install", "--quiet", "--requirement", FOLDER / "requirements.txt"]
    if subprocess.run([str(word) for word in put], check=False, stdout=sys.stderr).returncode == 0:
        return True
    shutil.rmtree(FOLDER / ".venv")
    print("fetch-*MB not run: pip could not install benchmarks/net/requirements.txt (libtorrent)", file=sys.stderr)
    return False


def rows() -> list[Row]:
    return [row for megabytes, runs in SIZES.items() for row in _rows_of(megabytes, runs)]


def _rows_of(megabytes: int, runs: int) -> list[Row]:
    ours, torrent, tls = list[Took](), list[float](), list[float]()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd())))
        adapter = large.write_adapter(place / "adapter", "F32", megabytes << 20)
        file = adapter / "adapter_model.safetensors"
        id, address = stack.enter_context(giver(place / "giver", adapter))
        sender = stack.enter_context(process(sys.executable, "-m", "benchmarks.net.tls", file)).strip()
        seed = stack.enter_context(process(PYTHON, TORRENT, "seed", file)).strip() if has_torrent() else ""
        for number in range(runs):
            ours.append(take(place / f"taker{number}", id, [address]))
            if seed:
                torrent.append(by_torrent(file, place / "leech", seed))
            tls.append(by_tls(place / "tls", sender))
    figures = {
        "checks": statistics.median(took.checks for took in ours),
        "came": statistics.median(took.came for took in ours),
        "runs": float(runs),
    }
    seconds, share = [took.seconds for took in ours], 1.0 if megabytes == GOAL else None
    found = [_row(f"fetch-{megabytes}MB", seconds, "libtorrent", torrent, share, figures)] if seed else []
    return [*found, _row("fetch-tls", seconds, "TLS + SHA-256", tls, 0.6, {})] if megabytes == GOAL else found


def _row(
    work: str, ours: list[float], name: str, theirs: list[float], share: float | None, figures: dict[str, float]
) -> Row:
    """The ratio is the median of neighbours' ratios. `share`: of the peer's speed, at least; None: only printed."""
    paired = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    row = lower_is_better(
        work, "s", statistics.median(ours), (name, statistics.median(theirs)), ("printed only", float("inf")), **figures
    )
    goal = f"≥ {share} × peer's speed" if share else row.goal
    return replace(row, ratio=round(paired, 3), goal=goal, met=share is None or paired >= share)
