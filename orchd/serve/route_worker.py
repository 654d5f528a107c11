"""The `route` worker: holds the lower half of one base, and says which adapter a request is for.

It reads one command after another and answers each; a decision takes a few milliseconds. What the base's public prompts
come to is computed once and kept in the work folder, so that the next worker is ready at once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from orchd.errors import JobFailed, OrchdError
from orchd.jobs.context import JobContext
from orchd.lm.routing import SIZE, Vector
from orchd.serve.half import Reader
from orchd.serve.router import Shelf
from orchd.serve.routes import (
    KEPT,
    Answer,
    Average,
    Averaged,
    Choose,
    Chosen,
    Command,
    Failed,
    Look,
    Looked,
    RouteEnd,
    RouteSpec,
    Shelve,
    Shelved,
    packed,
)


def run(spec: RouteSpec, job: JobContext) -> RouteEnd:
    """Serve until the daemon closes the pipe. Raises BaseNotSupported, WeightsUnreadable."""
    desk = RouteDesk(Reader(Path(spec.base)), spec, job.workdir)
    while (message := job.receive()) is not None:
        job.send(msgspec.to_builtins(desk.answer(msgspec.convert(message, Command))))
    return RouteEnd(decisions=desk.decisions)


class RouteDesk:
    """Answers commands. Until the first `Shelve` only the base takes part."""

    def __init__(self, reader: Reader, spec: RouteSpec, folder: Path) -> None:
        self.decisions = 0
        self._reader = reader
        self._public = public_vectors(reader, spec, folder)
        self._shelf = Shelf(self._public, (), reader.layer)

    def answer(self, command: Command) -> Answer:
        """An error of one request is its answer."""
        try:
            return self._answered(command)
        except OrchdError as error:
            number = command.request
            return Failed(request=number, code=error.code, message=error.message, hint=error.hint, field=error.field)
        except Exception as error:
            failed = JobFailed(f"{type(error).__name__}: {error}")
            return Failed(request=command.request, code=failed.code, message=failed.message)

    def _answered(self, command: Command) -> Answer:
        match command:
            case Shelve():
                self._shelf = Shelf(self._public, command.entries, self._reader.layer, command.lessons)
                return Shelved(request=command.request, left_out=tuple(self._shelf.left_out))
            case Choose():
                return self._chosen(command)
            case Look():
                return Looked(request=command.request, data=packed(self._reader.read(command.text).vector))
            case Average():
                vectors = np.stack([self._reader.read(text).vector for text in command.texts])
                centroid, spread = (_whole(part) for part in (vectors.mean(0), vectors.std(0)))
                return Averaged(request=command.request, layer=self._reader.layer, centroid=centroid, spread=spread)

    def _chosen(self, command: Choose) -> Chosen:
        started = time.perf_counter()
        seen = self._reader.read(command.text)
        decision = msgspec.structs.replace(self._shelf.decide(seen.vector), tokens=seen.tokens, cut=seen.cut)
        self.decisions += 1
        return Chosen(request=command.request, decision=decision, ms=(time.perf_counter() - started) * 1000)


def public_vectors(reader: Reader, spec: RouteSpec, folder: Path) -> list[Vector]:
    """Of each group of public prompts, float32 (prompts, `SIZE`): those that were kept, or computed and kept."""
    path = folder / f"public-{spec.key}"
    counts = [len(group) for group in spec.public]
    vectors = _kept(path, sum(counts))
    if vectors is None:
        vectors = np.stack([reader.read(text).vector for group in spec.public for text in group])
        draft = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):  # a full disk: computed again the next time
            draft.write_bytes(vectors.astype("<f4").tobytes())
            os.replace(draft, path)
    return np.split(vectors, np.cumsum(counts)[:-1])


def _kept(path: Path, count: int) -> Vector | None:
    """None where there is nothing, or not all of it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != count * SIZE * 4:
        return None
    vectors = np.frombuffer(data, "<f4").reshape(count, SIZE)
    return vectors if bool(np.isfinite(vectors).all()) else None


def _whole(numbers: Sequence[float] | Vector) -> tuple[int, ...]:
    return tuple(round(float(one) * KEPT) for one in numbers)
