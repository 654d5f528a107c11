"""The daemon's side: which Python a job's worker runs in, and having the environment made, looked at and removed.

`Environment.run` is what the queue of jobs calls. Where the daemon's own Python has what training needs, it
costs a look at five packages' metadata, once.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import trio

from orchd.config import TrainingConfig
from orchd.environment import marker, needs
from orchd.environment.maker import Task, Verdict
from orchd.environment.marker import Marker
from orchd.environment.needs import Needs
from orchd.environment.teller import PHASE
from orchd.errors import (
    EnvironmentForbidden,
    EnvironmentMissing,
    EnvironmentNotMade,
    JobFailed,
    NotAvailable,
    WorkerLost,
)
from orchd.jobs.entry import LocalContext
from orchd.jobs.jobs import Ask, Prepared
from orchd.jobs.kinds import Kind
from orchd.jobs.process import COMMAND, WorkerProcess
from orchd.jobs.states import ErrorInfo, Progress
from orchd.registry.blobs import DISK_RESERVE
from orchd.units import size

MAKER: Final = (sys.executable, "-P", "-m", "orchd.environment.maker")
PERHAPS_BROKEN: Final = (NotAvailable, JobFailed, WorkerLost)
"""How a job ends whose Python lacks something; other errors are about the job."""

Where = Literal["own", "environment", "missing"]


class Place(NamedTuple):
    """A worker's command; `folder` is the name of the environment, empty for the daemon's own Python."""

    command: Sequence[str]
    folder: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where training finds its packages: `own` in orchd's Python, in an `environment`, or `missing`, with what is
    `lacking`. `download` and `disk` (bytes, about) are what making it takes; `size` what it has on the disk now.
    `setting` is `training.environment`, `index` where it comes from; `outdated`: there is one, for other needs."""

    where: Where
    lacking: tuple[str, ...]
    setting: str
    python: str
    folder: str
    size: int
    versions: dict[str, str]
    torch: str
    why: str
    device: str
    download: int
    disk: int
    index: str
    making: bool
    outdated: bool


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """What is gone, in bytes."""

    size: int


