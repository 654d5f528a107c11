"""GGUF files where desktop programs look for them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from orchd.errors import DeploymentUnknown, DiskFull, TargetNameRefused, TargetRefused
from orchd.serve.folder import RESERVE, FolderTarget, default_folder
from orchd.serve.targets import Artefact


@pytest.fixture
def target(tmp_path: Path) -> FolderTarget:
    return FolderTarget(tmp_path / "models")


def artefact(folder: Path, text: str) -> Artefact:
    path = folder / f"{len(text)}.bin"
    path.write_text(text)
    return Artefact(path=path, sha256=hashlib.sha256(text.encode()).hexdigest(), size=len(text))


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_put_list_verify_remove(target: FolderTarget, tmp_path: Path) -> None:
    seen: list[tuple[float, float, str]] = []
    await target.put("gemma:us", artefact(tmp_path, "one"), lambda *told: seen.append(told))
    assert files(target.root) == ["orchd/gemma.us/SHA256SUMS", "orchd/gemma.us/gemma.us.gguf"]
    assert seen[-1] == (3, 3, "bytes")
    place = target.root / "orchd" / "gemma.us"
    await trio.run_process(["sha256sum", "-c", "SHA256SUMS"], cwd=place, capture_stdout=True)
    assert (await target.verify("gemma:us", ())).held
    await target.put("gemma:us", artefact(tmp_path, "three"))
    assert (place / "gemma.us.gguf").read_text() == "three"
    assert [(one.name, one.size) for one in await target.list()] == [("gemma.us", 5)]
    assert target.full_name("gemma:us") == target.full_name("Gemma.us"), "one of them is refused"
    await target.remove("gemma:us")
    assert not place.exists()
    with pytest.raises(DeploymentUnknown):
        await target.remove("gemma:us")


async def test_a_file_that_was_changed_is_noticed(target: FolderTarget, tmp_path: Path) -> None:
    await target.put("us", artefact(tmp_path, "one"))
    (target.root / "orchd" / "us" / "us.gguf").write_text("two")
    verdict = await target.verify("us", ())
    assert not verdict.held
    assert "another one" in verdict.detail


async def test_a_copy_that_is_broken_off_leaves_what_was_there(target: FolderTarget, tmp_path: Path) -> None:
    await target.put("us", artefact(tmp_path, "one"))
    before = files(target.root)
    with trio.CancelScope() as scope:
        await target.put("us", artefact(tmp_path, "three"), lambda *told: scope.cancel())
    assert scope.cancelled_caught
    assert files(target.root) == before
    assert (target.root / "orchd" / "us" / "us.gguf").read_text() == "one"


async def test_no_room(target: FolderTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=RESERVE + 2))
    with pytest.raises(DiskFull, match="3 are needed"):
        await target.put("us", artefact(tmp_path, "one"))
    assert files(target.root) == []


async def test_a_folder_that_can_not_be_written(target: FolderTarget, tmp_path: Path) -> None:
    target.root.mkdir()
    (target.root / "orchd").write_text("a file is in the way")
    with pytest.raises(TargetRefused, match="can't be written"):
        await target.put("us", artefact(tmp_path, "one"))


def test_names_and_the_default_folder(target: FolderTarget, tmp_path: Path) -> None:
    with pytest.raises(TargetNameRefused):
        target.check_name("us.")
    target.check_name("gemma:us")
    assert default_folder(tmp_path) == tmp_path / ".lmstudio" / "models"
    (tmp_path / ".cache" / "lm-studio" / "models").mkdir(parents=True)
    assert default_folder(tmp_path) == tmp_path / ".cache" / "lm-studio" / "models"
