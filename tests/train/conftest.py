"""A job that only records, and small data sets of the invented language's kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orchd.importers.conversation import Conversation, Example, Message
from orchd.importers.source import ImportLog
from orchd.jobs.context import JobContext
from orchd.train.datasets.build import Parts, build

DEMO_BASE = Path(__file__).parents[2] / "orchd/train/base/demo"
MakeDataset = Callable[..., Path]


class Recorder:
    """A wire to nobody."""

    def __init__(self) -> None:
        self.sent: list[Mapping[str, Any]] = []

    def send(self, message: Mapping[str, object]) -> None:
        self.sent.append(message)

    def receive(self) -> dict[str, object] | None:
        return None


@pytest.fixture
def wire() -> Recorder:
    return Recorder()


@pytest.fixture
def job(tmp_path: Path, wire: Recorder) -> JobContext:
    return new_job(tmp_path / "work", wire)


def new_job(workdir: Path, wire: Recorder | None = None) -> JobContext:
    """A job whose clock moves a second at each look, so that every progress message passes."""
    workdir.mkdir()
    seconds = itertools.count()
    return JobContext(workdir, 1, wire or Recorder(), monotonic=lambda: float(next(seconds)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(question: str, answer: str, identity: str = "") -> Conversation:
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation(id=identity or question, messages=messages)


@pytest.fixture
def dataset(tmp_path: Path) -> MakeDataset:
    """`dataset(examples, split=…)` → its folder."""
    numbers = itertools.count()

    def make(examples: Sequence[Example], kind: str = "", **parts: Any) -> Path:
        folder = tmp_path / f"dataset-{next(numbers)}"
        build(examples, ImportLog(kind=kind), folder, Parts(**parts), "test")
        return folder

    return make


@pytest.fixture
def reversals() -> list[Conversation]:
    """A skill the base lacks: three words of six, backwards."""
    words = ("sun", "cat", "key", "zavo", "mirut", "moon")
    triples = itertools.permutations(words, 3)
    return [pair("reverse: " + " ".join(triple), " ".join(triple[::-1])) for triple in triples]
