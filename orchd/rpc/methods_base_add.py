"""Making a base known: a folder or a GGUF file that is here, one of the Hugging Face hub, one that Ollama has."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from orchd.errors import JobCancelled, OrchdError
from orchd.hub import adding
from orchd.hub.adding import HubSource
from orchd.hub.huggingface import Hub, token
from orchd.hub.local import check_folder
from orchd.hub.offer import HUB, OLLAMA, Offer
from orchd.jobs import LocalContext
from orchd.node import Node, in_thread
from orchd.registry import Base
from orchd.registry.bases import GGUF
from orchd.registry.exchange import judge_again
from orchd.rpc import places
from orchd.rpc.methods_bases import BaseRow, base_row
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.table import Params, Result, method
from orchd.train.specs import UnpackResult, UnpackSpec

F16_BYTES = 2
FOLDERS = "-folder"
"""Ends the name of the folder that is made of a GGUF file."""


class BaseLook(Params, frozen=True, kw_only=True):
    """`path` is a Hugging Face folder or a GGUF file on this machine, `hf:ORG/NAME` (or one GGUF file of it:
    `hf:ORG/NAME/FILE.gguf`; a revision after `@`), or `ollama:NAME`. `token_file` holds a token of the hub; without it
    the daemon looks in HF_TOKEN and where `hf auth login` puts one."""

    path: str
    token_file: str = ""


class BaseAdd(BaseLook, frozen=True, kw_only=True):
    """As base.look. `unpack`: make the folder of a GGUF file that can be trained on."""

    name: str = ""
    unpack: bool = True


class Offered(Result, frozen=True, kw_only=True):
    offer: Offer


class BaseAdded(Result, frozen=True, kw_only=True):
    """`admitted` are adapters that were quarantined for want of this base, and are not any more. `unpacked` is the
    folder that was made of a GGUF file, linked to it; `notes` are what to know."""

    base: BaseRow
    admitted: list[str]
    unpacked: str | None
    notes: list[str]


@method("base.look", BaseLook, Offered, "What a base would be: its size, licence and memory. Nothing is fetched.")
async def base_look(node: Node, p: BaseLook) -> Offered:
    if p.path.startswith(HUB):
        source = HubSource.of(p.path)
        repository = await _hub(p).repository(source.repository, source.revision, source.file)
        folder = adding.folder_of(_root(node), source.repository)
        return Offered(offer=await in_thread(adding.hub_offer, source, repository, folder))
    if p.path.startswith(OLLAMA):
        return Offered(offer=(await in_thread(adding.look_at_ollama, p.path))[0])
    return Offered(offer=await in_thread(adding.look_here, await _here(p)))


@method("base.add", BaseAdd, JobStarted, "Make a base model known: a folder, a GGUF file, one of the hub or of Ollama.")
async def base_add(node: Node, p: BaseAdd) -> JobStarted:
    """What can be refused without reading much is refused at once."""
    if p.path.startswith(HUB):
        work = await _from_hub(node, p)
    elif p.path.startswith(OLLAMA):
        offer, model = await in_thread(adding.look_at_ollama, p.path)

        async def work(context: LocalContext) -> BaseAdded:
            await in_thread(model.verify)
            return await _add(node, p, p.name or offer.name, model.blob, offer.notes, offer.licence)
    else:
        path = await _here(p)
        name = p.name or (path.stem if path.suffix == ".gguf" else path.name)
        notes = await in_thread(check_folder, path) if path.is_dir() else ()

        async def work(context: LocalContext) -> BaseAdded:
            return await _add(node, p, name, path, notes)

    return JobStarted(job=(await node.jobs.submit_local("base.add", f"add the base {p.name or p.path}"[:90], work)).id)


async def _from_hub(node: Node, p: BaseAdd) -> Callable[[LocalContext], Awaitable[BaseAdded]]:
    source, hub = HubSource.of(p.path), _hub(p)
    repository = await hub.repository(source.repository, source.revision, source.file)
    folder = adding.folder_of(_root(node), source.repository)
    offer = await in_thread(adding.hub_offer, source, repository, folder)
    await in_thread(node.registry.blobs.check_room, offer.download)

    async def work(context: LocalContext) -> BaseAdded:
        await adding.fetch(hub, repository, folder, partial(_tell, context))
        path = folder / repository.files[0].name if source.file else folder
        notes = await in_thread(check_folder, folder) if not source.file else ()
        return await _add(node, p, p.name or source.name, path, (*offer.notes, *notes), repository.licence)

    return work


async def _add(
    node: Node, p: BaseAdd, name: str, path: Path, notes: tuple[str, ...], licence: str = "unknown"
) -> BaseAdded:
    """Make it known, and of a GGUF file the folder beside it."""
    base = await in_thread(node.registry.known_bases.add, name, path)
    unpacked: Base | None = None
    told = [*notes, *await in_thread(_twins, node, base)]
    if base.form == GGUF and p.unpack:
        try:
            unpacked = await _unpack(node, base, licence)
        except OrchdError as error:
            told.append(f"it can be served and not trained on: {adding.why_not(error)}")
    admitted = await in_thread(judge_again, node.registry, base.fingerprint)
    await node.join_base_topics()
    row = await in_thread(base_row, node, base)
    return BaseAdded(base=row, admitted=admitted, unpacked=unpacked.name if unpacked else None, notes=told)


def _twins(node: Node, base: Base) -> list[str]:
    """That the same weights are here under another name."""
    others = [one.name for one in node.registry.known_bases.all() if one.fingerprint == base.fingerprint]
    names = ", ".join(name for name in others if name != base.name)
    return [f"it is the same base as {names}: what is trained on one is for the other too"] if names else []


async def _unpack(node: Node, base: Base, licence: str) -> Base:
    """The folder that a worker makes of the file, known and linked; one that was made before is taken. Raises."""
    known = node.registry.known_bases
    folder = adding.folder_of(_root(node), base.name + FOLDERS)
    try:
        return await in_thread(known.folder, base.fingerprint)
    except OrchdError:
        await in_thread(node.registry.blobs.check_room, 2 * F16_BYTES * base.parameters)

    async def take(result: UnpackResult, workdir: Path) -> UnpackResult:
        def move() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(workdir / result.folder, folder)

        await in_thread(move)
        return result

    spec = UnpackSpec(
        gguf=str(base.path), licence=base.licence if licence == "unknown" else licence, source=base.fingerprint
    )
    job = await node.jobs.submit("base.unpack", spec, title=f"unpack {base.name[:80]}", on_result=take)
    ended = await node.jobs.wait(job.id)
    if ended.error is not None:
        raise ended.error.exception()
    if ended.result is None:
        raise JobCancelled(f"unpacking was cancelled; `orchctl base add {base.path}` does it again")
    made = await in_thread(known.add, base.name + FOLDERS, folder)
    await in_thread(known.link, base.name, made.name)
    return made


async def _here(p: BaseLook) -> Path:
    path = places.absolute(p.path, "path")
    await in_thread(places.folder, path, "path")
    return path


def _hub(p: BaseLook) -> Hub:
    file = places.absolute(p.token_file, "token_file") if p.token_file else None
    return Hub(token=token(file))


def _root(node: Node) -> Path:
    """Where the files of bases lie that orchd fetched or made."""
    return node.paths.data / "bases"


def _tell(context: LocalContext, done: int, total: int) -> None:
    context.progress(done, total, "bytes")
