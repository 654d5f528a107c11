"""What training needs, and which build of torch suits a machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from orchd.config import TrainingConfig
from orchd.environment import marker, needs
from orchd.environment.marker import Marker
from orchd.environment.wheels import Downloads, Wheel, _parts, _Watch

ROOT = Path(__file__).resolve().parents[2]
SMI = "| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: {}.4 |\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name, found first; what it does is to be written."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return program


def says(program: Path, text: str, status: int = 0) -> None:
    program.write_text(f"#!/bin/sh\ncat <<'X'\n{text}X\nexit {status}\n")
    program.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac has one build of torch")
def test_the_build_of_torch_is_that_of_the_machine(nvidia_smi: Path) -> None:
    assert needs.build_of_torch("auto", nvidia=0).build == "cpu"
    says(nvidia_smi, SMI.format(13))
    assert needs.build_of_torch("auto").build == "cuda"
    assert needs.build_of_torch("cpu").build == "cpu"
    says(nvidia_smi, SMI.format(12))
    old = needs.build_of_torch("auto")
    assert (old.build, old.local) == ("cuda12", "+cu126")
    assert "CUDA 12" in old.why
    says(nvidia_smi, "No devices were found\n", status=6)
    assert needs.build_of_torch("auto").build == "cpu"
    assert needs.build_of_torch("cuda").build == "cuda"


def test_what_is_wanted_comes_from_orchd_s_own_metadata_and_constraints() -> None:
    """The one list of versions ships in the package."""
    shipped = (resources.files("orchd") / "constraints.txt").read_text()
    assert shipped == (ROOT / "constraints.txt").read_text()
    wanted = needs.needs(TrainingConfig(torch="cpu", index_url="http://127.0.0.1:9/simple"))
    names = [one.partition("=")[0].partition("<")[0].partition(">")[0] for one in wanted.requirements]
    assert names == ["torch", "transformers", "peft", "tokenizers", "safetensors", "gguf"]
    if sys.platform == "linux":
        assert wanted.requirements[0] == f"torch=={wanted.pinned()['torch']}+cpu"
    assert wanted.source == "http://127.0.0.1:9/simple"
    assert str(ROOT) == wanted.layer[0]
    assert all(Path(one).is_dir() and not one.endswith("lib-dynload") for one in wanted.layer)


def test_a_missing_package_or_another_version_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs.lacking() == ()
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.4.0" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert needs.lacking() == ("torch==2.13.0 (2.4.0 is there)", "peft")


def test_an_environment_is_kept_until_it_does_not_fit(tmp_path: Path) -> None:
    """A pin of something that it does not hold changes nothing; one that it holds does. A GPU that is new does, too."""
    wanted = needs.needs(TrainingConfig(torch="cpu"))
    pins = wanted.pinned()
    versions = {name: pins[name] for name in ("transformers", "peft", "tokenizers", "safetensors", "gguf", "pip")}
    found = Marker(
        folder="venv-1",
        versions={**versions, "torch": f"{pins['torch']}{wanted.torch.local}"},
        torch="cpu",
        python=wanted.version,
        layer=wanted.layer,
        digest="",
        size=1,
        device="CPU",
    )
    python = marker.interpreter(tmp_path, "venv-1")
    assert not marker.usable(tmp_path, found, wanted)
    python.parent.mkdir(parents=True)
    python.touch()
    marker.write(tmp_path, found)
    assert marker.read(tmp_path) == found
    replace = msgspec.structs.replace
    text = wanted.constraints
    assert marker.usable(tmp_path, found, wanted)
    assert marker.usable(tmp_path, found, replace(wanted, constraints=text.replace("ruff==", "ruff==9")))
    assert not marker.usable(tmp_path, found, replace(wanted, constraints=text.replace("peft==", "peft==9")))
    assert not marker.usable(tmp_path, found, replace(wanted, version="cpython-399 /usr"))
    gpu = replace(wanted, torch=replace(wanted.torch, build="cuda", local=""))
    assert not marker.usable(tmp_path, found, gpu)
    assert marker.usable(tmp_path, replace(found, torch="cuda"), replace(wanted, torch=needs.build_of_torch("auto", 0)))


class Teller:
    def __init__(self) -> None:
        self.told: list[tuple[float, float, str]] = []

    def phase(self, step: str, done: float = 0, total: float = 0, package: str = "") -> None:
        self.told.append((done, total, package))


def test_a_wheel_that_is_not_whole_is_fetched_again(tmp_path: Path) -> None:
    """By its digest; where the index gives none, by its size."""
    text = b"whole"
    one = Wheel(name="a", version="1", file="a.whl", url="", sha256=hashlib.sha256(text).hexdigest(), size=5)
    two = msgspec.structs.replace(one, name="b", file="b.whl", sha256="")
    downloads = Downloads(tmp_path, [one, two])
    assert downloads.left() == downloads.total == 10
    for wheel in (one, two):
        downloads.file(wheel).write_bytes(text)
    assert downloads.missing() == []
    downloads.file(one).write_bytes(b"other")
    assert downloads.missing() == [one]
    downloads.file(two).write_bytes(b"cut")
    assert downloads.left() == 10


def test_big_wheels_are_fetched_alone_and_what_pip_says_is_counted() -> None:
    def one(name: str, size: int, sha256: str = "00") -> Wheel:
        return Wheel(name=name, version="1", file=f"{name}-1-x.whl", url="", sha256=sha256, size=size)

    wheels = [one("big", 30_000_000), one("small", 10), one("other", 20), one("odd", 5, "")]
    parts = [[each.name for each in part] for part in _parts(wheels)]
    assert parts == [["small", "other"], ["big"], ["odd"]]
    teller = Teller()
    watch = _Watch(wheels, 7, 30_000_035, teller)  # type: ignore[arg-type]
    for line in ("Collecting small==1\n", "  Downloading small-1-x.whl (10 B)\n", "Progress 4 of 10\n"):
        watch(line)
    watch("  Downloading https://host/path/other-1-x.whl (20 B)\n")
    watch("Progress 20 of 20\n")
    assert [(done, package) for done, _, package in teller.told] == [
        (7, "small 1"),
        (11, "small 1"),
        (17, "other 1"),
        (37, "other 1"),
    ]
