"""What training needs, what this Python has of it, and which build of torch suits this machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import orchd
from orchd.config import TrainingConfig

EXTRA: Final = "train"
APPLE_EXTRA: Final = "mlx"
BESIDE: Final = {"serve": ("gguf",)}
"""Of other extras, what workers with torch need too: reading a base from a GGUF file, and writing one."""

MODULES: Final = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "orchd.train.loop",
    "orchd.train.evaluate",
)
"""What has to import in an environment that is said to be whole."""

CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
CUDA_12_INDEX: Final = "https://download.pytorch.org/whl/cu126"
CUDA: Final = 13
"""The major version of CUDA that the pinned torch on PyPI brings; an older driver needs another build."""

NVIDIA_SECONDS: Final = 10
DRIVER = re.compile(r"CUDA[^:\n]*Version:\s*(\d+)\.")

SIZES: Final = {"cpu": (235, 1_250), "cuda": (2_800, 7_000), "cuda12": (2_800, 7_000), "apple": (220, 1_000)}
"""Megabytes to download, and on the disk in the end, by build; said before the index is asked, which knows better.

cpu was measured on Linux; what cuda downloads was summed up from the index, and the rest is estimated from above.
"""

MEGABYTE: Final = 1_000_000


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """A build of torch: its name in `SIZES`, the local version that its wheels have (`+cpu`; empty: PyPI's own), where
    they lie besides, and why it is this one."""

    build: str
    local: str
    index: str
    why: str


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment for this machine holds. `requirements` are pip's, torch's first; `constraints` is the text of
    the file that pins versions; `layer` are folders of the daemon's packages; `python` is the daemon's."""

    requirements: tuple[str, ...]
    constraints: str
    torch: Torch
    index_url: str
    python: str
    version: str
    layer: tuple[str, ...]
    modules: tuple[str, ...] = MODULES

    @property
    def download(self) -> int:
        """Bytes, about."""
        return SIZES[self.torch.build][0] * MEGABYTE

    @property
    def disk(self) -> int:
        """Bytes in the end, about."""
        return SIZES[self.torch.build][1] * MEGABYTE

    @property
    def source(self) -> str:
        return self.index_url or "the package index that pip is set up for"

    def pinned(self) -> dict[str, str]:
        """Versions by name, as the constraints have them."""
        return dict(_pins(self.constraints))


def needs(config: TrainingConfig) -> Needs:
    """What this machine's environment would hold."""
    torch = build_of_torch(config.torch)
    constraints = (resources.files("orchd") / "constraints.txt").read_text(encoding="utf-8")
    return Needs(
        requirements=tuple(_wanted(torch, dict(_pins(constraints)))),
        constraints=constraints,
        torch=torch,
        index_url=config.index_url or "",
        python=sys.executable,
        version=this_python(),
        layer=tuple(layer()),
    )


def lacking() -> tuple[str, ...]:
    """What training needs and this Python has not, or in another version. Imports none of it."""
    return tuple(filter(None, map(_lack, _of_extra(EXTRA))))


def this_python() -> str:
    """An environment made by another one is not ours: its compiled packages may not load."""
    return f"{sys.implementation.cache_tag} {sys.base_prefix}"


def layer() -> Iterator[str]:
    """The folders that this Python takes packages from, orchd's own first, without those of the standard library."""
    paths = sysconfig.get_paths()
    own = str(Path(orchd.__file__).resolve().parents[1])
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    for entry in dict.fromkeys((own, *sys.path)):
        folder = os.path.abspath(entry)
        standard = folder == paths["stdlib"] or folder == paths["platstdlib"] or folder.endswith(zipped)
        if entry and not standard and not folder.endswith("lib-dynload") and os.path.isdir(folder):
            yield folder


def build_of_torch(setting: str, nvidia: int | None = None) -> Torch:
    """The build for this machine; `nvidia` is the driver's major version of CUDA (None: `nvidia-smi` is asked, 0: no
    NVIDIA GPU)."""
    if sys.platform == "darwin":
        return Torch(build="apple", local="", index="", why="a Mac: torch computes on its GPU by Metal (MPS)")
    cuda = (driver() if nvidia is None else nvidia) if setting != "cpu" else 0
    if setting == "cuda" and not cuda:
        return Torch(build="cuda", local="", index="", why="the setting training.torch says so")
    if not cuda:
        why = "the setting training.torch says so" if setting == "cpu" else "no NVIDIA GPU: `nvidia-smi` shows none"
        return Torch(build="cpu", local="+cpu", index=CPU_INDEX, why=why)
    if cuda < CUDA:
        why = f"an NVIDIA GPU whose driver has CUDA {cuda}"
        return Torch(build="cuda12", local="+cu126", index=CUDA_12_INDEX, why=why)
    return Torch(build="cuda", local="", index="", why=f"an NVIDIA GPU whose driver has CUDA {cuda}")


def driver() -> int:
    """The major version of CUDA that the NVIDIA driver has; 0 where there is no GPU or no driver that works."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        told = subprocess.run([program], capture_output=True, text=True, timeout=NVIDIA_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    found = DRIVER.search(told)
    return int(found[1]) if found else 0


def fits(versions: Mapping[str, str], wanted: Needs) -> bool:
    """Whether these versions of packages are what is wanted now, after an update of orchd."""
    pins = wanted.pinned()
    held = {_plain(name): version for name, version in versions.items()}
    if any(not _matches(f"=={pins[name]}", version) for name, version in held.items() if name in pins):
        return False
    asked = [Requirement(text) for text in wanted.requirements]
    return all(_matches(_public(one.specifier), held.get(_plain(one.name), "")) for one in asked)


def _wanted(torch: Torch, pins: Mapping[str, str]) -> Iterator[str]:
    extras = (EXTRA, APPLE_EXTRA) if sys.platform == "darwin" else (EXTRA,)
    found = [one for extra in extras for one in _of_extra(extra)]
    found += [one for extra, names in BESIDE.items() for one in _of_extra(extra) if one.name in names]
    for one in sorted(found, key=lambda one: one.name != "torch"):
        if one.name == "torch" and torch.local:
            yield f"torch=={pins['torch']}{torch.local}"
        else:
            yield str(one).partition(";")[0].strip()


def _of_extra(extra: str) -> Iterator[Requirement]:
    """What orchd's own metadata says for this machine."""
    for text in importlib.metadata.requires("orchd") or ():
        one = Requirement(text)
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""}):
            yield one


def _lack(one: Requirement) -> str:
    try:
        version = importlib.metadata.version(one.name)
    except importlib.metadata.PackageNotFoundError:
        return one.name
    return "" if _matches(str(one.specifier), version) else f"{one.name}{one.specifier} ({version} is there)"


def _matches(specifier: str, version: str) -> bool:
    return bool(version) and SpecifierSet(specifier).contains(Version(version), prereleases=True)


def _public(specifier: SpecifierSet) -> str:
    """Without the local version: the build of torch is compared by its name."""
    return ",".join(str(one).partition("+")[0] for one in specifier)


def _pins(constraints: str) -> Iterator[tuple[str, str]]:
    for line in constraints.splitlines():
        name, equals, version = line.partition("==")
        if equals and not line.startswith("#"):
            yield _plain(name), version.strip()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
