"""Installs orchd and what it needs into .venv, once for the same pyproject.toml and constraints.txt.

usage: python3.11 tools/install.py [--done] demo|test      `--done` only asks whether there is nothing to do
`demo` is what running needs (extras train and serve), `test` adds the developer's tools.

torch comes first and alone: on Linux PyPI's torch brings gigabytes of CUDA, so that a machine without an NVIDIA GPU
gets the CPU build, from where pip is told to look (find-links, an own index) or from download.pytorch.org. Where
neither has it, nothing is installed. ORCHD_TORCH=cuda takes PyPI's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
LOG_LINES_SHOWN = 30
TOLD = ("Collecting", "Processing", "  Building wheel", "Installing collected")
EXTRAS = {"demo": "train,serve", "test": "train,serve,mlx,dev"}
IMPLIED = {"demo": ["test"], "test": []}  # whoever has the tests' things has the demo's
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 10
MAC_PREFIXES = ("/opt/homebrew", "/usr/local")  # where brew puts gmp.h, which Apple's compiler does not search


def main(arguments: list[str]) -> int:
    what = arguments[-1]
    if "--done" in arguments:
        return 0 if is_done(what) else 1
    try:
        make_venv()
        install_torch()
        print(
            f"orchd: installing into .venv (extras {EXTRAS[what]}); takes minutes, {LOG} says what it does", flush=True
        )
        # A plain .pth line instead of an import hook, which would cost each start of orchctl 10 ms.
        pip("-c", "constraints.txt", "--config-settings", "editable_mode=compat", "-e", f".[{EXTRAS[what]}]")
    except subprocess.CalledProcessError as error:
        end = "\n".join(LOG.read_text(encoding="utf-8").splitlines()[-LOG_LINES_SHOWN:]) if LOG.exists() else ""
        command = " ".join(map(str, error.cmd))
        print(f"{end}\norchd: the installation failed ({LOG}): {command}\nRun make again to go on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\norchd: interrupted. Run make again to go on.", file=sys.stderr)
        return 130
    except Refused as refused:
        print(f"orchd: {refused}", file=sys.stderr)
        return 1
    stamp(what).touch()
    return 0


class Refused(Exception):
    """Nothing was installed, for this reason."""


def is_done(what: str) -> bool:
    return PYTHON.exists() and any(stamp(name).exists() for name in [what, *IMPLIED[what]])


def stamp(what: str) -> Path:
    """An empty file in .venv whose name tells what was installed there, from which lists."""
    text = b"\0".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return VENV / f".orchd-{what}-{hashlib.sha256(text + str(ROOT).encode()).hexdigest()[:16]}"


def make_venv() -> None:
    """A working .venv of this Python; one that is damaged or was moved is made anew."""
    works = PYTHON.exists() and subprocess.run(
        [PYTHON, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"], stderr=subprocess.DEVNULL
    )
    if works and works.returncode == 0:
        return
    if VENV.exists():
        shutil.rmtree(VENV)
    print(f"orchd: making .venv with Python {platform.python_version()}", flush=True)
    run([sys.executable, "-m", "venv", str(VENV)])


def install_torch() -> None:
    """torch in the pinned version, as a CPU build on Linux without an NVIDIA GPU."""
    version = pinned("torch")
    has = subprocess.run(
        [PYTHON, "-c", "import importlib.metadata as m; print(m.version('torch'))"], capture_output=True, text=True
    )
    if has.stdout.strip().split("+")[0] == version or not needs_cpu_build():
        return
    print(f"orchd: installing torch {version} (CPU)", flush=True)
    wanted = ["--no-deps", f"torch=={version}+cpu"]
    if pip_quietly("--retries", "1", *wanted):
        return
    if reachable(f"{CPU_INDEX}/torch/"):
        pip("--index-url", CPU_INDEX, *wanted)
        return
    raise Refused(
        f"no CPU build of torch {version} for Python {platform.python_version()} was found: not where pip looks, and "
        f"{CPU_INDEX} does not answer. PyPI's build brings gigabytes of CUDA. Put the wheel torch-{version}+cpu into a "
        "folder and set PIP_FIND_LINKS to it, or set ORCHD_TORCH=cuda to take PyPI's."
    )


def needs_cpu_build() -> bool:
    has_gpu = os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi")
    return sys.platform == "linux" and not has_gpu and os.environ.get("ORCHD_TORCH") != "cuda"


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise Refused(f"constraints.txt does not pin {name}")
    return found[1]


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


def pip(*arguments: str) -> None:
    run(pip_command(*arguments))


def pip_quietly(*arguments: str) -> bool:
    """Whether pip could install it; what it says goes nowhere."""
    return subprocess.run(pip_command("--quiet", *arguments), env=environment(), capture_output=True).returncode == 0


def pip_command(*arguments: str) -> list[str]:
    fixed = ["--disable-pip-version-check", "--progress-bar", "off"]
    return [str(PYTHON), "-m", "pip", "install", *fixed, *arguments]


def run(command: list[str]) -> None:
    """Run it; what it says goes to the log, and on a terminal one line shows which package it is at."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if sys.stdout.isatty() and line.startswith(TOLD):
                    print(f"\r\x1b[K  {line.strip()[:70]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def environment() -> dict[str, str]:
    """This one's, with brew's folders for the compiler on a Mac."""
    found = dict(os.environ)
    if sys.platform == "darwin":
        for prefix in MAC_PREFIXES:
            if os.path.exists(f"{prefix}/include/gmp.h"):
                found["CFLAGS"] = f"{found.get('CFLAGS', '')} -I{prefix}/include"
                found["LDFLAGS"] = f"{found.get('LDFLAGS', '')} -L{prefix}/lib"
                break
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
