"""The demo as a whole, once, with real daemons: what it prints, what it measured, what left the machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchd.demo.cast import Cast
from orchd.demo.examples import Examples
from orchd.demo.leaks import Capture, is_local
from orchd.demo.node import Node
from orchd.rpc.client import Client
from tests.e2e.demo_runs import HOME_NAME, SECONDS, SPY, USER, Run, demo, environment
from tests.e2e.helpers import children, environment_has, processes_with, wait_gone

NODES = ("A", "B", "C", "D", "P")
#: A shorter name could stand in two megabytes of weights by chance.
TELLING = 6
#: `translate: cat`, or an answer of one word.
TOO_SHORT = 18


@dataclass
class Finished:
    """One whole run, its homes kept."""

    shown: dict[str, Any]
    story: str
    code: int
    homes: Path
    report: Path
    calls: list[str]
    temporary: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    out, spied = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("spy") / "calls"
    spied.touch()
    temporary = tmp_path_factory.mktemp("t")
    ended = subprocess.run(
        [sys.executable, "-m", "orchd.cli.main", "demo", "--json", "--keep", "--out", str(out)],
        env=environment(temporary) | {"PYTHONPATH": str(SPY), "ORCHD_TEST_SPY": str(spied)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    kept = re.search(r"the homes were kept: (\S+)", ended.stderr)
    assert kept, ended.stderr
    assert ended.stdout, ended.stderr
    yield Finished(
        shown=json.loads(ended.stdout),
        story=ended.stderr,
        code=ended.returncode,
        homes=Path(kept[1]),
        report=out / "report.html",
        calls=spied.read_text().splitlines(),
        temporary=temporary,
    )
    subprocess.run(["rm", "-r", "--", kept[1]], check=True)


# ---- what it says --------------------------------------------------------------------------------------------


def test_every_check_held(finished: Finished) -> None:
    assert finished.shown["ok"] is True, finished.story
    assert finished.code == 0


def test_measurements_are_those_of_the_issue(finished: Finished) -> None:
    shown = finished.shown
    assert [r["round"] for r in shown["rounds"]] == [1, 2, 3]
    assert shown["rounds"][0]["average"]["exact_match"] <= 0.02
    assert shown["rounds"][0]["average"]["loss"] < shown["adapters"][0]["base_loss"] / 2
    assert len(shown["adapters"]) == 2
    assert len({adapter["author"] for adapter in shown["adapters"]}) == 2
    for adapter in shown["adapters"]:
        assert adapter["heldout_loss"] < adapter["base_loss"]
        assert adapter["mixed_exact_match"] <= 0.02
    assert shown["average"]["mixed_exact_match"] >= 0.8
    assert shown["average"]["mixed_exact_match"] > shown["oneshot"]["mixed_exact_match"]
    assert shown["average"]["id"] == shown["rounds"][-1]["average"]["id"]
    assert [refused["code"] for refused in shown["refused"]] == [2112]
    assert shown["deployment"]["parity"] is True
    assert shown["deployment"]["answers"]
    assert len(shown["revoked"]["affected"]) == 2
    assert shown["revoked"]["rolled_back"] == ["one-shot"]
    assert shown["nodes"] == len(NODES)


def test_standard_output_is_the_object_alone(finished: Finished) -> None:
    assert list(finished.shown) == [
        "ok", "seconds", "nodes", "rounds", "adapters", "average", "refused", "oneshot", "pooled", "deployment",
        "revoked",
    ]  # fmt: skip


def test_story_warns_first(finished: Finished) -> None:
    assert "Read this first" in finished.story
    assert finished.story.index("Read this first") < finished.story.index("round 1 ")
    assert "\x1b" not in finished.story
    assert "Traceback" not in finished.story


def test_report_was_written(finished: Finished) -> None:
    text = finished.report.read_text()
    assert "every check held" in text
    assert f"{100 * finished.shown['average']['mixed_exact_match']:.0f} %" in text
    assert (finished.report.parent / "demo.svg").exists()


def test_no_daemon_complained(finished: Finished) -> None:
    for node in NODES:
        log = (finished.homes / node / "daemon.log").read_text()
        assert "Traceback" not in log, log
        assert " ERROR " not in log, log


def test_nothing_runs_afterwards(finished: Finished) -> None:
    assert processes_with(str(finished.temporary)) == {}
    assert processes_with(str(finished.homes)) == {}


# ---- nothing private leaves ----------------------------------------------------------------------------------


def private_sentences() -> list[str]:
    """Both sides of every sentence of both halves, read from the files and not through the importer."""
    files = Examples.find(None)
    messages = [json.loads(line)["messages"] for line in files.b.read_text().splitlines()]
    texts = [message["content"] for both in messages for message in both]
    for conversation in json.loads(files.a.read_text()):
        for node in conversation["mapping"].values():
            if node["message"] and node["message"]["author"]["role"] in ("user", "assistant"):
                texts += node["message"]["content"]["parts"]
    return sorted({text.removeprefix("translate: ") for text in texts if len(text) >= TOO_SHORT})


def private_names(finished: Finished) -> list[str]:
    """What would tell who and where: names and paths of this machine and of the run."""
    names = [USER, HOME_NAME, str(finished.temporary), str(finished.homes), str(Path.cwd())]
    names += [name for name in (socket.gethostname(), os.uname().nodename) if len(name) >= TELLING]
    return [*names, "orchd-demo-", "/root/", "/home/", "/tmp/"]


def test_nothing_private_in_what_left(finished: Finished) -> None:
    sentences = private_sentences()
    assert len(sentences) > 700
    for node in NODES:
        capture = Capture.read(finished.homes / node / "capture")
        assert capture.size > 10_000
        assert capture.find(sentences) == []
        assert capture.find(private_names(finished)) == []


def test_every_stream_of_the_fetched_adapter_is_in_the_capture(finished: Finished) -> None:
    """The search is worth something: what is known to have left A is found."""
    capture = Capture.read(finished.homes / "A" / "capture")
    weights = [path for path in (finished.homes / "A" / "data" / "blobs").rglob("*") if path.is_file()]
    largest = max(weights, key=lambda path: path.stat().st_size).read_bytes()
    assert capture.find(["demo/translate"]) == ["demo/translate"]
    assert any(largest[4096:4160] in data for _, data in capture.streams)


def test_connections_stay_on_this_machine(finished: Finished) -> None:
    for node in NODES:
        assert Capture.read(finished.homes / node / "capture").beyond_loopback() == ()
    assert finished.calls, "the spy saw nothing at all"
    assert [call for call in finished.calls if not is_local(call)] == []


def test_spy_sees_a_call_home(tmp_path: Path) -> None:
    """The control: a library that looks a host up is seen."""
    calls = tmp_path / "calls"
    subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket().connect_ex(('localhost', 1)); "
         "socket.getaddrinfo('huggingface.invalid', 443)"],
        env={**os.environ, "PYTHONPATH": str(SPY), "ORCHD_TEST_SPY": str(calls)},
        stderr=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    seen = calls.read_text().splitlines()
    assert [is_local(call) for call in seen if "huggingface" in call] == [False]


def test_planted_sentence_is_found(cast: Cast, tmp_path: Path) -> None:
    """The control of the search: an author who writes a sentence into a description sends it to everybody."""
    sentence = private_sentences()[0]
    a = cast.start("A")
    b = cast.start("B", bootstrap=a.address)
    adapter = publish_with_description(a, sentence, tmp_path)
    b.join("demo/control")
    b.find_and_fetch(adapter)
    capture = Capture.read(a.home / "capture")
    assert capture.find([sentence]) == [sentence]
    assert capture.find(private_sentences()[1:]) == []


def publish_with_description(node: Node, description: str, folder: Path) -> str:
    source = folder / "some.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}]}
            for n in range(20)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = node.import_dataset(source, name="some")
    result = node.job("train.start", dataset=dataset.id, name="control", description=description, steps=1)
    node.publish(result["adapter"]["id"], "demo/control")
    return str(result["adapter"]["id"])


# ---- Ctrl-C --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Read this first", signal.SIGINT),
        ("All have joined", signal.SIGINT),
        ("trained, signed", signal.SIGTERM),
    ],
)
def test_interrupted_demo_leaves_nothing(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    with demo("--out", str(tmp_path)) as run:
        run.wait_for(moment)
        before = list(run.family())
        run.process.send_signal(number)
        last = run.rest().strip().splitlines()[-1]
        assert run.process.wait(30) == 130
        assert last.startswith("Interrupted: ")
        assert wait_gone(before, 10) == []
        assert run.family() == {}
        assert [path.name for path in run.temporary.iterdir()] == [HOME_NAME]
    assert list(tmp_path.iterdir()) == []


def test_killed_demo_leaves_nothing() -> None:
    """Nothing can be done after SIGKILL but by somebody else: the leash."""
    with demo() as run:
        run.wait_for("All have joined")
        family = list(run.family())
        leash = [pid for pid in children(run.process.pid) if "leash" in run.family()[pid]]
        assert len(leash) == 1
        run.process.kill()
        assert wait_gone(family, 20) == []
        assert [path.name for path in run.temporary.iterdir()] == [HOME_NAME]


def daemon_of(run: Run, node: str) -> int:
    """The process of one node's daemon."""
    home = f"ORCHD_HOME={run.temporary}"
    found = [
        pid
        for pid, command in run.family().items()
        if "orchd.daemon" in command and environment_has(pid, home) and environment_has(pid, f"/{node}\0")
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(("victim", "code"), [("daemon", "8004 NodeEnded"), ("worker", "3004 WorkerLost")])
def test_killed_part_is_told_in_two_lines(victim: str, code: str) -> None:
    with demo() as run:
        run.wait_for("All have joined")
        daemon = daemon_of(run, "B")
        for pid in [daemon] if victim == "daemon" else training_workers(daemon):
            os.kill(pid, signal.SIGKILL)
        said = run.rest().strip().splitlines()
        assert run.process.wait(30) == 1
        assert said[-2].startswith(f"error {code}: ")
        assert said[-1].startswith("  ")
        assert run.family() == {}
        assert [path.name for path in run.temporary.iterdir()] == [HOME_NAME]


def training_workers(daemon: int) -> list[int]:
    """The workers of this daemon, once there is one: its event log says when a job runs."""
    home = next(
        value.removeprefix(b"ORCHD_HOME=")
        for value in Path(f"/proc/{daemon}/environ").read_bytes().split(b"\0")
        if value.startswith(b"ORCHD_HOME=")
    )
    socket_path = Path(os.fsdecode(home)) / "run" / "rpc.sock"
    with Client(socket_path) as client:
        events = client.events(after=0, kinds=("job.progress",), idle=60)
        next(event for event in events if event["data"]["unit"] == "steps")
    return children(daemon)


def test_reader_that_leaves_ends_the_demo() -> None:
    with demo() as run:
        run.wait_for("Two people")
        assert run.process.stdout is not None
        run.process.stdout.close()
        assert run.process.wait(60) == 130
        assert run.family() == {}
        assert [path.name for path in run.temporary.iterdir()] == [HOME_NAME]
