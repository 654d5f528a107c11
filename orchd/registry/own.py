"""What this node alone knows, beside the adapters: data sets, training runs, joined topics, deployments."""

from __future__ import annotations

import os
import shlex
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import msgspec

from orchd.errors import (
    AmbiguousId,
    DatasetHere,
    DatasetNameTaken,
    DatasetUnknown,
    DeploymentUnknown,
    did_you_mean,
)
from orchd.paths import sync
from orchd.registry.local import Local, delete, put
from orchd.registry.local_rows import Dataset, DatasetTrash, Deployment, Run, Setting, TopicJoined
from orchd.registry.rows import DatasetRow

Clock = Callable[[], int]
TRASH_MS = 30 * 86_400_000
"""What is deleted may be had back for so long."""
SECRET = "topic.secret."
"""Before a private topic's name: the key of the setting that holds its secret."""


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """Data sets that are gone for good, or would be, and their bytes."""

    datasets: tuple[str, ...]
    bytes: int


class Datasets:
    """Data sets by content: a folder each below `root`, a row each in the index. A name stands for one of them.

    Safe to use from several threads. What is deleted keeps its folder for `TRASH_MS`.
    """

    def __init__(self, local: Local, root: Path, clock: Clock) -> None:
        self._local = local
        self._root = root
        self._clock = clock
        #: Held while folders come and go, and while a name is given.
        self._changing = threading.RLock()
        root.mkdir(parents=True, exist_ok=True)

    def add(self, row: DatasetRow, folder: Path, *, named: bool = True) -> DatasetRow:
        """Keep the folder that an import made. Content that is here already stays as it is.

        `named`: the user chose the name. Raises `DatasetNameTaken` or `DatasetHere` then; else another name is taken,
        and `warnings` say so.
        """
        with self._changing:
            known = self._local.get(Dataset, row.id)
            if known is not None and named and known.name != row.name:
                deleted = f"`orchctl dataset delete {shlex.quote(known.name)}`"
                hint = f"Use it under that name, or {deleted} first to import it as {row.name[:80]!r}."
                raise DatasetHere(f"these rows are here already, as {known.name!r}", hint=hint, field="name")
            if known is None:
                row = self._under_a_free_name(row, named=named)
            self._keep(folder, self.folder(row.id), known)
            if known is None:
                self._local.act("dataset.import", put(_kept(row)), delete(DatasetTrash, row.id))
            elif known.name != row.name:
                again = _shown(known)
                told = f"these rows were here already, as {known.name!r}"
                return msgspec.structs.replace(again, warnings=(*again.warnings, told))
            return self.get(row.id)

    def _keep(self, folder: Path, target: Path, known: Dataset | None) -> None:
        if known is not None and target.is_dir():
            shutil.rmtree(folder)
            return
        shutil.rmtree(target, ignore_errors=True)  # what is left of one that was deleted
        os.replace(folder, target)
        sync(self._root)

    def _under_a_free_name(self, row: DatasetRow, *, named: bool) -> DatasetRow:
        """The row, renamed if need be. Raises `DatasetNameTaken`."""
        taken = {other.name for other in self._local.all(Dataset) if other.id != row.id}
        if row.name not in taken:
            return row
        if named:
            hint = f"Give another name with `--name`, or `orchctl dataset delete {shlex.quote(row.name)}` first."
            raise DatasetNameTaken(f"another data set is called {row.name[:80]!r}", hint=hint, field="name")
        free = next(name for number in count(2) if (name := f"{row.name}-{number}") not in taken)
        told = f"another data set is called {row.name!r}, so this one is {free!r}"
        return msgspec.structs.replace(row, name=free, warnings=(*row.warnings, told))

    def folder(self, id: str) -> Path:
        return self._root / id

    def list(self) -> list[DatasetRow]:
        """Newest first."""
        rows = sorted(self._local.all(Dataset), key=lambda row: (row.created, row.id), reverse=True)
        return [_shown(row) for row in rows]

    def get(self, text: str) -> DatasetRow:
        """By id, unique prefix or name. Raises `DatasetUnknown` or `AmbiguousId`."""
        rows = self.list()
        found = [row for row in rows if text in (row.id, row.name)]
        if not found and len(text) >= 8:
            found = [row for row in rows if row.id.startswith(text)]
        if len(found) > 1:
            listed = ", ".join(f"{row.name[:40]!r} {row.id}" for row in found)
            hint = "Say which by its id, or by more characters of it."
            raise AmbiguousId(f"{text[:80]!r} fits {len(found)} data sets: {listed}", hint=hint, field="dataset")
        if not found:
            meant = did_you_mean(text, [row.name for row in rows])
            raise DatasetUnknown(f"no data set {text[:80]!r} is here", hint=meant, field="dataset")
        return found[0]

    # ---- deleting -----------------------------------------------------------------------------------------------

    def remove(self, id: str) -> None:
        """Into the trash: it is not found any more, and `undo` brings it back for a while."""
        trash = DatasetTrash(dataset=id, since=self._clock())
        with self._changing:
            self._local.act("dataset.delete", delete(Dataset, id), put(trash), undoable=True, urgent=True)

    def back(self, id: str) -> DatasetRow:
        """What was deleted is here again: under another name, where its own was given away meanwhile."""
        with self._changing:
            row = self.get(id)
            free = self._under_a_free_name(row, named=False)
            if free.name != row.name:
                self._local.act("dataset.rename", put(_kept(free)))
            return free

    def purge(self, *, empty_trash: bool = False, dry_run: bool = False) -> Purged:
        """Delete for good what has been in the trash for `TRASH_MS` (all of it with `empty_trash`)."""
        before = self._clock() + 1 if empty_trash else self._clock() - TRASH_MS
        with self._changing:
            gone = [row.dataset for row in self._local.where(DatasetTrash, "since < ?", (before,))]
            bytes = sum(file.stat().st_size for id in gone for file in self.folder(id).glob("*"))
            for id in () if dry_run else gone:
                self._local.act("dataset.purge", delete(DatasetTrash, id), urgent=True)
            if not dry_run:
                self._sweep()
        return Purged(datasets=tuple(gone), bytes=bytes)

    def _sweep(self) -> None:
        """Folders that are nobody's: of what was just purged, or before a crash."""
        ours = {row.id for row in self._local.all(Dataset)} | {row.dataset for row in self._local.all(DatasetTrash)}
        for folder in self._root.iterdir():
            if folder.name not in ours:
                shutil.rmtree(folder, ignore_errors=True)

    # ---- what was trained on them -------------------------------------------------------------------------------

    def add_run(self, run: Run) -> None:
        if self._local.get(Run, run.adapter) is None:
            self._local.act("run", put(run))

    def adapter_of(self, run: str) -> str | None:
        """Id of the adapter that a run (the id of the job that began it) ended with."""
        return next((row.adapter for row in self._local.where(Run, "job = ?", (run,))), None)

    def adapters_from(self, id: str) -> Sequence[str]:
        """Ids of the adapters that were trained here on a data set."""
        return [run.adapter for run in self._local.where(Run, "dataset = ?", (id,))]


