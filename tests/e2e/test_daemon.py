"""The daemon as a process: starting, stopping, and being killed at the worst moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchd.demo.cast import Cast, node_environment
from orchd.demo.node import Node
from orchd.errors import JobFailed, NodeDidNotStart, OrchdError, WorkerLost
from orchd.rpc.client import Client
from tests.e2e.helpers import children, wait_gone

STOP_SECONDS = 10
LONG = 100_000  # training steps: longer than any test


def run_daemon(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "orchd.daemon"],
        env=node_environment(home, settings=settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def train_long(node: Node, source: Path) -> str:
    """A training job that runs: the first steps are done, the end is far."""
    dataset = node.import_dataset(source, name="long")
    with Client(node.socket_path) as client:
        job = str(client.call("train.start", dataset=dataset.id, steps=LONG)["job"])
        events = client.events(after=0, job=job, kinds=("job.progress",), idle=60)
        next(event for event in events if event["data"]["done"] > 0)
    return job


def run_folder(node: Node, job: str) -> Path:
    return node.home / "data" / "runs" / job


def goes_on_after(node: Node, job: str, step: int) -> bool:
    """Waits for the first progress of the job's present life; whether it is of a later step."""
    with Client(node.socket_path) as client:
        since = max(e["seq"] for e in _until_started(client, job))
        events = client.events(after=since, job=job, kinds=("job.progress",), idle=60)
        first = next(e for e in events if e["data"]["figures"]["phase"] == "training")
    return bool(first["data"]["done"] > step)


def _until_started(client: Client, job: str) -> list[dict[str, Any]]:
    """The events of the job up to the start of its present life."""
    state = client.call("job.show", job=job)
    found = []
    for event in client.events(after=0, job=job, kinds=("job.queued", "job.started"), idle=60):
        found.append(event)
        now = client.call("job.show", job=job)
        if event["kind"] == "job.started" and now["state"] == "running" and event["time_ms"] >= now["started_ms"]:
            return found
    raise AssertionError(state)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        f'{{"messages": [{{"role": "user", "content": "translate: sun {n}"}}, '
        f'{{"role": "assistant", "content": "zavo {n}"}}]}}\n'
        for n in range(40)
    ]
    path.write_text("".join(rows))
    return path


def test_second_daemon_on_the_same_home_names_the_holder(cast: Cast) -> None:
    node = cast.start("A")
    second = run_daemon(node.home)
    assert second.returncode == 1
    assert str(cast.pids()["A"]) in second.stderr
    assert "ORCHD_HOME" in second.stderr
    assert "Traceback" not in second.stderr
    assert node.call("daemon.status")["pid"] == cast.pids()["A"]


def test_sigterm_stops_an_idle_daemon(cast: Cast) -> None:
    node = cast.start("A")
    pid = cast.pids()["A"]
    begun = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert wait_gone([pid], STOP_SECONDS) == []
    assert time.monotonic() - begun < STOP_SECONDS
    assert not node.socket_path.exists()
    assert "Traceback" not in (node.home / "daemon.log").read_text()


def test_sigterm_stops_a_busy_daemon_and_its_worker(cast: Cast, sentences: Path) -> None:
    node = cast.start("A")
    job = train_long(node, sentences)
    pid = cast.pids()["A"]
    family = [pid, *children(pid)]
    assert len(family) > 1
    os.kill(pid, signal.SIGTERM)
    assert wait_gone(family, STOP_SECONDS) == []
    (last,) = run_folder(node, job).glob("last-*")
    again = cast.start("A")
    assert again.call("job.show", job=job)["state"] in ("queued", "running")
    assert goes_on_after(again, job, int(last.name.partition("-")[2]))


def test_stop_over_the_socket(cast: Cast) -> None:
    node = cast.start("A")
    pid = cast.pids()["A"]
    assert node.call("daemon.stop") == {"stopping": True}
    assert wait_gone([pid], STOP_SECONDS) == []


def test_killed_daemon_takes_its_worker_along_and_starts_clean(cast: Cast, sentences: Path) -> None:
    node = cast.start("A")
    job = train_long(node, sentences)
    pid = cast.pids()["A"]
    family = [pid, *children(pid)]
    os.kill(pid, signal.SIGKILL)
    assert wait_gone(family, STOP_SECONDS) == []
    assert node.socket_path.exists(), "a killed daemon leaves its socket, which the next one must take over"
    again = cast.start("A")
    assert again.call("job.show", job=job)["state"] in ("queued", "running")
    assert goes_on_after(again, job, 0)
    again.call("job.cancel", job=job)
    assert again.author == node.author
    assert again.import_dataset(sentences, name="after", seed=1).train > 0


def test_killed_worker_fails_its_job_and_nothing_else(cast: Cast, sentences: Path) -> None:
    node = cast.start("A")
    job = train_long(node, sentences)
    for worker in children(cast.pids()["A"]):
        os.kill(worker, signal.SIGKILL)
    with Client(node.socket_path, timeout=60) as client:
        shown = client.stream("job.wait", lambda method, params: None, job=job)
    assert shown["state"] == "failed"
    assert shown["error"]["code"] == WorkerLost.code
    assert f"`orchctl train resume {job}`" in shown["error"]["hint"]
    assert node.import_dataset(sentences, name="after", seed=1).train > 0


def test_cancelled_training_leaves_a_checkpoint_and_nothing_else(cast: Cast, sentences: Path) -> None:
    node = cast.start("A")
    job = train_long(node, sentences)
    node.call("job.cancel", job=job)
    with Client(node.socket_path, timeout=60) as client:
        shown = client.stream("job.wait", lambda method, params: None, job=job)
    assert shown["state"] == "cancelled"
    assert list((node.home / "data" / "work").iterdir()) == []
    (last,) = run_folder(node, job).glob("last-*")
    done = int(last.name.partition("-")[2])
    assert done > 0
    resumed = node.call("train.resume", job=job)["job"]
    assert goes_on_after(node, resumed, done)


def test_occupied_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_daemon(tmp_path, ORCHD_NET__LISTEN=f"/ip4/127.0.0.1/tcp/{port}")
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if line.startswith("orchd: ")]
    assert len(said) == 1
    assert str(port) in said[0]
    assert "Traceback" not in ended.stderr


def test_unknown_setting_is_one_clear_line(tmp_path: Path) -> None:
    ended = run_daemon(tmp_path, ORCHD_NET__LISTN="x")
    assert ended.returncode == 2
    assert "net.listen" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_daemon_that_does_not_start_is_told_with_its_words(cast: Cast) -> None:
    with pytest.raises(NodeDidNotStart, match=r"net\.bootstrap|address"):
        cast.start("A", bootstrap="no address")


def test_idle_daemon_imports_no_torch(cast: Cast) -> None:
    cast.start("A")
    maps = Path(f"/proc/{cast.pids()['A']}/maps").read_text()
    assert "libtorch" not in maps
    assert "transformers" not in maps


def test_errors_reach_the_client_with_number_and_hint(cast: Cast, tmp_path: Path) -> None:
    node = cast.start("A")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("this is not JSON\n")
    with pytest.raises(OrchdError) as told:
        node.import_dataset(broken, name="broken")
    assert not isinstance(told.value, JobFailed)
    assert told.value.code
    assert told.value.hint
