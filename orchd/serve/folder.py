"""A folder that desktop programs look for models in: `publisher/model/file.gguf`, as LM Studio, Jan and others have it.

The file is copied beside its place, synced and renamed, so that nobody meets half of one. Such a program can't be asked
from here: what is verified is that the file is, byte for byte, the one whose answers were proven. Beside it stands its
digest as `sha256sum` writes it, which also says that orchd put it there. Source: lmstudio.ai/docs, "Import models".
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import trio

from orchd.errors import DeploymentUnknown, DiskFull, TargetNameRefused, TargetRefused
from orchd.serve.names import plain
from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact, Capabilities, Deployed, Progress, Verdict, no_progress

PUBLISHER = "orchd"
DIGEST_FILE = "SHA256SUMS"
PART = ".orchd-part"
COPY_BYTES = 4 << 20
RESERVE = 256 << 20
"""Bytes that stay free on that disk, as on orchd's own."""


def default_folder(home: Path) -> Path:
    """LM Studio's, also the older one where that is what is there."""
    older = home / ".cache" / "lm-studio" / "models"
    newer = home / ".lmstudio" / "models"
    return older if older.is_dir() and not newer.is_dir() else newer


class FolderTarget:
    """`root` is made when something is put there."""

    kind = "folder"
    stages = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def check_name(self, name: str) -> None:
        """Raises TargetNameRefused where the name could be no folder's."""
        if plain(name).startswith(".") or plain(name).endswith("."):
            raise TargetNameRefused(f"{name!r} can't be a folder's name", field="name")

    def full_name(self, name: str) -> str:
        return plain(name).casefold()

    def asked(self, name: str) -> str:
        return f"by the program that reads {self._file(name)}"

    async def probe(self) -> Capabilities:
        return Capabilities(kind=self.kind, address=str(self.root), version="")

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        """Raises DiskFull before anything is written; a copy that is broken off leaves nothing."""
        file = self._file(name)
        if await trio.to_thread.run_sync(_digest_beside, file) != artefact.sha256:
            try:
                await self._copy(artefact, file, progress)
            except OSError as error:
                raise TargetRefused(f"{file} can't be written: {error.strerror}") from error
        progress(artefact.size, artefact.size, "bytes")
        return Deployed(name=name, digest=artefact.sha256, size=artefact.size)

    async def _copy(self, artefact: Artefact, file: Path, progress: Progress) -> None:
        await trio.to_thread.run_sync(_make_room, file, artefact.size)
        part = file.with_name(PART)
        done = 0
        try:
            async with await trio.open_file(artefact.path, "rb") as source, await trio.open_file(part, "wb") as copy:
                while chunk := await source.read(COPY_BYTES):
                    await copy.write(chunk)
                    done += len(chunk)
                    progress(done, artefact.size, "bytes")
                await copy.flush()
                await trio.to_thread.run_sync(os.fsync, copy.fileno())
            beside = file.with_name(DIGEST_FILE)
            await trio.to_thread.run_sync(beside.unlink, True)  # it is of no file, rather than of the wrong one
            await trio.to_thread.run_sync(os.replace, part, file)
            await trio.to_thread.run_sync(beside.write_text, f"{artefact.sha256}  {file.name}\n")
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(part.unlink, True)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        file = self._file(name)
        wanted, found = await trio.to_thread.run_sync(_digest_beside, file), await trio.to_thread.run_sync(_hash, file)
        same = bool(wanted) and wanted == found
        told = "is, byte for byte, the one that was proven" if same else f"is another one (sha256 {found[:12]}…)"
        detail = f"the file {told}; the program that reads it was not asked"
        return Verdict(held=same, compared=1, equal=int(same), detail=detail)

    async def list(self) -> tuple[Deployed, ...]:
        return await trio.to_thread.run_sync(self._list)

    def _list(self) -> tuple[Deployed, ...]:
        files = sorted((self.root / PUBLISHER).glob("*/*.gguf"))
        return tuple(
            Deployed(name=file.parent.name, digest=_digest_beside(file), size=file.stat().st_size) for file in files
        )

    async def remove(self, name: str) -> None:
        file = self._file(name)
        if not await trio.to_thread.run_sync(file.is_file):
            raise DeploymentUnknown(f"{file} is not there", field="name")
        for one in (file.with_name(DIGEST_FILE), file):
            await trio.to_thread.run_sync(one.unlink, True)
        try:
            await trio.to_thread.run_sync(file.parent.rmdir)
        except OSError:
            return  # somebody put something else there

    def _file(self, name: str) -> Path:
        folder = self.root / PUBLISHER / plain(name)
        return folder / f"{plain(name)}.gguf"


def _make_room(file: Path, size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if free < size + RESERVE:
        raise DiskFull(f"{file.parent} has {free:,} bytes free; {size:,} are needed, beside {RESERVE:,} that stay free")


def _digest_beside(file: Path) -> str:
    """What orchd wrote beside a file that is there; empty where it did not."""
    try:
        digest, _, name = file.with_name(DIGEST_FILE).read_text(encoding="utf-8").strip().partition("  ")
    except (OSError, UnicodeDecodeError):
        return ""
    return digest if name == file.name and file.is_file() else ""


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError:
        return ""
