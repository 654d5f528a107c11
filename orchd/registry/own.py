"""What this node alone knows, beside the adapters: data sets, training runs, joined topics, deployments."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from orchd.errors import AmbiguousId, DatasetUnknown, DeploymentUnknown
from orchd.registry.blobs import sync_directory
from orchd.registry.local import Local, delete, put
from orchd.registry.local_rows import Dataset, Deployment, Run, TopicJoined
from orchd.registry.rows import DatasetRow

Clock = Callable[[], int]


class Datasets:
    """Data sets by content: a folder each below `root`, a row each in the index."""

    def __init__(self, local: Local, root: Path) -> None:
        self._local = local
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(self, row: DatasetRow, folder: Path) -> DatasetRow:
        """Keep the folder that an import made. The same content again changes nothing but the name."""
        target, known = self.folder(row.id), self._local.get(Dataset, row.id)
        if known is not None and target.is_dir():
            shutil.rmtree(folder)
        else:
            shutil.rmtree(target, ignore_errors=True)  # what is left of one that was removed when a crash came
            os.replace(folder, target)
            sync_directory(self._root)
        created = row.created_ms if known is None else known.created
        self._local.act(
            "dataset.import",
            put(
                Dataset(
                    id=row.id,
                    name=row.name,
                    kind=row.kind,
                    train=row.train,
                    validation=row.validation,
                    test=row.test,
                    skipped=row.skipped,
                    warnings=row.warnings,
                    created=created,
                )
            ),
        )
        return self.get(row.id)

    def folder(self, id: str) -> Path:
        return self._root / id

    def list(self) -> list[DatasetRow]:
        """Newest first."""
        rows = sorted(self._local.all(Dataset), key=lambda row: row.created, reverse=True)
        return [_shown(row) for row in rows]

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
        self._local.act("dataset.delete", delete(Dataset, id))
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def add_run(self, run: Run) -> None:
        if self._local.get(Run, run.adapter) is None:
            self._local.act("run", put(run))

    def adapters_from(self, id: str) -> Sequence[str]:
        """Ids of the adapters that were trained here on a data set."""
        return [run.adapter for run in self._local.where(Run, "dataset = ?", (id,))]


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

    def add(self, name: str) -> None:
        if self._local.get(TopicJoined, name) is None:
            self._local.act("topic.join", put(TopicJoined(name=name, joined=self._clock())))

    def remove(self, name: str) -> None:
        if self._local.get(TopicJoined, name) is not None:
            self._local.act("topic.leave", delete(TopicJoined, name))

    def list(self) -> list[str]:
        return [row.name for row in self._local.all(TopicJoined)]


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
