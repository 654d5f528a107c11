"""Does a folder of the user's give away nothing but the adapter?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchd.errors import AdapterConfigRefused, FileListRefused, SizeRefused
from orchd.registry.admission import CONFIG, README, WEIGHTS
from orchd.registry.peft_folder import prepare
from tests.helpers import lora_config, write_adapter


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_only_the_files_of_an_adapter_are_taken(tmp_path: Path, target: Path) -> None:
    source = write_adapter(tmp_path / "made")
    for name in ("optimizer.pt", "training_args.bin", README):
        (source / name).write_text("private")
    prepare(source, target, readme=False)
    assert sorted(path.name for path in target.iterdir()) == [CONFIG, WEIGHTS]
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in (CONFIG, WEIGHTS))


def test_the_readme_comes_when_it_is_asked_for(tmp_path: Path, target: Path) -> None:
    source = write_adapter(tmp_path / "made")
    (source / README).write_text("hello")
    prepare(source, target, readme=True)
    assert (target / README).read_text() == "hello"


@pytest.mark.parametrize(
    ("base", "left"),
    [
        ("/home/ada/models/x", None),
        ("../x", None),
        ("C:\\Users\\ada\\x", None),
        ("~/x", None),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (None, None),
    ],
)
def test_a_path_of_this_machine_is_left_out(tmp_path: Path, target: Path, base: str | None, left: str | None) -> None:
    source = write_adapter(tmp_path / "made", config=lora_config(base_model_name_or_path=base))
    prepare(source, target, readme=False)
    config = json.loads((target / CONFIG).read_text())
    assert config["base_model_name_or_path"] == left
    assert config | {"base_model_name_or_path": base} == json.loads((source / CONFIG).read_text())


def test_a_link_or_a_pipe_is_no_file_of_an_adapter(tmp_path: Path, target: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for make in (lambda path: path.symlink_to(tmp_path / "secret"), os.mkfifo, os.mkdir):
        for name in (CONFIG, WEIGHTS):
            source = write_adapter(tmp_path / "made")
            (source / name).unlink()
            make(source / name)
            with pytest.raises(FileListRefused):
                prepare(source, target, readme=False)
            (source / name).rmdir() if (source / name).is_dir() else (source / name).unlink()
            for path in target.iterdir():
                path.unlink()


def test_a_folder_without_its_files_is_refused(tmp_path: Path, target: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        source = write_adapter(tmp_path / "made")
        (source / name).unlink()
        with pytest.raises(FileListRefused, match=name):
            prepare(source, target, readme=False)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 50_000, b"\xff"])
def test_a_config_that_is_no_json_is_refused(tmp_path: Path, target: Path, content: bytes) -> None:
    source = write_adapter(tmp_path / "made")
    (source / CONFIG).write_bytes(content)
    with pytest.raises(AdapterConfigRefused):
        prepare(source, target, readme=False)


def test_a_file_larger_than_any_honest_one_is_not_copied(tmp_path: Path, target: Path) -> None:
    source = write_adapter(tmp_path / "made")
    (source / CONFIG).write_bytes(b" " * ((64 << 10) + 1))
    with pytest.raises(SizeRefused):
        prepare(source, target, readme=False)
