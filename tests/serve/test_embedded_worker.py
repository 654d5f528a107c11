"""Which models the chat worker holds in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchd.errors import ModelNotLoaded
from orchd.serve.embedded_worker import MAX_MODELS, Models
from orchd.serve.specs import ChatSpec


@pytest.fixture
def paths(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """More models than are held."""
    monkeypatch.chdir(tmp_path)
    return [str(shutil.copy(plain, tmp_path / f"{i}.gguf")) for i in range(MAX_MODELS + 1)]


def held(models: Models) -> set[str]:
    return {Path(path).stem for path in models._engines}


def test_the_least_recently_used_one_goes(paths: list[str]) -> None:
    models = Models(ChatSpec(), threads=1)
    for path in [*paths[:-1], paths[0], paths[-1]]:
        models.borrow(path)
        models.give_back(path)
    assert held(models) == {"0", "2", "3", "4"}


def test_one_that_answers_stays(paths: list[str]) -> None:
    models = Models(ChatSpec(), threads=1)
    engines = [models.borrow(path) for path in paths]
    assert len(held(models)) == MAX_MODELS + 1
    assert models.borrow(paths[0]) is engines[0]
    models.forget(paths[1])
    assert "1" in held(models)
    models.give_back(paths[1])
    assert "1" not in held(models)


def test_what_is_asked_for_again_is_not_forgotten(paths: list[str]) -> None:
    models = Models(ChatSpec(), threads=1)
    models.borrow(paths[0])
    models.forget(paths[0])
    models.borrow(paths[0])
    models.give_back(paths[0])
    models.give_back(paths[0])
    assert held(models) == {"0"}


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotLoaded):
        Models(ChatSpec(), threads=1).borrow(str(tmp_path / "absent.gguf"))
