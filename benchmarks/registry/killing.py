"""Row `kill-200`: a registry is killed with SIGKILL at random moments; what was acknowledged is there at the next.

usage: python -m benchmarks.registry.killing ROUNDS SEED — prints what came of it as JSON.

Each round a forked process (`victim`) opens the folder that the one before it left, and acts until it dies: on its way
up, some time later, or within milliseconds of the beginning of an act. Some homes are those of an orchd without a
journal, to be migrated. In some rounds a bit of the database or of its log is flipped before the next start, or half a
line is put at the journal's end, as a power cut leaves it. `orchd` = what was lost + what was half visible.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.registry import old_home, small, victim
from benchmarks.registry.small import Facts
from benchmarks.registry.victim import ANY
from benchmarks.report import Row

ROUNDS, SEED = 200, 4
NEW_HOME, OLD = 0.15, 0.6  # how often a home begins anew; how many of those are an older orchd's
FLIPPED, TORN = 0.3, 0.1
AT_START, AT_AN_ACT = 0.25, 0.5
TIMED_OUT = 120  # seconds without a word from a victim


def rows() -> list[Row]:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry.killing", str(ROUNDS), str(SEED)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found = json.loads(told.stdout)
    for what in (*found["lost"], *found["half"]):
        print(f"kill-200: {what}", file=sys.stderr)
    bad = len(found["lost"]) + len(found["half"])
    figures = {name: found[name] for name in ("rounds", "acknowledged", "flipped", "torn", "old_homes")}
    return [Row("kill-200", "lost", bad, "none", None, None, "0", bad == 0, figures)]


@dataclass
class Campaign:
    """`known` is what must be there; `open_acts` are the changes of an act whose end was not heard."""

    place: Path
    rng: random.Random
    lost: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    known: Facts = field(default_factory=dict)
    begun: Facts = field(default_factory=dict)
    killed_in: Counter[str] = field(default_factory=Counter)
    highest_seq: int = 0
    number: int = 0
    at: str = "start"
    damaged: bool = False
    start_seconds: float = 0.5

    @property
    def data(self) -> Path:
        return self.place / "data"

    def run(self, rounds: int) -> None:
        small.make_pool(self.place)
        self.pool = small.read_pool(self.place)
        for self.number in range(1, rounds + 1):
            if self.number == 1 or self.rng.random() < NEW_HOME:
                self.new_home()
            self.one_round()
        self.look()
        self.counts["rounds"] = rounds

    def new_home(self) -> None:
        if self.number > 1:
            self.look()
        shutil.rmtree(self.data, ignore_errors=True)
        self.known, self.begun, self.highest_seq, self.damaged = {}, {}, 0, False
        if self.rng.random() < OLD or self.number == 1:
            self.counts["old_homes"] += 1
            seed = self.rng.random()
            self.known = _in_a_child(lambda: old_home.make(self.place, self.data, seed))

    def one_round(self) -> None:
        process, out = _fork(self.place, self.rng.randrange(1 << 30))
        try:
            self.follow(process, Lines(out))
        finally:
            os.close(out)
            _kill(process)
        self.damage()

    def look(self) -> None:
        """What the last victim of a home has left."""
        process, out = _fork(self.place, 0)
        try:
            found = Lines(out).until(time.monotonic() + TIMED_OUT)
            self.start(found)
        finally:
            os.close(out)
            _kill(process)

    # ---- one victim ----------------------------------------------------------------------------------------------

    def follow(self, process: int, lines: Lines) -> None:
        begun = time.monotonic()
        self.at = "start"
        if self.rng.random() < AT_START:
            self.hear_until(lines, begun + self.rng.random() * self.start_seconds * 1.2)
        elif (first := lines.until(begun + TIMED_OUT)) is None:
            self.half.append(f"round {self.number}: it did not start")
        else:
            self.start_seconds = 0.7 * self.start_seconds + 0.3 * (time.monotonic() - begun)
            self.heard(first)
            self.wait_for_the_moment(lines)
        _kill(process)
        self.hear_until(lines, time.monotonic() + TIMED_OUT)  # what it said before it died
        self.killed_in[self.at] += 1

    def hear_until(self, lines: Lines, due: float) -> None:
        while (message := lines.until(due)) is not None:
            self.heard(message)

    def wait_for_the_moment(self, lines: Lines) -> None:
        """Read on until the moment has come to kill it."""
        if self.rng.random() >= AT_AN_ACT:
            self.hear_until(lines, time.monotonic() + self.rng.random() * 0.8)
            return
        left = self.rng.randrange(1, 25)
        while left and (message := lines.until(time.monotonic() + TIMED_OUT)) is not None:
            self.heard(message)
            left -= "begin" in message
        self.hear_until(lines, time.monotonic() + self.rng.random() * 0.03)

    def heard(self, message: dict[str, Any]) -> None:
        if "found" in message:
            self.start(message)
        elif "begin" in message:
            self.at, self.begun = message["begin"], message["changes"]
        elif "signed" in message:
            if message["seq"] <= self.highest_seq:
                self.lost.append(f"round {self.number}: the number {message['seq']} was used twice")
            self.begun = {f"announced {message['signed']}": message["seq"]}
        elif "done" in message:
            self.at, self.begun = "between", {}
            self.acts[message["done"]] += 1
            for key, value in message["changes"].items():
                self.take(key, value)

    def take(self, key: str, value: Any) -> None:
        self.known.pop(key, None)
        if value is not None:
            self.known[key] = value
            if key.startswith("announced "):
                self.highest_seq = max(self.highest_seq, value)

    # ---- the comparison ------------------------------------------------------------------------------------------

    def start(self, message: dict[str, Any] | None) -> None:
        """A victim says what it found."""
        where = f"round {self.number}"
        if message is None:
            self.half.append(f"{where}: it did not start")
            return
        found = message["found"]
        for key in sorted(found.keys() | self.known.keys() | self.begun.keys()):
            is_there, was = found.get(key), self.known.get(key)
            may = [was]
            if key in self.begun:
                may.append(self.begun[key])
            if is_there not in may and ANY not in may:
                self.lost.append(f"{where}: {key} is {is_there!r}, acknowledged was {was!r}")
        self.known, self.begun, self.at = dict(found), {}, "between"
        for key, value in found.items():
            self.take(key, value)
        if message["next_seq"] <= self.highest_seq:
            self.lost.append(f"{where}: the number {message['next_seq']} would be used again")
        due = small.due_states(self.pool, found)
        for id in sorted(due.keys() | message["states"].keys()):
            if due.get(id) != message["states"].get(id):
                self.half.append(f"{where}: {id} is {message['states'].get(id)}, not {due.get(id)}")
        self.half += [f"{where}: {what}" for what in message["half"]]
        if not self.damaged:
            self.half += [f"{where}: {notice}" for notice in message["notices"]]

    # ---- what else may happen ------------------------------------------------------------------------------------

    def damage(self) -> None:
        log, table = self.data / "registry.db.wal", self.data / "registry.db"
        if self.rng.random() < FLIPPED:
            in_log = log.exists() and log.stat().st_size and self.rng.random() < 0.7
            journal = self.data / "journal.log"
            if not in_log and not (journal.exists() and journal.stat().st_size):
                return  # an older orchd's: all that it knows is in this one file
            file = log if in_log else table
            self.damaged = self.flip(file) or self.damaged
        if self.rng.random() < TORN and (self.data / "journal.log").exists():
            with (self.data / "journal.log").open("ab") as file:
                file.write(b'0123456789abcdef {"seq":99999,"at":1,"act":"trust.bl')
            self.counts["torn"] += 1

    def flip(self, file: Path) -> bool:
        if not file.exists() or not (data := bytearray(file.read_bytes())):
            return False
        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        file.write_bytes(data)
        self.counts["flipped"] += 1
        return True


class Lines:
    """JSON lines from a pipe, as they come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""

    def until(self, due: float) -> dict[str, Any] | None:
        """The next one; None when the time has come or the other end was closed."""
        while b"\n" not in self._data:
            left = due - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                return None
            block = os.read(self._descriptor, 1 << 16)
            if not block:
                return None
            self._data += block
        line, self._data = self._data.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found


def _fork(place: Path, seed: int) -> tuple[int, int]:
    """A victim, and where it writes. The one that forks never opens a registry, so it has no thread of DuckDB."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        os.setpgid(0, 0)
        try:
            victim.live(place, seed, writing)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(3)
    os.close(writing)
    return process, reading


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _in_a_child(work: Any) -> Any:
    """What `work` gives, done in a process of its own."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                json.dump(work(), out)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        result = json.load(told)
    os.waitpid(process, 0)
    return result


def main(rounds: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="orchd-kill-") as place:
        campaign = Campaign(Path(place), random.Random(seed))
        campaign.run(rounds)
    print(
        json.dumps(
            {
                **{name: campaign.counts[name] for name in ("rounds", "flipped", "torn", "old_homes")},
                "acknowledged": campaign.acts.total(),
                "lost": campaign.lost,
                "half": campaign.half,
                "killed_in": dict(campaign.killed_in.most_common()),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