def _kept(row: DatasetRow) -> Dataset:
    return Dataset(
        id=row.id,
        name=row.name,
        kind=row.kind,
        train=row.train,
        validation=row.validation,
        test=row.test,
        skipped=row.skipped,
        warnings=row.warnings,
        created=row.created_ms,
    )


def _shown(row: Dataset) -> DatasetRow:
    return DatasetRow(
        id=row.id,
        name=row.name,
        kind=row.kind,
        train=row.train,
        validation=row.validation,
        test=row.test,
        skipped=row.skipped,
        warnings=row.warnings,
        created_ms=row.created,
    )


class Topics:
    """The topics that this node has joined and joins again at each start."""

    def __init__(self, local: Local, clock: Clock) -> None:
        self._local = local
        self._clock = clock

    def add(self, name: str, secret: bytes | None = None) -> None:
        """`secret` is a private one's."""
        if self._local.get(TopicJoined, name) is None:
            kept = [put(Setting(key=SECRET + name, value=secret.hex()))] if secret else []
            self._local.act("topic.join", put(TopicJoined(name=name, joined=self._clock())), *kept, undoable=True)

    def remove(self, name: str) -> None:
        """`undo` joins it again: a private one's secret stays in the journal as long as that can be."""
        if self._local.get(TopicJoined, name) is not None:
            self._local.act("topic.leave", delete(TopicJoined, name), delete(Setting, SECRET + name), undoable=True)

    def list(self) -> list[str]:
        return [row.name for row in self._local.all(TopicJoined)]

    def secret(self, name: str) -> bytes | None:
        """Of a private topic that was joined."""
        row = self._local.get(Setting, SECRET + name)
        return bytes.fromhex(row.value) if row else None


class Deployments:
    def __init__(self, local: Local) -> None:
        self._local = local

    def put(self, deployment: Deployment) -> None:
        """Replace what has that name."""
        self._local.act("deployment.put", put(deployment))

    def list(self) -> list[Deployment]:
        """Newest first."""
        return sorted(self._local.all(Deployment), key=lambda row: (-row.created, row.name))

    def get(self, name: str) -> Deployment:
        """Raises `DeploymentUnknown`."""
        deployment = self._local.get(Deployment, name)
        if deployment is None:
            raise DeploymentUnknown(f"no deployment {name[:80]!r} is here", field="deployment")
        return deployment

    def remove(self, name: str) -> None:
        self._local.act("deployment.remove", delete(Deployment, name))
