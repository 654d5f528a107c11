"""`python -m tests.jobs.fake_worker` is `python -m orchd.worker` with a table of job kinds made for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from orchd import worker
from orchd.errors import AdapterConfigRefused
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import Kind
from orchd.jobs.sandbox import Readable

HERE = "tests.jobs.fake_worker"
COMMAND = (sys.executable, "-m", HERE)


class CountSpec(msgspec.Struct, frozen=True, kw_only=True):
    steps: int = 3
    marker: Readable | None = None


class CountResult(msgspec.Struct, frozen=True, kw_only=True):
    steps: int
    file: str = "out.txt"
    threads: str = ""


def count(spec: CountSpec, job: JobContext) -> CountResult:
    """Noise on stdout that must not reach the wire, progress, a file in the working folder."""
    print("a library says hello on stdout")
    os.write(1, b'{"event": "result", "result": {"steps": 999}}\n')
    for step in range(spec.steps):
        job.progress(step + 1, spec.steps, "steps", loss=1.0 / (step + 1))
    job.log("counted")
    (job.workdir / "out.txt").write_text("done")
    return CountResult(steps=spec.steps, threads=os.environ["OMP_NUM_THREADS"])


def until_cancelled(spec: CountSpec, job: JobContext) -> CountResult:
    job.progress(0, 1, "steps")
    while True:
        job.check()
        time.sleep(0.005)


def deaf(spec: CountSpec, job: JobContext) -> CountResult:
    """Never looks at the cancel flag."""
    job.progress(0, 1, "steps")
    while True:
        time.sleep(60)


def gated(spec: CountSpec, job: JobContext) -> CountResult:
    """Runs until the test has made the file `marker`."""
    job.progress(0, 1, "steps")
    while not Path(spec.marker or "").exists():
        job.check()
        time.sleep(0.005)
    return CountResult(steps=spec.steps)


def timed(spec: CountSpec, job: JobContext) -> CountResult:
    """Its first stage is over at once; it says that what comes then takes 90 s, and waits for `marker`."""
    job.progress(1, 1, "steps", 90.0)
    while not Path(spec.marker or "").exists():
        job.check()
        time.sleep(0.005)
    return CountResult(steps=spec.steps)


def refuse(spec: CountSpec, job: JobContext) -> CountResult:
    raise AdapterConfigRefused("auto_map is not allowed", field="auto_map")


def crash(spec: CountSpec, job: JobContext) -> CountResult:
    raise ValueError("the seventh row is odd")


def die(spec: CountSpec, job: JobContext) -> CountResult:
    os.write(2, b"about to be killed\n")
    os.kill(os.getpid(), 9)
    raise AssertionError


def garbage(spec: CountSpec, job: JobContext) -> CountResult:
    """Writes a broken line straight onto the wire."""
    os.write(job._wire._outgoing, b"this is not JSON\n")  # type: ignore[attr-defined]
    return CountResult(steps=0)


def pid(spec: CountSpec, job: JobContext) -> CountResult:
    return CountResult(steps=os.getpid())


def chatty(spec: CountSpec, job: JobContext) -> CountResult:
    for number in range(spec.steps):
        sys.stderr.write(f"line {number} of the log, with some text behind it\n")
    return CountResult(steps=spec.steps)


def stutter(spec: CountSpec, job: JobContext) -> CountResult:
    """Half a line on stderr, a line of the log, the other half."""
    for _ in range(spec.steps):
        os.write(2, b"first half,")
        job.log("in between")
        os.write(2, b" second half\n")
    os.write(2, b"and no newline")
    return CountResult(steps=spec.steps)


def missing(spec: CountSpec, job: JobContext) -> CountResult:
    import a_package_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

    raise AssertionError


def wrong_shape(spec: CountSpec, job: JobContext) -> dict[str, object]:
    return {"steps": "many"}


def echo(spec: CountSpec, job: JobContext) -> CountResult:
    """A conversation."""
    heard = 0
    while (message := job.receive()) is not None:
        heard += 1
        job.send({"event": "echo", "text": message["text"]})
    return CountResult(steps=heard)


def orphan(spec: CountSpec, job: JobContext) -> CountResult:
    """Leaves a grandchild behind that holds stderr open."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    job.progress(0, 1, "steps")
    os.kill(os.getpid(), 9)
    raise AssertionError


FUNCTIONS = (
    count, until_cancelled, deaf, gated, refuse, crash, die, garbage, chatty, stutter, missing, wrong_shape, echo,
    orphan, pid,
)  # fmt: skip
KINDS = {f.__name__: Kind(f"{HERE}:{f.__name__}", f"{HERE}:CountSpec", f"{HERE}:CountResult") for f in FUNCTIONS} | {
    "warm": Kind(f"{HERE}:count", f"{HERE}:CountSpec", f"{HERE}:CountResult", warm=True),
    "warm_gated": Kind(f"{HERE}:gated", f"{HERE}:CountSpec", f"{HERE}:CountResult", warm=True),
    "short": Kind(f"{HERE}:count", f"{HERE}:CountSpec", f"{HERE}:CountResult", short=True),
    "short_gated": Kind(f"{HERE}:gated", f"{HERE}:CountSpec", f"{HERE}:CountResult", short=True),
    "timed": Kind(f"{HERE}:timed", f"{HERE}:CountSpec", f"{HERE}:CountResult"),
    "going_on": Kind(f"{HERE}:gated", f"{HERE}:CountSpec", f"{HERE}:CountResult", resumes="orchctl count on"),
}


if __name__ == "__main__":
    worker.WARM_MODULES = ("csv",)
    worker.leave(worker.main(kinds=KINDS))
