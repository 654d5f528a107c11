"""From the word that a user gives to an offer, and from an offer to files in a folder of orchd's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from orchd.errors import OrchdError
from orchd.hub import ollama
from orchd.hub.huggingface import File, Hub, Repository
from orchd.hub.local import check_folder
from orchd.hub.offer import BF16_BYTES, F32_BYTES, GGUF, HUB, OLLAMA, Offer
from orchd.paths import sync
from orchd.registry import Base
from orchd.registry.known_bases import read

RECORD = "RECORD.json"
"""What `registry.bases` reads a licence from."""

UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class HubSource(NamedTuple):
    """`hf:ORG/NAME`, `hf:ORG/NAME/FILE.gguf`, either with `@REVISION`."""

    repository: str
    file: str
    revision: str

    @classmethod
    def of(cls, text: str) -> HubSource:
        path, _, revision = text.removeprefix(HUB).partition("@")
        org, _, rest = path.partition("/")
        name, _, file = rest.partition("/")
        return cls(f"{org}/{name}", file, revision or "main")

    @property
    def name(self) -> str:
        """What to call the base: the repository's own name, or the file's."""
        return Path(self.file).stem if self.file else self.repository.partition("/")[2]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Where the files of a folder came from."""

    source: str
    commit: str
    licence: str
    files: dict[str, str]


def look_here(path: Path) -> Offer:
    """A folder or a GGUF file. Raises `BaseUnknown`, `TensorsRefused`, `BaseHoldsPickles`, `BaseIncomplete`."""
    notes = check_folder(path) if path.is_dir() else ()
    return offer_of(read(path.stem if path.is_file() else path.name, path), str(path), notes)


def look_at_ollama(text: str) -> tuple[Offer, ollama.OllamaModel]:
    """What Ollama has. Raises `OllamaModelUnknown`, `TensorsRefused`."""
    model = ollama.find(text.removeprefix(OLLAMA))
    base = read(UNFIT.sub("-", model.name), model.blob)
    offer = offer_of(base, text, ("its file stays Ollama's: `ollama rm` takes it away from orchd, too",))
    return msgspec.structs.replace(offer, licence=model.licence), model


def offer_of(base: Base, source: str, notes: tuple[str, ...]) -> Offer:
    return Offer(
        source=source,
        name=base.name,
        form=base.form,
        size=base.size,
        files=1,
        licence=base.licence,
        parameters=base.parameters,
        memory=F32_BYTES * base.parameters,
        notes=notes,
    )


def hub_offer(source: HubSource, repository: Repository, folder: Path) -> Offer:
    """`folder` is where its files will be, or partly are."""
    here = sum(file.size for file in repository.files if _lies_there(file, folder))
    gguf = source.file.endswith(GGUF)
    parameters = repository.parameters or (0 if gguf else repository.size // BF16_BYTES)
    notes = ("gated: its makers want their terms accepted first",) if repository.gated else ()
    return Offer(
        source=f"{HUB}{repository.id}@{repository.commit[:12]}",
        name=source.name,
        form="gguf" if gguf else "folder",
        size=repository.size,
        files=len(repository.files),
        download=repository.size - here,
        licence=repository.licence,
        parameters=parameters,
        memory=F32_BYTES * parameters,
        notes=notes,
    )


async def fetch(hub: Hub, repository: Repository, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Have every file of the repository in `folder`. Raises what `Hub.fetch` does; what has come stays."""
    await trio.to_thread.run_sync(partial(folder.mkdir, parents=True, exist_ok=True))
    before = 0
    for file in repository.files:

        def tell(done: int, _: int, before: int = before) -> None:
            progress(before + done, repository.size)

        await hub.fetch(repository, file, folder / file.name, tell)
        before += file.size
    record = Record(
        source=f"{HUB}{repository.id}",
        commit=repository.commit,
        licence=repository.licence,
        files={file.name: file.sha256 or f"git:{file.git_sha1}" for file in repository.files},
    )
    await trio.to_thread.run_sync(write_record, folder, record)


def write_record(folder: Path, record: Record) -> None:
    (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    sync(folder)


def folder_of(root: Path, repository: str) -> Path:
    """Where a repository's files lie: nothing of its name is a way out of `root`."""
    return root / (UNFIT.sub("-", repository.replace("/", "--")).lstrip(".") or "base")


def why_not(error: OrchdError) -> str:
    return f"{error.message}. {error.hint}"


def _lies_there(file: File, folder: Path) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size
