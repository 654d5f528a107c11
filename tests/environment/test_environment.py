"""The training environment, made by the real maker and the real pip from a small index on this machine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from orchd.config import JobsConfig, TrainingConfig
from orchd.environment import marker, needs
from orchd.environment.environment import MAKER, Environment
from orchd.environment.maker import Task
from orchd.environment.needs import Needs, Torch
from orchd.errors import DiskFull, EnvironmentForbidden, EnvironmentMissing, EnvironmentNotMade, IndexUnreachable
from orchd.jobs.entry import LocalContext
from orchd.jobs.events import EventLog
from orchd.jobs.jobs import Jobs
from orchd.jobs.process import WorkerProcess
from orchd.jobs.states import Job, State
from orchd.registry.index import Index as RegistryIndex
from orchd.registry.journal import Journal
from orchd.registry.local import Local
from tests.environment import import_worker
from tests.environment.index import Index, served, wheel

SECONDS = 240
HEAVY = 21_000_000
"""Bytes: more than pip is asked for at once."""


@pytest.fixture(autouse=True)
def plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as nobody has set it up."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")  # so that it keeps what came over HTTP, as it does over HTTPS


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """alpha 1.2, which needs heavy; and an alpha 1.3 that the constraints forbid."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "alpha", "1.2", {"alpha.py": b"VERSION = '1.2'\n", "alpha_more.py": b"MORE = 1\n"}, needs=("heavy",))
    wheel(folder, "alpha", "1.3", {"alpha.py": b"VERSION = '1.3'\n"})
    wheel(folder, "heavy", "1.0", {"heavy.py": b"#" * HEAVY})
    with served(Index(folder)) as found:
        yield found


def needed(url: str, **changes: Any) -> Needs:
    found = Needs(
        requirements=("alpha>=1,<2",),
        constraints="alpha==1.2\nheavy==1.0\n",
        torch=Torch(build="cpu", local="", index="", why="a test"),
        index_url=url,
        python=sys.executable,
        version=needs.this_python(),
        layer=tuple(needs.layer()),
        modules=("alpha", "alpha_more", "heavy"),
    )
    return msgspec.structs.replace(found, **changes)


class House:
    """An environment's folder and a queue of jobs that runs in it."""

    def __init__(self, folder: Path, wanted: Needs) -> None:
        self.root = folder / "environment"
        self.folder = folder
        self.wanted = wanted
        self.environment = self.another()
        self.index = RegistryIndex(folder / "index.duckdb")
        self.local = Local(Journal(folder / "journal.log", 1), self.index, lambda: 1)

    def another(self, setting: str = "auto", lacking: tuple[str, ...] = ("alpha",), reserve: int = 0) -> Environment:
        return Environment(
            self.root,
            TrainingConfig(environment=setting),
            wanted=lambda: self.wanted,
            lacking=lambda: lacking,
            command=import_worker.COMMAND,
            reserve=reserve,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Jobs]:
        events = EventLog(self.folder / "state", lambda: 1)
        jobs = Jobs(
            self.local,
            self.folder / "state",
            JobsConfig(parallel=2, warm_seconds=0),
            events,
            work=self.folder / "work",
            kinds=import_worker.KINDS,
            command=import_worker.COMMAND,
            rng=random.Random(7),
        )
        jobs.python = self.environment
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(jobs.run)
                yield jobs
                nursery.cancel_scope.cancel()
        events.close()

    async def train(self, jobs: Jobs, kind: str = "train") -> Job:
        return await jobs.submit(kind, import_worker.Import(module="alpha"), title="imports alpha")


@pytest.fixture
def house(tmp_path: Path, index: Index) -> Iterator[House]:
    made = House(tmp_path, needed(index.url))
    yield made
    made.local.close()
    made.index.close()


class Told:
    """A context that keeps what it is told."""

    def __init__(self) -> None:
        self.progress: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.context = LocalContext(self.progress.append, self.lines.append)

    @property
    def steps(self) -> list[str]:
        return list(dict.fromkeys(one["figures"]["step"] for one in self.progress if "step" in one["figures"]))


