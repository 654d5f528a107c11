"""Adapters out to a file and in from one, with no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from orchd import crafting, exporting, room
from orchd.crafting import Making
from orchd.errors import FileListRefused, OrchdError, ParamsInvalid, RecipeMismatch, did_you_mean
from orchd.jobs import LocalContext
from orchd.node import Node, in_thread
from orchd.notes import NO_LICENCE
from orchd.registry import AdapterRow, Base, exchange, mlx_folder, peft_folder
from orchd.registry.admission import CONFIG
from orchd.registry.bundle import SUFFIX
from orchd.registry.exchange import IMPORTED, Exported, Imported, TurnedAway
from orchd.rpc import places
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import Params, Result, method
from orchd.serve.specs import FORMATS

ORCHPACK = "orchpack"


class AdapterExport(Params, frozen=True, kw_only=True):
    """`path` is what to write, or a folder for something that is called after the adapter; `replace` writes over it.

    `format` is orchpack (the adapter with its lineage, to hand on), one that holds the adapter alone for another
    program (safetensors, gguf, mlx, pytorch), or with its base (merged-gguf, merged-safetensors, onnx). `quantize` is
    of merged-gguf: F32, F16, Q8_0, Q4_K_M or KEEP; `compress` zstd.
    """

    adapter: str
    path: str
    format: str = ORCHPACK
    quantize: str = ""
    compress: str = ""
    replace: bool = False


@method(
    "adapter.export", AdapterExport, JobStarted, "Write an adapter to hand it on, or for another program, also merged."
)
async def adapter_export(node: Node, p: AdapterExport) -> JobStarted:
    row = await in_thread(node.registry.adapter, p.adapter)
    if p.format in FORMATS:
        wanted = exporting.Wanted(
            format=p.format,
            path=places.absolute(p.path, "path"),
            quantize=p.quantize,
            compress=p.compress,
            replace=p.replace,
        )
        return JobStarted(job=(await exporting.start(node, row, wanted)).id)
    _check_orchpack(p)
    path = await in_thread(_target, p.path, row)

    async def work(context: LocalContext) -> Exported:
        return await in_thread(exchange.export, node.registry, row.id, path, replace=p.replace)

    return JobStarted(job=(await node.jobs.submit_local("export", f"export {row.name[:80]}", work)).id)


def _check_orchpack(p: AdapterExport) -> None:
    if p.format != ORCHPACK:
        known = (ORCHPACK, *FORMATS)
        hint = did_you_mean(p.format, known) or f"There are {', '.join(known)}."
        raise ParamsInvalid(f"there is no format {p.format[:40]!r}", hint=hint, field="format")
    for field in ("quantize", "compress"):
        if getattr(p, field):
            raise ParamsInvalid(f"{field} is not for {ORCHPACK}", hint="Give a format with `--format`.", field=field)


def _target(text: str, row: AdapterRow) -> Path:
    path = places.absolute(text, "path")
    if places.is_folder(path, "path"):
        return path / f"{exporting.harmless(row)}{SUFFIX}"
    if not places.is_folder(path.parent, "path"):
        raise ParamsInvalid(f"there is no folder {str(path.parent)!r}", field="path")
    return path


class AdapterImport(Params, frozen=True, kw_only=True):
    """`path` is a bundle, or a PEFT folder. All else is for a folder alone: this node signs it as its author.

    `base` may be left out where only one base is here; `readme` takes its README.md along.
    """

    path: str
    name: str = ""
    base: str = ""
    description: str = ""
    licence: str = ""
    readme: bool = False


class AdaptersImported(Result, frozen=True, kw_only=True):
    """`new` are the ids of those that were not here before, `records` of records that were not known."""

    adapters: list[AdapterRow]
    new: list[str]
    refused: tuple[TurnedAway, ...]
    records: tuple[str, ...]


@method(
    "adapter.import",
    AdapterImport,
    JobStarted,
    "Let in an adapter from a bundle (.orchpack) or a folder (PEFT, mlx-lm).",
)
async def adapter_import(node: Node, p: AdapterImport) -> JobStarted:
    path = places.absolute(p.path, "path")
    is_folder = await in_thread(places.folder, path, "path")
    if not is_folder and (given := [key for key in ("name", "base", "description", "licence") if getattr(p, key)]):
        raise ParamsInvalid(f"{given[0]} is for a folder; a bundle's adapters are signed already", field=given[0])

    await in_thread(room.for_copy, node.registry, path)

    async def work(context: LocalContext) -> AdaptersImported:
        def progress(done: int, total: int) -> None:
            trio.from_thread.run_sync(context.progress, done, total, "bytes")

        made = await in_thread(_folder if is_folder else _bundle, node, p, path, progress)
        for admission in made.admissions:
            if admission.new:
                node.tell_admitted(admission)
        rows, away = await _settled(node, made)
        stayed = {row.id for row in rows}
        return AdaptersImported(
            adapters=rows,
            new=[one.id for one in made.admissions if one.new and one.id in stayed],
            refused=(*made.refused, *away),
            records=made.records,
        )

    return JobStarted(job=(await node.jobs.submit_local("import", f"import {path.name[:80]}", work)).id)


async def _settled(node: Node, made: Imported) -> tuple[list[AdapterRow], list[TurnedAway]]:
    """Those that stayed, averages among them after they were recomputed, and those that were turned away for it.

    Raises the first's refusal when none stayed.
    """
    rows, refused, away = list[AdapterRow](), list[OrchdError](), list[TurnedAway]()
    for admission in made.admissions:
        try:
            rows.append(await node.recipes.settled(admission.id))
        except RecipeMismatch as error:
            refused.append(error)
            away.append(TurnedAway(id=admission.id, code=error.code, message=error.message))
    if refused and not rows:
        raise refused[0]
    return rows, away


Progress = Callable[[int, int], None]


def _bundle(node: Node, p: AdapterImport, path: Path, progress: Progress) -> Imported:
    return exchange.take_in(node.registry, path, progress)


def _folder(node: Node, p: AdapterImport, path: Path, progress: Progress) -> Imported:
    making = Making(
        name=p.name or path.name,
        description=p.description,
        base=_base(node, p.base),
        created_ms=node.clock(),
        licence=p.licence or NO_LICENCE,
    )
    with exchange.staging(node.registry) as folder:
        if mlx_folder.is_mlx(path):
            _of_mlx(node, path, folder)
        else:
            peft_folder.prepare(path, folder, readme=p.readme)
        before = exchange.imported_before(
            node.registry,
            folder,
            name=making.name,
            description=making.description,
            licence=making.licence,
            base=making.base.digest,
        )
        admission = before or crafting.admit(node.registry, node.identity, making, folder, origin=IMPORTED)
    return Imported(admissions=(admission,), refused=(), records=())


def _of_mlx(node: Node, path: Path, folder: Path) -> None:
    """What mlx-lm wrote, as a PEFT folder. Links are refused, as they are in one."""
    for name in (CONFIG, mlx_folder.MLX_WEIGHTS):
        if (path / name).is_symlink():
            raise FileListRefused(f"{path / name} can't be taken: it is a link", field="path")
    with exchange.staging(node.registry) as made:
        mlx_folder.to_peft(path, made)
        peft_folder.prepare(made, folder, readme=False)


def _base(node: Node, text: str) -> Base:
    if text:
        return node.registry.base(text)
    here = node.registry.bases()
    if len({base.digest for base in here}) != 1:
        names = ", ".join(base.name for base in here)
        raise ParamsInvalid(f"which base is it for? Here are {names}", hint="Say it with `base`.", field="base")
    return here[0]
