"""What this node alone knows, beside the adapters: data sets, training runs, joined topics, deployments."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orchd.errors import AmbiguousId, DatasetUnknown, DeploymentUnknown
from orchd.registry.index import Index
from orchd.registry.rows import DatasetRow

Clock = Callable[[], int]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Which data set an adapter was trained on, in which job. `salt` (32 bytes) opens its `data_commitment`."""

    adapter: str
    dataset: str
    job: str
    salt: bytes


class Datasets:
    """Data sets by content: a folder each below `root`, a row each in the index."""

    def __init__(self, index: Index, root: Path) -> None:
        self._index = index
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(self, row: DatasetRow, folder: Path) -> DatasetRow:
        """Keep the folder that an import made. The same content again changes nothing but the name."""
        target = self.folder(row.id)
        if target.is_dir():
            shutil.rmtree(folder)
        else:
            os.replace(folder, target)
        values = msgspec.structs.astuple(row)
        self._index.execute(
            "INSERT INTO dataset(id, name, kind, train, validation, test, skipped, warnings, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET name = excluded.name",
            [list(value) if isinstance(value, tuple) else value for value in values],
        )
        return self.get(row.id)

    def folder(self, id: str) -> Path:
        return self._root / id

    def list(self) -> list[DatasetRow]:
        """Newest first."""
        rows = self._index.read(
            "SELECT id, name, kind, train, validation, test, skipped, warnings, created FROM dataset"
            " ORDER BY created DESC"
        )
        return [_dataset(row) for row in rows]

    def get(self, text: str) -> DatasetRow:
        """By id, unique prefix or unique name. Raises `DatasetUnknown` or `AmbiguousId`."""
        rows = self.list()
        found = [row for row in rows if text in (row.id, row.name)]
        if not found and len(text) >= 8:
            found = [row for row in rows if row.id.startswith(text)]
        if len(found) > 1:
            raise AmbiguousId(f"{text[:80]!r} fits {len(found)} data sets", field="dataset")
        if not found:
            raise DatasetUnknown(f"no data set {text[:80]!r} is here", field="dataset")
        return found[0]

    def remove(self, id: str) -> None:
        self._index.execute("DELETE FROM dataset WHERE id = ?", (id,))
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def add_run(self, run: Run) -> None:
        self._index.execute(
            "INSERT INTO run(adapter, dataset, job, salt) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            msgspec.structs.astuple(run),
        )

    def adapters_from(self, id: str) -> Sequence[str]:
        """Ids of the adapters that were trained here on a data set."""
        return [row[0] for row in self._index.read("SELECT adapter FROM run WHERE dataset = ? ORDER BY 1", (id,))]


def _dataset(row: tuple[object, ...]) -> DatasetRow:
    names = [field.name for field in msgspec.structs.fields(DatasetRow)]
    return msgspec.convert(dict(zip(names, row, strict=True)), DatasetRow)


class Topics:
    """The topics that this node has joined and joins again at each start."""

    def __init__(self, index: Index, clock: Clock) -> None:
        self._index = index
        self._clock = clock

    def add(self, name: str) -> None:
        self._index.execute(
            "INSERT INTO topic(name, joined) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, self._clock())
        )

    def remove(self, name: str) -> None:
        self._index.execute("DELETE FROM topic WHERE name = ?", (name,))

    def list(self) -> list[str]:
        return [row[0] for row in self._index.read("SELECT name FROM topic ORDER BY name")]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter made usable in a target.

    `blob` is the SHA-256 (hexadecimal) of its GGUF; `adapter` None stands for the plain base.
    `parity` is the verdict of the proof as JSON text; `state` is ready or removed.
    """

    name: str
    adapter: str | None
    target: str
    state: str
    base: str
    blob: str
    size: int
    quantize: str
    parity: str | None
    created: int


class Deployments:
    def __init__(self, index: Index) -> None:
        self._index = index

    def put(self, deployment: Deployment) -> None:
        """Replace what has that name."""
        names = [field.name for field in msgspec.structs.fields(Deployment)]
        sets = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self._index.execute(
            f"INSERT INTO deployment({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            f" ON CONFLICT DO UPDATE SET {sets}",
            msgspec.structs.astuple(deployment),
        )

    def list(self) -> list[Deployment]:
        names = [field.name for field in msgspec.structs.fields(Deployment)]
        rows = self._index.read(f"SELECT {', '.join(names)} FROM deployment ORDER BY created DESC, name")
        return [Deployment(**dict(zip(names, row, strict=True))) for row in rows]

    def get(self, name: str) -> Deployment:
        """Raises `DeploymentUnknown`."""
        for deployment in self.list():
            if deployment.name == name:
                return deployment
        raise DeploymentUnknown(f"no deployment {name[:80]!r} is here", field="deployment")

    def remove(self, name: str) -> None:
        self._index.execute("DELETE FROM deployment WHERE name = ?", (name,))
