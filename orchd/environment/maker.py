"""`python -m orchd.environment.maker`: the process that makes an environment, or looks whether one is whole.

It talks as a worker does: the task is one line of JSON on stdin, then it says `progress`, `log`, and in the end
`result` or `error`. It is no job's worker, has the network and no sandbox, and installs wheels only, so no package's
code runs before the check imports it. When the daemon is gone its stdin closes: it ends itself and the pip that it
started.

Each step leaves what it did on the disk: what was found on the index, and every wheel that is whole. An environment is
made in a new folder and is in use when the marker names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from orchd.environment import check, marker
from orchd.environment.marker import MAKING, Marker
from orchd.environment.needs import Needs
from orchd.environment.pip import Pip
from orchd.environment.teller import Teller
from orchd.environment.wheels import Downloads, Wheel, sizes, unpacked
from orchd.errors import DiskFull, EnvironmentNotMade, OrchdError
from orchd.units import size

PTH: Final = "orchd-layer.pth"
FOUND: Final = "found.json"
KEY: Final = "for"
NICE: Final = 10
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` is the name of the environment below `root`: one to be made, or (`check`) one to be looked at.

    `reserve` is what has to stay free on the disk, in bytes."""

    root: str
    folder: str
    needs: Needs
    reserve: int = 0
    check: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`broken` says what is wrong; empty: nothing."""

    broken: str = ""
    versions: dict[str, str] = {}
    device: str = ""
    size: int = 0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the index was found to have, kept for the next try. `words` are pip's options that name the index."""

    words: tuple[str, ...]
    wheels: tuple[Wheel, ...]


def make(task: Task, teller: Teller) -> Marker:
    """Make the environment and put the marker on it. Raises `IndexUnreachable`, `EnvironmentNotMade`, `DiskFull`."""
    root, needs = Path(task.root), task.needs
    making, folder = root / MAKING, root / task.folder
    with _alone(root, teller) as lock:
        found = _begun(making, needs)
        if found is None:
            _check_disk(needs.download + needs.disk, task)
        teller.phase("making the venv")
        _make_venv(folder, needs)
        pip = Pip(folder, making, needs, teller, keep=lock)
        pip.renew()
        found = found or _look_up(pip, making, needs)
        downloads = Downloads(making / "wheels", found.wheels)
        _state_size(downloads, task, teller)
        downloads.fetch(pip, found.words, teller)
        files = [downloads.file(one) for one in found.wheels]
        _check_disk(unpacked(files), task)
        pip.install(files)
        teller.phase("checking")
        verdict = look(folder, needs, making)
        if verdict.broken:
            shutil.rmtree(making)  # whatever is wrong with it: the next try takes nothing over
            hint = "Run it again for new downloads; `orchctl environment show` says which versions were taken."
            raise EnvironmentNotMade(f"what was installed does not import: {verdict.broken}", hint=hint)
        done = _marker(task, verdict)
        marker.write(root, done)
        shutil.rmtree(making, ignore_errors=True)
    return done


def look(folder: Path, needs: Needs, temporary: Path) -> Verdict:
    """Have the environment's own Python say whether it is whole."""
    temporary.mkdir(parents=True, exist_ok=True)
    command = [str(folder / "bin" / "python"), "-P", str(Path(check.__file__)), *needs.modules]
    environment = Pip.environment(temporary) | OFFLINE | {"TORCHINDUCTOR_CACHE_DIR": str(temporary / "torchinductor")}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, cwd=temporary)
        return msgspec.json.decode(done.stdout.strip().rpartition(b"\n")[2], type=Verdict)
    except OSError as error:
        return Verdict(broken=f"its Python does not start: {error}")
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return Verdict(broken=f"its Python ended with status {done.returncode}: {last[:300]}")


def key(needs: Needs) -> str:
    """What a try can take over from an earlier one: the same packages, of the same index, for the same Python."""
    same = [*needs.requirements, needs.constraints, needs.index_url, needs.torch.build, needs.version, *needs.layer]
    return hashlib.sha256("\0".join(same).encode()).hexdigest()