class Environment:
    """`root` is its folder below the data folder. For the daemon's thread. `wanted` and `lacking` look at the machine
    and at this Python; both may take a moment, so they are called in a thread."""

    def __init__(
        self,
        root: Path,
        config: TrainingConfig,
        *,
        wanted: Callable[[], Needs] | None = None,
        lacking: Callable[[], tuple[str, ...]] = needs.lacking,
        command: Sequence[str] = COMMAND,
        reserve: int = DISK_RESERVE,
    ) -> None:
        self._root = root
        self._config = config
        self._wanted = wanted or partial(needs.needs, config)
        self._find_lacking = lacking
        self._command = command
        self._reserve = reserve
        self._lock = trio.Lock()
        self._used: Counter[str] = Counter()
        self._lacking: tuple[str, ...] | None = None

    # ---- for the queue of jobs ----------------------------------------------------------------------------------

    async def run(self, kind: Kind, prepared: Prepared, ask: Ask) -> Any:
        """What `ask` makes of the job with a worker's command. `prepared` runs what comes before the worker.

        Where the environment turns out to be broken it is made anew, and the job asked once more. Raises
        `EnvironmentMissing`, `EnvironmentForbidden`, what making raises, and what `ask` raises.
        """
        if not kind.warm or (await self._own() and self._config.environment != "own"):
            return await ask(self._command)
        place: Place = await prepared(partial(self._place, kind))
        try:
            with self._using(place):
                return await ask(place.command)
        except PERHAPS_BROKEN as error:
            broken: str = await prepared(lambda context: self._broken(place.folder, context))
            if not broken:
                raise
            reason = f"{error.message}; {broken}"
        again: Place = await prepared(lambda context: self._mend(place.folder, reason, context))
        with self._using(again):
            return await ask(again.command)

    async def note(self) -> str:
        """What a training that starts now downloads first, in words; empty where it downloads nothing."""
        state = await self.state()
        if state.where != "missing" or self._config.environment == "off":
            return ""
        return (
            f"{_these(state.lacking)} not in orchd's Python, so the training environment is made first, once: about"
            f" {size(state.download)} are downloaded from {state.index}, and it takes about {size(state.disk)} in"
            f' {self._root} (torch: {state.torch}, {state.why}). `training.environment = "off"` forbids it.'
        )

    # ---- for people ---------------------------------------------------------------------------------------------

    async def state(self) -> State:
        wanted = await trio.to_thread.run_sync(self._wanted)
        found = await trio.to_thread.run_sync(marker.read, self._root)
        usable = marker.usable(self._root, found, wanted)
        own = await self._own() and self._config.environment != "own"
        where: Where = "own" if own else "environment" if usable else "missing"
        python = sys.executable if own or found is None else str(marker.interpreter(self._root, found.folder))
        return State(
            where=where,
            lacking=self._lacking or (),
            setting=self._config.environment,
            python=python if where != "missing" else "",
            folder=str(self._root / found.folder) if found else "",
            size=found.size if found else 0,
            versions=found.versions if found else {},
            torch=found.torch if found and usable else wanted.torch.build,
            why=wanted.torch.why,
            device=found.device if found else "",
            download=wanted.download,
            disk=wanted.disk,
            index=wanted.source,
            making=self._lock.locked(),
            outdated=found is not None and not usable,
        )

    async def make(self, context: LocalContext) -> State:
        """Make it where there is none that is wanted. Raises what making raises."""
        await self._ready(context)
        return await self.state()

    async def repair(self, context: LocalContext) -> State:
        """Look through it, and make it anew where it is not whole. Raises what making raises."""
        found = await trio.to_thread.run_sync(marker.read, self._root)
        if found is None or not (broken := await self._broken(found.folder, context)):
            return await self.make(context)
        await self._mend(found.folder, broken, context)
        return await self.state()

    async def remove(self) -> Removed:
        """Remove it, and what an unfinished one downloaded. Raises `EnvironmentNotMade` while a job uses it."""
        if self._lock.locked() or +self._used:
            hint = "`orchctl job list --state running` shows which job; wait for its end or cancel it."
            raise EnvironmentNotMade("the training environment is in use and can't be removed now", hint=hint)
        async with self._lock:
            size = await trio.to_thread.run_sync(_bytes_below, self._root)
            (self._root / marker.MARKER).unlink(missing_ok=True)
            await trio.to_thread.run_sync(partial(shutil.rmtree, self._root, ignore_errors=True))
        return Removed(size=size)

    # ---- inside -------------------------------------------------------------------------------------------------

    async def _own(self) -> bool:
        """Whether this Python has what training needs."""
        if self._lacking is None:
            self._lacking = await trio.to_thread.run_sync(self._find_lacking)
        return not self._lacking

    async def _place(self, kind: Kind, context: LocalContext) -> Place:
        """The environment for a job, made now where the job is one that may."""
        wanted = await trio.to_thread.run_sync(self._wanted)
        found = await trio.to_thread.run_sync(marker.read, self._root)
        if found is not None and marker.usable(self._root, found, wanted):
            return self._place_of(found)
        if not kind.sets_up and self._config.environment != "off":
            raise EnvironmentMissing(
                f"{_these(self._lacking or ())} not in orchd's Python, and there is no training environment yet: making"
                f" it downloads about {size(wanted.download)} from {wanted.source} and takes {size(wanted.disk)} on"
                " the disk"
            )
        return await self._ready(context)

    async def _ready(self, context: LocalContext) -> Place:
        """The environment, made where it is missing; whoever comes second waits for the first."""
        if self._lock.locked():
            context.progress(0, 1, "steps", phase=PHASE, waits="another job makes the training environment")
        async with self._lock:
            wanted = await trio.to_thread.run_sync(self._wanted)
            found = await trio.to_thread.run_sync(marker.read, self._root)
            if found is None or not marker.usable(self._root, found, wanted):
                found = await self._made(wanted, context)
            return self._place_of(found)

    async def _mend(self, folder: str, reason: str, context: LocalContext) -> Place:
        """Another one in the place of a broken one, unless somebody was faster."""
        context.log(f"the training environment is broken and is made again: {reason}")
        async with self._lock:
            found = await trio.to_thread.run_sync(marker.read, self._root)
            if found is None or found.folder == folder:
                found = await self._made(await trio.to_thread.run_sync(self._wanted), context)
            return self._place_of(found)

    async def _made(self, wanted: Needs, context: LocalContext) -> Marker:
        """Have it made in a folder of its own. The caller holds the lock."""
        if self._config.environment == "off":
            raise EnvironmentForbidden(
                f"{_these(self._lacking or ())} not in orchd's Python, and `training.environment` is off: nothing is"
                " downloaded",
                hint=f"`{shlex.join([sys.executable, '-m', 'pip', 'install', *wanted.requirements])}` has them there;"
                " or set `training.environment` to auto and start orchd again.",
            )
        context.log(
            f"making the training environment ({_these(self._lacking or ())} not in orchd's Python): about"
            f" {size(wanted.download)} from {wanted.source}, about {size(wanted.disk)} in {self._root}"
        )
        await self._sweep()
        task = Task(
            root=str(self._root),
            folder=f"{marker.VENV}{secrets.token_hex(4)}",
            needs=wanted,
            reserve=self._reserve,
        )
        try:
            return msgspec.convert(await self._ask_maker(task, context), Marker)
        finally:
            with trio.CancelScope(shield=True):
                await self._sweep()

    async def _broken(self, folder: str, context: LocalContext) -> str:
        """What is wrong with an environment, in words; empty when it is whole."""
        wanted = await trio.to_thread.run_sync(self._wanted)
        context.progress(0, 1, "steps", phase=PHASE, step="looking whether it is whole")
        task = Task(root=str(self._root), folder=folder, needs=wanted, check=True)
        return msgspec.convert(await self._ask_maker(task, context), Verdict).broken

    async def _ask_maker(self, task: Task, context: LocalContext) -> Any:
        """What the maker's process answers. Raises its error; when this is cancelled the process is killed."""
        async with trio.open_nursery() as nursery:
            worker = await WorkerProcess.start(nursery, command=MAKER)
            worker.on_stderr = lambda lines: context.log(lines.decode(errors="replace").rstrip())
            async with worker:
                await worker.send(task)
                answer = await _listen(worker, context)
        return answer

    async def _sweep(self) -> None:
        """Remove folders that no marker names and no job uses."""
        found = await trio.to_thread.run_sync(marker.read, self._root)
        keep = {*(+self._used), *([found.folder] if found else [])}
        await trio.to_thread.run_sync(marker.drop_others, self._root, keep)

    def _place_of(self, found: Marker) -> Place:
        python = str(marker.interpreter(self._root, found.folder))
        return Place((python, *self._command[1:]), found.folder)

    @contextmanager
    def _using(self, place: Place) -> Any:
        self._used[place.folder] += 1
        try:
            yield
        finally:
            self._used[place.folder] -= 1


async def _listen(worker: WorkerProcess, context: LocalContext) -> Any:
    async for message in worker.messages():
        match message:
            case {"event": "progress"}:
                said = msgspec.convert(message, Progress)
                context.progress(said.done, said.total, said.unit, **said.figures)
            case {"event": "log", "text": str(text)}:
                context.log(text)
            case {"event": "result", "result": result}:
                return result
            case {"event": "error"}:
                raise msgspec.convert({"name": "", **message}, ErrorInfo).exception()
    await worker.wait()
    raise EnvironmentNotMade(
        f"the process that made the training environment was lost: {worker.lost().message}",
        hint="Run the same command again: it goes on with what was downloaded.",
    )


def _these(lacking: Sequence[str]) -> str:
    if not lacking:
        return "the packages of training are"
    return f"{', '.join(lacking)} {'are' if len(lacking) > 1 else 'is'}"


def _bytes_below(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
