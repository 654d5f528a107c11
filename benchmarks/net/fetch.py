"""Rows `fetch-256MB` and `fetch-tls`: fetching from one node over loopback, against libtorrent and plain TLS.

Everybody connects, writes to the disk and hashes what comes, and nobody syncs. What admission does after that (a copy,
synced, and the checks of the content) has a figure of its own. Runs are paired: each of orchd's beside one of each
peer's. On a busy machine single runs differ by a factor of two: believe the paired figures of several runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio

from benchmarks.net.giver import network_at
from benchmarks.registry import large
from benchmarks.report import Row, lower_is_better
from orchd.net import Transferred
from orchd.records import Manifest, verify

SIZE = 256 << 20
RUNS = 5
PYTHON = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
TORRENT = Path(__file__).resolve().parent / "torrent.py"


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


def take(place: Path, adapter: str, addresses: Sequence[str], **settings: Any) -> tuple[float, float]:
    """Seconds from connecting until everything has come, and for admission after that."""
    times: list[float] = []

    def told(far: Transferred) -> None:
        if far.done == far.total:
            times.append(time.perf_counter())

    async def fetch() -> None:
        with network_at(place, 7, None, **settings) as network:
            async with trio.open_nursery() as nursery:
                await nursery.start(network.run)
                times.append(time.perf_counter())
                peers = [await network.connect(address) for address in addresses]
                await network.fetch(adapter, peers=peers, progress=told)
                times.append(time.perf_counter())
                nursery.cancel_scope.cancel()

    trio.run(fetch)
    shutil.rmtree(place)
    return times[1] - times[0], times[-1] - times[1]


def by_torrent(file: Path, place: Path, port: str) -> float:
    place.mkdir()
    with process(PYTHON, TORRENT, "leech", file, place, port) as line:
        seconds = float(line)
    shutil.rmtree(place)
    return seconds


def by_tls(place: Path, port: str) -> float:
    """Another process sends (`tls.py`), this one reads, hashes and writes: the standard library alone."""
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
    seconds = time.perf_counter() - begun
    place.unlink()
    return seconds


def rows() -> list[Row]:
    large.SIZE = SIZE
    ours: list[float] = []
    admitting: list[float] = []
    torrent: list[float] = []
    tls: list[float] = []
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd()))
        place = Path(name)
        adapter = large.write_adapter(place / "adapter", "F32")
        file = adapter / "adapter_model.safetensors"
        id, address = stack.enter_context(giver(place / "giver", adapter))
        sender = stack.enter_context(process(sys.executable, "-m", "benchmarks.net.tls", file)).strip()
        seed = ""
        if PYTHON.exists():
            seed = stack.enter_context(process(PYTHON, TORRENT, "seed", file)).strip()
        for number in range(RUNS):
            if seed:
                torrent.append(by_torrent(file, place / "leech", seed))
            came, admitted = take(place / f"taker{number}", id, [address])
            ours.append(came)
            admitting.append(admitted)
            tls.append(by_tls(place / "tls", sender))
    found = [_row("fetch-tls", ours, "TLS + SHA-256", tls, 0.6)]
    if not seed:
        print(f"fetch-256MB not run: put benchmarks/net/requirements.txt into {PYTHON.parent.parent}", file=sys.stderr)
        return found
    figures = {"admission": statistics.median(admitting), "runs": float(RUNS)}
    return [_row("fetch-256MB", ours, "libtorrent", torrent, 1.0, figures), *found]


def _row(
    work: str, ours: list[float], name: str, theirs: list[float], share: float, figures: dict[str, float] | None = None
) -> Row:
    """`share`: of the peer's speed, at least."""
    peer = statistics.median(theirs)
    paired = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    figures = {"paired": paired} | (figures or {})
    goal = (f"≥ {share} × peer's speed", peer / share)
    return lower_is_better(work, "s", statistics.median(ours), (name, peer), goal, **figures)