def _begun(making: Path, needs: Needs) -> Found | None:
    """What an earlier try had found, where it was for the same; else its leftovers go."""
    shutil.rmtree(making / "tmp", ignore_errors=True)
    wanted = key(needs)
    try:
        same = (making / KEY).read_text(encoding="utf-8") == wanted
    except OSError:
        same = False
    if not same:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        (making / KEY).write_text(wanted, encoding="utf-8")
    found: Found | None = None
    with contextlib.suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode((making / FOUND).read_bytes(), type=Found)
    (making / "tmp").mkdir()
    return found


def _make_venv(folder: Path, needs: Needs) -> None:
    """A venv of this Python, with the daemon's packages behind its own."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.EnvBuilder(symlinks=True, with_pip=True).create(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        hint = "On Debian and Ubuntu: `apt install python3-venv`. Then run the same command again."
        raise EnvironmentNotMade(f"{sys.executable} can't make a venv in {folder}: {error}", hint=hint) from None
    base = {"base": str(folder), "platbase": str(folder)}
    layer = Path(sysconfig.get_path("purelib", "venv", base)) / PTH
    layer.write_text("".join(f"{entry}\n" for entry in needs.layer), encoding="utf-8")


def _look_up(pip: Pip, making: Path, needs: Needs) -> Found:
    """Ask the index what is to be downloaded; its answer is kept."""
    words, wheels = pip.look_up()
    found = Found(words=words, wheels=sizes(wheels))
    draft = making / f"{FOUND}.new"
    draft.write_bytes(msgspec.json.encode(found))
    os.replace(draft, making / FOUND)
    return found


def _state_size(downloads: Downloads, task: Task, teller: Teller) -> None:
    """Say what comes, before it comes. Raises `DiskFull`."""
    total, left = downloads.total, downloads.left()
    teller.log(
        f"downloads {size(left)} in {len(downloads.wheels)} packages from {task.needs.source}"
        f" ({size(total - left)} are here already); the environment then takes about {size(task.needs.disk)} in"
        f" {task.root}; torch: {task.needs.torch.build}, {task.needs.torch.why}"
    )
    _check_disk(left + task.needs.disk, task)


def _check_disk(needed: int, task: Task) -> None:
    free = shutil.disk_usage(task.root).free
    if (short := needed + task.reserve - free) > 0:
        detail = f"the training environment needs {size(needed)} more on the disk of {task.root}, where {size(free)}"
        hint = f"Free {size(short)} there, or move ORCHD_HOME to a larger disk; then run the same command again."
        raise DiskFull(f"{detail} are free; orchd leaves {size(task.reserve)} of that free", hint=hint)


def _marker(task: Task, verdict: Verdict) -> Marker:
    return Marker(
        folder=task.folder,
        versions=verdict.versions,
        torch=task.needs.torch.build,
        python=task.needs.version,
        layer=task.needs.layer,
        digest=hashlib.sha256(task.needs.constraints.encode()).hexdigest(),
        size=verdict.size,
        device=verdict.device,
    )


@contextlib.contextmanager
def _alone(root: Path, teller: Teller) -> Iterator[int]:
    """One maker at a time, also after a daemon that was killed: a pip of its holds the lock until it has ended."""
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            teller.phase("waiting for an earlier pip to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _end_with_the_daemon() -> None:
    """Wait for the end of stdin; this process and its pip are a group of their own."""
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    teller = Teller(os.dup(1))
    os.dup2(2, 1)
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    os.nice(NICE)
    try:
        task = msgspec.json.decode(line, type=Task)
        if task.check:
            temporary = Path(task.root) / "checking"
            verdict = look(Path(task.root) / task.folder, task.needs, temporary)
            shutil.rmtree(temporary, ignore_errors=True)  # before the answer, after which this process is ended
            teller.result(verdict)
        else:
            teller.result(make(task, teller))
    except OrchdError as error:
        teller.error(error)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the thread that reads stdin can't be joined
