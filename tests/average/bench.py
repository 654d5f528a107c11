"""A job context that remembers its messages, and a way to average or verify folders in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchd.average.specs import AverageResult, AverageSpec, VerifyResult, VerifySpec, WeightedAdapter
from orchd.average.worker import run, run_verify
from orchd.jobs.context import JobContext

from .peft_folders import Lora


class Messages:
    """The pipe to the daemon, for tests: keeps what was sent, and can cancel at a given message."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.sent: list[Mapping[str, object]] = []
        self.cancel_at = cancel_at
        self.job: JobContext | None = None

    def send(self, message: Mapping[str, object]) -> None:
        self.sent.append(message)
        if self.job is not None and len(self.sent) == self.cancel_at:
            self.job.cancel()

    def receive(self) -> dict[str, object] | None:
        return None


class Bench:
    """A folder to work in: writes adapters, averages them, verifies averages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def job(self, cancel_at: int | None = None) -> tuple[JobContext, Messages]:
        workdir = self._new("job")
        workdir.mkdir()
        wire = Messages(cancel_at)
        ticks = iter(range(10**9))
        wire.job = JobContext(workdir, 1, wire, lambda: float(next(ticks)))
        return wire.job, wire

    def write(self, *adapters: Lora) -> list[Path]:
        return [adapter.write(self._new("adapter")) for adapter in adapters]

    def average(
        self, folders: Sequence[Path], weights: Sequence[float] | None = None, **spec: Any
    ) -> tuple[Path, AverageResult]:
        job, _ = self.job()
        result = run(AverageSpec(adapters=leaves(folders, weights), **({"dtype": "F32"} | spec)), job)
        return job.workdir / result.adapter, result

    def verify(
        self, claimed: Path, folders: Sequence[Path], weights: Sequence[float] | None = None, **spec: Any
    ) -> VerifyResult:
        job, _ = self.job()
        return run_verify(VerifySpec(claimed=str(claimed), leaves=leaves(folders, weights), **spec), job)

    def _new(self, kind: str) -> Path:
        self._count += 1
        return self.folder / f"{kind}-{self._count}"


def leaves(folders: Sequence[Path], weights: Sequence[float] | None = None) -> tuple[WeightedAdapter, ...]:
    """One leaf a folder; its id is the folder's name."""
    given = weights or [1.0] * len(folders)
    return tuple(
        WeightedAdapter(id=folder.name, path=str(folder), weight=weight)
        for folder, weight in zip(folders, given, strict=True)
    )
