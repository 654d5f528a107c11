"""The curves of a training, a line a point in `metrics.jsonl`. No torch: the daemon reads them for the report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

FLUSH_SECONDS: Final = 1.0
"""Whoever watches sees points that are at most this old."""


class StepPoint(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """After one step: `loss` (nats per counted token of the batch; None: it was no number, and the step was skipped),
    `accuracy` (share of counted tokens that the model would have chosen), `rate` (learning rate), `tokens_s` (tokens
    a second, prompts included), `memory` (the most bytes this process has had)."""

    step: int
    epoch: float
    loss: float | None
    accuracy: float
    rate: float
    tokens_s: float
    memory: int


class ValidationPoint(msgspec.Struct, frozen=True, kw_only=True, tag="validation"):
    """After `step` steps, on the rows that were put aside to validate on. `loss` None: it was no number."""

    step: int
    epoch: float
    loss: float | None
    accuracy: float


Point = StepPoint | ValidationPoint
_decoder = msgspec.json.Decoder(Point)


class Curves:
    """Writes the points of one run. What is on disk may lack the last second; `sync` makes it certain."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - closed by __exit__
        self._monotonic = monotonic
        self._flushed = monotonic()

    def add(self, point: Point) -> None:
        """On a full disk points are lost, and the training goes on; `sync` says so."""
        with contextlib.suppress(OSError):
            self._file.write(msgspec.json.encode(point) + b"\n")
            if self._monotonic() - self._flushed >= FLUSH_SECONDS:
                self._flushed = self._monotonic()
                self._file.flush()

    def sync(self) -> None:
        """Everything up to now is on the disk when this returns. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def read_points(path: Path) -> list[Point]:
    """All points in order; a line that a kill tore is left out. Empty when there is no file yet."""
    found: list[Point] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            found.append(_decoder.decode(line))
        except msgspec.DecodeError:
            continue
    return found


def cut_back(path: Path, step: int, validated: int) -> list[Point]:
    """Forget the points after `step` (of validations: after `validated`): the run goes on from there. Gives those
    that stay."""
    kept = [point for point in read_points(path) if point.step <= (step if isinstance(point, StepPoint) else validated)]
    draft = path.with_name(path.name + ".new")
    with open(draft, "wb") as file:
        file.writelines(msgspec.json.encode(point) + b"\n" for point in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    return kept


def step_losses(points: Iterable[Point]) -> list[float]:
    """The training losses in order, without the skipped steps."""
    return [point.loss for point in points if isinstance(point, StepPoint) and point.loss is not None]


def validations(points: Iterable[Point]) -> list[ValidationPoint]:
    return [point for point in points if isinstance(point, ValidationPoint)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