async def test_two_trainings_make_one_environment_and_a_broken_one_is_made_anew(house: House, index: Index) -> None:
    """Both jobs import what this Python has not. Then a file of a package is lost, and the next job notices."""
    with pytest.raises(ModuleNotFoundError):
        __import__("alpha")
    async with house.running() as jobs:
        first, second = await house.train(jobs), await house.train(jobs)
        ended = [await jobs.wait(first.id), await jobs.wait(second.id)]
        assert [(job.state, job.result) for job in ended] == [(State.DONE, {"version": "1.2"})] * 2
        assert sorted(index.asked) == ["alpha-1.2-py3-none-any.whl", "heavy-1.0-py3-none-any.whl"]
        found = marker.read(house.root)
        assert found is not None
        assert found.versions["alpha"] == "1.2"
        assert [one.name for one in house.root.glob("venv-*")] == [found.folder]
        assert not (house.root / marker.MAKING).exists()

        (lost,) = (house.root / found.folder).glob("lib/python*/site-packages/alpha.py")
        lost.unlink()
        shutil.rmtree(lost.parent / "__pycache__")
        third = await jobs.wait((await house.train(jobs)).id)
        assert (third.state, third.result) == (State.DONE, {"version": "1.2"})
        log = "\n".join(await jobs.logs(third.id))
        assert "is made again" in log
        assert "files are missing or cut off: alpha.py" in log
        assert index.asked.count("alpha-1.2-py3-none-any.whl") == 2
        (left,) = house.root.glob("venv-*")
        assert left.name != found.folder
        assert {one.name for one in house.root.iterdir()} == {left.name, marker.MARKER, "lock"}
        state = await house.environment.state()
        assert (state.where, state.folder) == ("environment", str(left))


async def test_a_maker_that_is_killed_goes_on_where_it_was(house: House, index: Index) -> None:
    """SIGKILL while the second wheel is downloaded: the first is not asked for again, and nothing is in use before."""
    index.held = "heavy"
    told = Told()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            worker = await WorkerProcess.start(nursery, command=MAKER)
            await worker.send(Task(root=str(house.root), folder="venv-first", needs=house.wanted))
            await trio.to_thread.run_sync(index.reached.wait)
            os.killpg(worker.pid, signal.SIGKILL)
            await worker.wait()
        assert marker.read(house.root) is None
        assert index.asked == ["alpha-1.2-py3-none-any.whl", "heavy-1.0-py3-none-any.whl"]
        index.held = ""
        index.release.set()
        state = await house.environment.make(told.context)
    assert state.where == "environment"
    assert index.asked[2:] == ["heavy-1.0-py3-none-any.whl"]
    assert {"making the venv", "downloading", "checking"} <= set(told.steps)
    assert [one.name for one in house.root.glob("venv-*")] == [Path(state.folder).name]
    assert "21.0 MB" in "\n".join(told.lines)


async def test_a_broken_download_is_no_environment(house: House, index: Index) -> None:
    """What was installed does not import: nothing is in use, and nothing is taken over by the next try."""
    (index.folder / "alpha-1.2-py3-none-any.whl").unlink()
    wheel(index.folder, "alpha", "1.2", {"alpha.py": b"import not_there\n", "alpha_more.py": b""}, needs=("heavy",))
    with trio.fail_after(SECONDS), pytest.RaisesGroup(EnvironmentNotMade, allow_unwrapped=True, flatten_subgroups=True):
        await house.environment.make(Told().context)
    assert marker.read(house.root) is None
    assert list(house.root.glob("venv-*")) == []
    assert not (house.root / marker.MAKING).exists()


async def test_an_index_that_does_not_answer_is_named_with_the_next_step(house: House, index: Index) -> None:
    house.wanted = needed("http://127.0.0.1:9/simple")
    with (
        trio.fail_after(SECONDS),
        pytest.RaisesGroup(IndexUnreachable, allow_unwrapped=True, flatten_subgroups=True) as raised,
    ):
        await house.environment.make(Told().context)
    error: Any = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert "training.index_url" in error.hint
    assert f"{sys.executable} -m pip install 'alpha>=1,<2'" in error.hint


async def test_no_room_is_said_before_anything_is_downloaded(house: House, index: Index) -> None:
    environment = house.another(reserve=1 << 60)
    with trio.fail_after(SECONDS), pytest.RaisesGroup(DiskFull, allow_unwrapped=True, flatten_subgroups=True):
        await environment.make(Told().context)
    assert index.asked == []


async def test_only_a_training_downloads_and_off_forbids_it(house: House, index: Index) -> None:
    async with house.running() as jobs:
        looked = await jobs.wait((await house.train(jobs, "look")).id)
        assert looked.error is not None
        assert looked.error.code == EnvironmentMissing.code
        assert "235.0 MB" in looked.error.message
        jobs.python = house.another(setting="off")
        refused = await jobs.wait((await house.train(jobs)).id)
        assert refused.error is not None
        assert refused.error.code == EnvironmentForbidden.code
        assert "pip install 'alpha>=1,<2'" in refused.error.hint
        assert await house.another(setting="off").note() == ""
        assert "235.0 MB" in await house.environment.note()
    assert index.asked == []


async def test_where_this_python_has_all_nothing_is_made(house: House, index: Index) -> None:
    async with house.running() as jobs:
        jobs.python = own = house.another(lacking=())
        ended = await jobs.wait((await house.train(jobs)).id)
        assert ended.error is not None  # it ran, in this Python, which has no alpha
        assert "alpha" in ended.error.message
        assert (await own.state()).where == "own"
        assert await own.note() == ""
    assert not house.root.exists()
