"""Is a full disk told before the work begins, not after it?"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchd import room
from orchd.errors import DiskFull
from orchd.registry.blobs import DISK_RESERVE
from orchd.rpc.methods_average import AverageStart, average_start
from orchd.rpc.methods_data import DatasetImport, dataset_import
from orchd.rpc.methods_exchange import AdapterImport, adapter_import
from orchd.rpc.methods_serving import DeployStart, deploy_start
from orchd.rpc.methods_training import TrainStart, train_start
from tests.helpers import Lab, lora_tensors
from tests.rpc.test_methods_training import Work


@pytest.fixture
def work(lab: Lab) -> Work:
    return Work(lab)


def _free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))


async def _train(work: Work) -> None:
    await train_start(work.node, TrainStart(dataset="mine", base="tiny"))


async def _average(work: Work) -> None:
    folders = [work.lab.folder(f"a{seed}", tensors=lora_tensors(seed)) for seed in (1, 2)]
    ids = [work.lab.admit(folder).id for folder in folders]
    work.full()
    await average_start(work.node, AverageStart(adapters=ids))


async def _dataset(work: Work) -> None:
    (file := work.lab.root / "rows.jsonl").write_text("{}" * 100)
    await dataset_import(work.node, DatasetImport(source=str(file)))


async def _adapter(work: Work) -> None:
    await adapter_import(work.node, AdapterImport(path=str(work.lab.folder("peft")), base="tiny"))


async def _deploy(work: Work) -> None:
    await deploy_start(work.node, DeployStart(name="us", base="tiny"))


@pytest.mark.parametrize("begin", [_train, _average, _dataset, _adapter, _deploy])
async def test_nothing_begins_that_would_not_fit(
    work: Work, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Work], Awaitable[None]]
) -> None:
    work.full = lambda: _free(monkeypatch, DISK_RESERVE)
    if begin is not _average:
        work.full()
    with pytest.raises(DiskFull, match="orchd leaves 268 MB of that free for its index and journal"):
        await begin(work)
    assert work.specs == []


def test_a_larger_rank_needs_more(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    base = lab.base
    matrices = [shape for name, shape in base.shapes.items() if ".layers." in name and len(shape) == 2]
    needed = sum(2 * 2 * 8 * (rows + columns) for rows, columns in matrices)
    assert needed
    _free(monkeypatch, DISK_RESERVE + needed)
    room.for_adapter(lab.registry, base, 8)
    with pytest.raises(DiskFull):
        room.for_adapter(lab.registry, base, 9)


def test_a_zip_is_counted_as_what_it_unpacks_to(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(file := tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", "[" + " " * 100_000 + "]")
    assert file.stat().st_size < 1000
    _free(monkeypatch, DISK_RESERVE + 100_000)
    with pytest.raises(DiskFull):
        room.for_dataset(lab.registry, file)
