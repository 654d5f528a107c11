"""What `make` checks before it installs anything, and when it has nothing to do. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def preflight() -> ModuleType:
    return tool("preflight")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The installer, for an empty folder with two lists in it."""
    found = tool("install")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(found, "ROOT", tmp_path)
    monkeypatch.setattr(found, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(found, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    return found


def test_this_machine_can_install(preflight: ModuleType) -> None:
    assert preflight.main("test") == 0


def test_an_old_python_is_named_with_its_package(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight.sys, "version_info", (3, 10, 13, "final", 0))
    assert preflight.main("demo") == 1
    said = capsys.readouterr().err
    assert "Python 3.10 is too old" in said
    assert "python3.11" in said
    assert "nothing was installed" in said


def test_the_checks_run_on_python_3_8(preflight: ModuleType) -> None:
    """Its grammar at least; what it calls was in 3.8's library."""
    import ast

    ast.parse((ROOT / "tools" / "preflight.py").read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("tools", "environment", "line"),
    [
        ([], {}, "a C compiler (cc) is missing: apt install gcc, dnf install gcc\n"),
        (["apt-get"], {}, "a C compiler (cc) is missing: apt install gcc\n"),
        (["cc", "apt-get"], {"CFLAGS": "-nostdinc"}, "the GMP headers (gmp.h) are missing: apt install libgmp-dev\n"),
        (["cc", "dnf"], {"CFLAGS": "-nostdinc"}, "the GMP headers (gmp.h) are missing: dnf install gmp-devel\n"),
        (["cc", "brew"], {"CFLAGS": "-nostdinc"}, "the GMP headers (gmp.h) are missing: brew install gmp\n"),
    ],
)
def test_one_line_for_each_missing_thing(
    tools: list[str], environment: dict[str, str], line: str, tmp_path: Path
) -> None:
    """With a PATH that holds these tools alone."""
    for name in tools:
        wrapper = tmp_path / name
        wrapper.write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]} exec {name if name == "cc" else "true"} "$@"\n')
        wrapper.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "preflight.py", "demo"],
        env={"PATH": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"orchd: {line}orchd: nothing was installed. Run make again when it is there.\n"


def test_a_full_disk_is_named(preflight: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ROOT", str(tmp_path))
    monkeypatch.setattr(preflight, "DISK_MB", {"demo": 2**50})
    assert "MB are needed: free some space" in preflight.check_disk("demo")


def test_no_python_at_all_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    script = tmp_path / "install.sh"
    script.write_bytes((ROOT / "tools" / "install.sh").read_bytes())
    done = subprocess.run(
        ["/bin/sh", script, "demo"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Install Python 3.11 or newer" in done.stderr


def test_a_second_run_has_nothing_to_do(install: ModuleType) -> None:
    assert not install.is_done("demo")
    install.PYTHON.parent.mkdir(parents=True)
    install.PYTHON.touch()
    install.stamp("test").touch()
    assert install.is_done("test")
    assert install.is_done("demo")
    install.stamp("test").unlink()
    install.stamp("demo").touch()
    assert not install.is_done("test")


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_another_list_means_another_run(install: ModuleType, name: str) -> None:
    install.PYTHON.parent.mkdir(parents=True)
    install.PYTHON.touch()
    install.stamp("demo").touch()
    (install.ROOT / name).write_text("changed")
    assert not install.is_done("demo")


def test_cuda_is_refused_where_there_is_no_gpu(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pip's own places nor PyTorch's index have a CPU build: then nothing is installed at all."""
    asked = []
    monkeypatch.setattr(install, "needs_cpu_build", lambda: True)
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=""))
    monkeypatch.setattr(install, "pip_quietly", lambda *arguments: bool(asked.append(arguments)))
    monkeypatch.setattr(install, "reachable", lambda url: False)
    with pytest.raises(install.Refused, match="ORCHD_TORCH=cuda"):
        install.install_torch()
    assert asked == [("--retries", "1", "--no-deps", f"torch=={install.pinned('torch')}+cpu")]


def test_the_pytorch_index_is_asked_second(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(install, "needs_cpu_build", lambda: True)
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=""))
    monkeypatch.setattr(install, "pip_quietly", lambda *arguments: False)
    monkeypatch.setattr(install, "reachable", lambda url: True)
    monkeypatch.setattr(install, "pip", lambda *arguments: asked.append(arguments))
    install.install_torch()
    assert [arguments[:2] for arguments in asked] == [("--index-url", install.CPU_INDEX)]


def test_orchd_torch_takes_what_pypi_has(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHD_TORCH", "cuda")
    assert not install.needs_cpu_build()


def test_constraints_are_exact_and_for_every_system() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert len({line.partition("==")[0].lower() for line in lines}) == len(lines)
