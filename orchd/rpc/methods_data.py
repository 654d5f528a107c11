"""Data sets: bring in, look at, delete. What is made of them stands in `methods_dataset_jobs`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from orchd import room
from orchd.errors import DatasetInUse, ParamsInvalid
from orchd.importers.conversation import Message
from orchd.importers.pick import Pick, bounds
from orchd.importers.read import Reading, read_examples
from orchd.importers.source import ImportLog
from orchd.importers.turns import Learn
from orchd.jobs import LocalContext
from orchd.node import Node, in_thread
from orchd.notes import DatasetShown, ImportNote
from orchd.registry import DatasetRow
from orchd.rpc import places
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import Params, Result, method
from orchd.train.datasets.build import Care, Parts, build
from orchd.train.datasets.export import public
from orchd.train.datasets.privacy import Finding
from orchd.train.datasets.specs import ImportSpec
from orchd.train.datasets.store import FINDINGS_FILE, PARTS, ChatRow, Row, read_info, read_part
from orchd.train.datasets.worker import few

ROWS_LIMIT = 10_000
Split = Literal["auto", "train", "test"]
Secrets = Literal["ask", "redact", "drop", "keep"]
NearDuplicates = Literal["drop", "keep"]


class Source(Params, frozen=True, kw_only=True):
    """`source` is a file or folder on this machine. `format` and `kind` are found out where they are auto; `columns`
    says where the question, answer, prompt, completion or text is. The rest picks conversations: all that is given must
    fit. `ids` are beginnings; `since` and `until` are dates (2025, 2025-03, 2025-03-14; the last change, UTC).
    `learn` says whose turns of the conversations are learnt; for the user's the roles are exchanged.
    """

    source: str
    format: str = "auto"
    kind: str = "auto"
    columns: Mapping[str, str] = msgspec.field(default_factory=dict)
    ids: tuple[str, ...] = ()
    title: str = ""
    since: str = ""
    until: str = ""
    model: str = ""
    search: str = ""
    learn: Learn = "assistant"

    def reading(self) -> Reading:
        """Raises `ParamsInvalid`."""
        since, until = bounds(self.since, self.until)
        pick = Pick(
            ids=self.ids, title=self.title, since_ms=since, until_ms=until, model=self.model, search=self.search
        )
        return Reading(format=self.format, kind=self.kind, columns=dict(self.columns), pick=pick, learn=self.learn)


class DatasetImport(Source, frozen=True, kw_only=True):
    """`split` "test" makes every row one for scoring only. `secrets` says what is done with keys and personal data
    (`keys_only`: with keys alone); ask refuses the import where keys are found.

    `synthetic` says that the rows are made up, and of nobody: what is trained on them is published whatever they leak.
    A `name` that is taken is refused; the file's name, where none is given, gets a number then.
    """

    name: str = ""
    split: Split = "auto"
    seed: int = 0
    secrets: Secrets = "ask"
    keys_only: bool = False
    near_duplicates: NearDuplicates = "drop"
    synthetic: bool = False


@method(
    "dataset.import",
    DatasetImport,
    JobStarted,
    "Read a file or folder (a chat export, JSONL, CSV, text, code) into a data set.",
)
async def dataset_import(node: Node, p: DatasetImport) -> JobStarted:
    source = await in_thread(existing, p.source)
    reading = p.reading()
    await in_thread(room.for_dataset, node.registry, source)
    name = p.name or source.stem
    spec = ImportSpec(
        source=str(source),
        name=name,
        reading=reading,
        split=p.split,
        seed=p.seed,
        secrets=p.secrets,
        keys_only=p.keys_only,
        near_duplicates=p.near_duplicates,
        synthetic=p.synthetic,
    )
    note = ImportNote(named=bool(p.name))
    job = await node.jobs.submit("dataset.import", spec, title=f"import {name}", note=note)
    return JobStarted(job=job.id)


def existing(text: str) -> Path:
    """The file or folder. Raises `ParamsInvalid` where there is none."""
    source = places.absolute(text, "source")
    places.folder(source, "source")
    return source


class DatasetCreate(Params, frozen=True, kw_only=True):
    """`rows` are objects in any of the flat formats: messages, question and answer, prompt and completion, text, or
    chosen and rejected. The rest is as in `dataset.import`."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    rows: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    kind: str = "auto"
    split: Split = "auto"
    seed: int = 0
    secrets: Secrets = "ask"
    keys_only: bool = False
    near_duplicates: NearDuplicates = "drop"
    synthetic: bool = False


@method("dataset.create", DatasetCreate, JobStarted, "Make a data set of rows that come with the call.")
async def dataset_create(node: Node, p: DatasetCreate) -> JobStarted:
    async def work(_: LocalContext) -> DatasetShown:
        return await in_thread(_created, node, p)

    job = await node.jobs.submit_local("dataset.create", f"create {p.name[:80]}", work)
    return JobStarted(job=job.id)


def _created(node: Node, p: DatasetCreate) -> DatasetShown:
    """Reads the rows as the lines of a file, so that there is one way in."""
    log = ImportLog()
    work = node.paths.data / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="create-") as place:
        lines = Path(place) / "rows.jsonl"
        lines.write_bytes(b"\n".join(msgspec.json.encode(row) for row in p.rows))
        room.for_dataset(node.registry, lines)
        info = build(
            read_examples(lines, log, Reading(kind=p.kind)),
            log,
            Path(place) / "dataset",
            Parts(p.split, p.seed),
            p.name,
            Care(p.secrets, p.keys_only, p.near_duplicates == "drop"),
            synthetic=p.synthetic,
        )
        return node.keep_dataset(info, (*log.warnings, *few(info)), Path(place) / "dataset", named=True)


