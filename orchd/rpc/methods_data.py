"""Data sets: import, look at, delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec

from orchd import room
from orchd.errors import DatasetInUse, ParamsInvalid
from orchd.importers.conversation import Message
from orchd.node import ImportNote, Node, in_thread
from orchd.registry import DatasetRow
from orchd.rpc import places
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import NoParams, Params, Result, method
from orchd.train.specs import ImportSpec

SPLITS = ("train", "validation", "test")
PREVIEW_LIMIT = 10_000


class DatasetImport(Params, frozen=True, kw_only=True):
    """`source` is a file on this machine. `split` "test" makes every row one for scoring only.

    A `name` that is taken is refused; the file's name, where none is given, gets a number then.
    """

    source: str
    kind: str = "auto"
    name: str = ""
    split: Literal["auto", "train", "test"] = "auto"
    seed: int = 0


@method("dataset.import", DatasetImport, JobStarted, "Read a file (a chat export, JSONL) into a data set.")
async def dataset_import(node: Node, p: DatasetImport) -> JobStarted:
    source = await in_thread(_existing_file, p.source)
    await in_thread(room.for_dataset, node.registry, source)
    name = p.name or source.stem
    spec = ImportSpec(source=str(source), kind=p.kind, name=name, split=p.split, seed=p.seed)
    note = ImportNote(named=bool(p.name))
    job = await node.jobs.submit("dataset.import", spec, title=f"import {name}", note=note)
    return JobStarted(job=job.id)


def _existing_file(text: str) -> Path:
    source = places.absolute(text, "source")
    if places.folder(source, "source"):
        raise ParamsInvalid(f"{source} is a folder", hint="Name the file in it.", field="source")
    return source


class DatasetNamed(Params, frozen=True, kw_only=True):
    dataset: str


class Datasets(Result, frozen=True, kw_only=True):
    datasets: list[DatasetRow]


@method("dataset.list", NoParams, Datasets, "The data sets that this node has.")
async def dataset_list(node: Node, _: NoParams) -> Datasets:
    return Datasets(datasets=await in_thread(node.datasets.list))


@method("dataset.show", DatasetNamed, DatasetRow, "One data set.")
async def dataset_show(node: Node, p: DatasetNamed) -> DatasetRow:
    return await in_thread(node.datasets.get, p.dataset)


class DatasetPreview(Params, frozen=True, kw_only=True):
    dataset: str
    limit: int = 10


class PreviewRow(Result, frozen=True, kw_only=True):
    split: str
    messages: list[Message]


class Preview(Result, frozen=True, kw_only=True):
    rows: list[PreviewRow]


@method("dataset.preview", DatasetPreview, Preview, "The first rows of each part.")
async def dataset_preview(node: Node, p: DatasetPreview) -> Preview:
    if not 1 <= p.limit <= PREVIEW_LIMIT:
        hint = f"Give `--limit` a number from 1 to {PREVIEW_LIMIT:,}."
        raise ParamsInvalid(f"limit {p.limit} is not from 1 to {PREVIEW_LIMIT:,}", hint=hint, field="limit")
    row = await in_thread(node.datasets.get, p.dataset)
    return Preview(rows=await in_thread(_preview, node.datasets.folder(row.id), p.limit))


def _preview(folder: Path, limit: int) -> list[PreviewRow]:
    rows: list[PreviewRow] = []
    for split in SPLITS:
        rows.extend(PreviewRow(split=split, messages=messages) for messages in read_part(folder, split, limit))
    return rows


def read_part(folder: Path, split: str, limit: int) -> list[list[Message]]:
    """The first rows of one part of a data set's folder, as messages."""
    found: list[list[Message]] = []
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            if len(found) == limit:
                break
            messages = json.loads(line)["messages"]
            found.append([msgspec.convert(message, Message) for message in messages])
    return found


class Deleted(Result, frozen=True, kw_only=True):
    """`adapters` were trained on it; they stay."""

    dataset: str
    adapters: list[str]


@method("dataset.delete", DatasetNamed, Deleted, "Move a data set to the trash; for 30 days it can be had back.")
async def dataset_delete(node: Node, p: DatasetNamed) -> Deleted:
    row = await in_thread(node.datasets.get, p.dataset)
    folder = str(node.datasets.folder(row.id))
    for job in await node.unfinished_jobs():
        if isinstance(job.spec, dict) and job.spec.get("dataset") == folder:
            raise DatasetInUse(f"the job {job.id} ({job.title}) uses the data set {row.name!r}", field="dataset")
    adapters = list(await in_thread(node.datasets.adapters_from, row.id))
    await in_thread(node.datasets.remove, row.id)
    return Deleted(dataset=row.id, adapters=adapters)
