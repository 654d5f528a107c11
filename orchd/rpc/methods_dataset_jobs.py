"""What is made of a data set, or found out about one before it is imported: all of it in jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from orchd import room
from orchd.errors import ParamsInvalid
from orchd.jobs import LocalContext
from orchd.node import Node, in_thread
from orchd.notes import ImportNote
from orchd.registry import DatasetRow
from orchd.rpc import places
from orchd.rpc.methods_data import NearDuplicates, Secrets, Source, check_limit, existing
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import Params, method
from orchd.train.datasets.export import Exported, export
from orchd.train.datasets.specs import PrepareSpec, PreviewSpec, StatsSpec, ValidateSpec

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
FILE_NAME = re.compile(r"\A[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}\Z")


class DatasetValidate(Source, frozen=True, kw_only=True):
    """As for `dataset.import`. `list` names up to so many conversations to choose from."""

    keys_only: bool = False
    list: Annotated[int, Meta(ge=0, le=10_000)] = 0


@method(
    "dataset.validate",
    DatasetValidate,
    JobStarted,
    "What an import of a file or folder would find: errors by line with a fix, keys, personal data. Keeps nothing.",
)
async def dataset_validate(node: Node, p: DatasetValidate) -> JobStarted:
    source = await in_thread(existing, p.source)
    spec = ValidateSpec(source=str(source), reading=p.reading(), keys_only=p.keys_only, list=p.list)
    job = await node.jobs.submit("dataset.validate", spec, title=f"validate {source.name}")
    return JobStarted(job=job.id)


class DatasetPrepare(Params, frozen=True, kw_only=True):
    """`cap` is the most rows a part, drawn and shuffled by `seed`, as all are with `shuffle`; lengths are characters a
    row, 0 is no bound.

    Rows stay in the part that they are in; `reseed` divides all anew, by `seed`. `learn` says whose
    turns of the conversations are learnt; empty: as it is.
    """

    dataset: str
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    cap: Count = 0
    shuffle: bool = False
    min_characters: Count = 0
    max_characters: Count = 0
    languages: tuple[str, ...] = ()
    search: str = ""
    learn: Literal["", "assistant", "user"] = ""
    reseed: bool = False
    seed: int = 0
    secrets: Secrets = "keep"
    keys_only: bool = False
    near_duplicates: NearDuplicates = "drop"


@method(
    "dataset.prepare", DatasetPrepare, JobStarted, "Make a data set of another one: a part of it, shuffled, cleaned."
)
async def dataset_prepare(node: Node, p: DatasetPrepare) -> JobStarted:
    row = await in_thread(node.datasets.get, p.dataset)
    folder = node.datasets.folder(row.id)
    await in_thread(room.for_copy, node.registry, folder)
    spec = PrepareSpec(
        dataset=str(folder),
        name=p.name,
        made_from=row.id,
        cap=p.cap,
        shuffle=p.shuffle,
        min_characters=p.min_characters,
        max_characters=p.max_characters,
        languages=p.languages,
        search=p.search,
        learn=p.learn,
        reseed=p.reseed,
        seed=p.seed,
        secrets=p.secrets,
        keys_only=p.keys_only,
        near_duplicates=p.near_duplicates,
    )
    job = await node.jobs.submit("dataset.prepare", spec, title=f"prepare {p.name}", note=ImportNote(named=True))
    return JobStarted(job=job.id)


class DatasetPreview(Params, frozen=True, kw_only=True):
    """`limit` is rows of each part."""

    dataset: str
    base: str = "demo"
    limit: int = 2


@method(
    "dataset.preview",
    DatasetPreview,
    JobStarted,
    "The first rows exactly as a base sees them, and which tokens are learnt.",
)
async def dataset_preview(node: Node, p: DatasetPreview) -> JobStarted:
    check_limit(p.limit)
    row, base = await _with_base(node, p.dataset, p.base)
    spec = PreviewSpec(base=base, dataset=str(node.datasets.folder(row.id)), limit=p.limit)
    return JobStarted(job=(await node.jobs.submit("dataset.preview", spec, title=f"preview {row.name}")).id)


class DatasetStats(Params, frozen=True, kw_only=True):
    """Lengths are counted in the tokens of `base`."""

    dataset: str
    base: str = "demo"


@method(
    "dataset.stats", DatasetStats, JobStarted, "Lengths in a base's tokens, languages, repetitions, what would be cut."
)
async def dataset_stats(node: Node, p: DatasetStats) -> JobStarted:
    row, base = await _with_base(node, p.dataset, p.base)
    spec = StatsSpec(base=base, dataset=str(node.datasets.folder(row.id)))
    return JobStarted(job=(await node.jobs.submit("dataset.stats", spec, title=f"measure {row.name}")).id)


async def _with_base(node: Node, dataset: str, base: str) -> tuple[DatasetRow, str]:
    row = await in_thread(node.datasets.get, dataset)
    return row, str((await in_thread(node.registry.known_bases.folder, base)).path)


class DatasetExport(Params, frozen=True, kw_only=True):
    """`path` is the file to write, or a folder for a file that is called after it. `replace` writes over one."""

    dataset: str
    path: str
    replace: bool = False


@method(
    "dataset.export",
    DatasetExport,
    JobStarted,
    "Write a data set to one JSONL file; imported again, it is the same data set.",
)
async def dataset_export(node: Node, p: DatasetExport) -> JobStarted:
    row = await in_thread(node.datasets.get, p.dataset)
    path = await in_thread(_target, p.path, row)

    async def work(_: LocalContext) -> Exported:
        return await in_thread(export, node.datasets.folder(row.id), path, replace=p.replace)

    job = await node.jobs.submit_local("dataset.export", f"export {row.name[:80]}", work)
    return JobStarted(job=job.id)


def _target(text: str, row: DatasetRow) -> Path:
    path = places.absolute(text, "path")
    if places.is_folder(path, "path"):
        return path / f"{row.name if FILE_NAME.match(row.name) else row.id}.jsonl"
    if not places.is_folder(path.parent, "path"):
        raise ParamsInvalid(f"there is no folder {str(path.parent)!r}", field="path")
    return path