class DatasetNamed(Params, frozen=True, kw_only=True):
    dataset: str


class DatasetList(Params, frozen=True, kw_only=True):
    limit: int = 50
    cursor: str | None = None


class Datasets(Result, frozen=True, kw_only=True):
    """`cursor` is for the next page, None when this is the last."""

    datasets: list[DatasetRow]
    cursor: str | None


@method("dataset.list", DatasetList, Datasets, "The data sets that this node has, newest first.")
async def dataset_list(node: Node, p: DatasetList) -> Datasets:
    check_limit(p.limit)
    before = None if p.cursor is None else _place(p.cursor)
    rows = await in_thread(node.datasets.list)
    rows = [row for row in rows if before is None or (row.created_ms, row.id) < before]
    page, more = rows[: p.limit], len(rows) > p.limit
    return Datasets(datasets=page, cursor=f"{page[-1].created_ms}-{page[-1].id}" if more else None)


def _place(cursor: str) -> tuple[int, str]:
    """Where a page ended: the data set there may be deleted since. Raises `ParamsInvalid`."""
    made, _, id = cursor.partition("-")
    if not made.isdecimal() or not id:
        hint = "Give what the page before ended with, or leave it out to begin with the newest."
        raise ParamsInvalid(f"{cursor[:80]!r} is no cursor of this list", hint=hint, field="cursor")
    return int(made), id


@method("dataset.show", DatasetNamed, DatasetShown, "One data set.")
async def dataset_show(node: Node, p: DatasetNamed) -> DatasetShown:
    row = await in_thread(node.datasets.get, p.dataset)
    return await in_thread(node.dataset_shown, row)


class DatasetRows(Params, frozen=True, kw_only=True):
    dataset: str
    limit: int = 10


class RowShown(Result, frozen=True, kw_only=True):
    """One row. `fields` are those of its kind's JSONL, as an export writes them."""

    split: str
    fields: dict[str, Any]


class Rows(Result, frozen=True, kw_only=True):
    rows: list[RowShown]


@method("dataset.rows", DatasetRows, Rows, "The first rows of each part, as they are kept.")
async def dataset_rows(node: Node, p: DatasetRows) -> Rows:
    check_limit(p.limit)
    row = await in_thread(node.datasets.get, p.dataset)
    return Rows(rows=await in_thread(_rows, node.datasets.folder(row.id), p.limit))


def check_limit(limit: int) -> None:
    """Raises `ParamsInvalid`."""
    if not 1 <= limit <= ROWS_LIMIT:
        hint = f"Give `--limit` a number from 1 to {ROWS_LIMIT:,}."
        raise ParamsInvalid(f"limit {limit} is not from 1 to {ROWS_LIMIT:,}", hint=hint, field="limit")


def _rows(folder: Path, limit: int) -> list[RowShown]:
    kind = read_info(folder).kind
    return [RowShown(split=part, fields=public(row, kind)) for part in PARTS for row in first_rows(folder, part, limit)]


def first_rows(folder: Path, part: str, limit: int) -> list[Row]:
    """Of one part of a data set's folder. Raises `DatasetUnusable`."""
    return list(islice(read_part(folder, part), limit))


def conversations(folder: Path, part: str, limit: int) -> list[tuple[Message, ...]]:
    """The messages of the first rows of one part; none where the rows are no conversations."""
    return [row.messages for row in first_rows(folder, part, limit) if isinstance(row, ChatRow)]


class DatasetFindings(Params, frozen=True, kw_only=True):
    dataset: str
    limit: int = 100


class Findings(Result, frozen=True, kw_only=True):
    """`counts` of all, by kind."""

    counts: Mapping[str, int]
    findings: list[Finding]


@method(
    "dataset.findings",
    DatasetFindings,
    Findings,
    "Where in a data set there are keys and personal data that were kept.",
)
async def dataset_findings(node: Node, p: DatasetFindings) -> Findings:
    check_limit(p.limit)
    row = await in_thread(node.datasets.get, p.dataset)
    shown = await in_thread(node.dataset_shown, row)
    found = await in_thread(_findings, node.datasets.folder(row.id), p.limit)
    return Findings(counts=shown.findings, findings=found)


def _findings(folder: Path, limit: int) -> list[Finding]:
    file = folder / FINDINGS_FILE
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        return [msgspec.json.decode(line, type=Finding) for line in islice(lines, limit)]


class Deleted(Result, frozen=True, kw_only=True):
    """`adapters` were trained on it; they stay."""

    dataset: str
    adapters: list[str]


def names(spec: Any, folder: str) -> bool:
    """Whether a job's spec speaks of that folder, at whatever place: a plan holds a training's spec, a leak report
    lists several data sets."""
    if isinstance(spec, dict):
        return any(names(one, folder) for one in spec.values())
    if isinstance(spec, list | tuple):
        return any(names(one, folder) for one in spec)
    return bool(spec == folder)


@method("dataset.delete", DatasetNamed, Deleted, "Move a data set to the trash; for 30 days it can be had back.")
async def dataset_delete(node: Node, p: DatasetNamed) -> Deleted:
    row = await in_thread(node.datasets.get, p.dataset)
    folder = str(node.datasets.folder(row.id))
    for job in await node.unfinished_jobs():
        if names(job.spec, folder):
            raise DatasetInUse(f"the job {job.id} ({job.title}) uses the data set {row.name!r}", field="dataset")
    adapters = list(await in_thread(node.datasets.adapters_from, row.id))
    await in_thread(node.datasets.remove, row.id)
    return Deleted(dataset=row.id, adapters=adapters)
