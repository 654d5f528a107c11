"""Folders that somebody else filled, and models that Ollama has."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from orchd.daemon import embedded_base
from orchd.errors import BaseHoldsPickles, BaseIncomplete, DigestMismatch, OllamaModelUnknown
from orchd.hub import adding, ollama
from orchd.hub.local import check_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return base


def test_a_whole_folder_is_taken_without_a_word(folder: Path) -> None:
    assert check_folder(folder) == ()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "weights.pkl", "old.ckpt"])
def test_a_pickle_is_refused_by_name_also_beside_safetensors(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BaseHoldsPickles, match=name):
        check_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors.1234.partial", "x.incomplete", "y.crdownload", "z.aria2"])
def test_a_download_that_has_not_ended_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(BaseIncomplete, match="not ended"):
        check_folder(folder)


def test_a_pointer_of_git_lfs_is_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(BaseIncomplete) as told:
        check_folder(folder)
    assert "git lfs pull" in (told.value.hint or "")


def test_a_cut_file_tells_how_much_is_missing(folder: Path) -> None:
    shutil.copy(embedded_base() / "model.safetensors", folder)
    assert check_folder(folder) == ()
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1234)
    with pytest.raises(BaseIncomplete, match=r"model\.safetensors .* 1,234 bytes are missing"):
        check_folder(folder)


def test_missing_shards_are_counted(folder: Path) -> None:
    placed = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(BaseIncomplete, match=r"2 of 3 weight files .* 'model-2.safetensors'"):
        check_folder(folder)


def test_no_template_and_own_code_are_told(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "own.Model"}}')
    template, code = check_folder(folder)
    assert "no chat template" in template
    assert "never run" in code


GGUF = b"GGUF but only its beginning"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    def blob(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def layer(kind: str, data: bytes) -> dict[str, object]:
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": blob(data), "size": len(data)}

    def manifest(*path: str, layers: list[dict[str, object]]) -> None:
        place = tmp_path.joinpath("manifests", *path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"schemaVersion": 2, "config": layer("params", b"{}"), "layers": layers}))

    plain = [layer("model", GGUF), layer("license", b"\n Apache License\nVersion 2"), layer("template", b"t")]
    manifest("registry.ollama.ai", "library", "tiny", "latest", layers=plain)
    manifest("registry.ollama.ai", "me", "mine", "v1", layers=[*plain, layer("adapter", b"a")])
    manifest("hf.co", "org", "repo", "Q4", layers=[layer("model", GGUF)])
    return tmp_path


def find(models: Path, name: str) -> ollama.OllamaModel:
    return ollama.find(name, {"OLLAMA_MODELS": str(models)})


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "library/tiny", "registry.ollama.ai/library/tiny:latest"])
def test_the_blob_that_ollama_has_is_found_by_any_of_its_names(models: Path, name: str) -> None:
    model = find(models, name)
    assert model.blob.read_bytes() == GGUF
    assert (model.size, model.licence) == (len(GGUF), "Apache License")
    model.verify()


def test_a_model_from_another_host(models: Path) -> None:
    assert find(models, "hf.co/org/repo:Q4").licence == "unknown"


def test_a_damaged_blob_is_found_out(models: Path) -> None:
    model = find(models, "tiny")
    model.blob.write_bytes(GGUF[::-1])
    with pytest.raises(DigestMismatch) as told:
        model.verify()
    assert "ollama pull tiny" in (told.value.hint or "")


def test_half_a_blob_is_told(models: Path) -> None:
    find(models, "tiny").blob.write_bytes(GGUF[:5])
    with pytest.raises(OllamaModelUnknown, match="not whole"):
        find(models, "tiny")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "no model 'none'"),
        ("../../etc", "can be no model"),
        ("a/b/c/d", "can be no model"),
        ("me/mine:v1", "with an adapter on it"),
    ],
)
def test_what_is_no_base_of_ollama(models: Path, name: str, said: str) -> None:
    with pytest.raises(OllamaModelUnknown, match=said):
        find(models, name)


@pytest.mark.parametrize("repository", ["../../up", "/etc", "org/../..", "..", "a/b"])
def test_no_repository_leads_out_of_the_folder_of_bases(tmp_path: Path, repository: str) -> None:
    assert adding.folder_of(tmp_path, repository).resolve().parent == tmp_path.resolve()
