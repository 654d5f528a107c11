"""The folder of one training: what it needs to go on after a kill, its good moments, and its curves. No torch here:
the daemon reads it too.

    last-00000120/   where it stands: adapter, optimiser, torch's random state, `state.json`. Only while it may go on.
    step-00000100/   a good moment: a PEFT folder in float32, and `checkpoint.json`
    metrics.jsonl    a line a step and a line a validation (`curves.py`)
    settled.json     the settings that were left to the plan, as it chose them before the first step

A checkpoint is a folder that is renamed into place when all of it is on the disk, so it is there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from orchd.paths import sync
from orchd.train.specs import Settled

CHECKPOINT_FILE: Final = "checkpoint.json"
METRICS_FILE: Final = "metrics.jsonl"
STATE_FILE: Final = "state.json"
SETTLED_FILE: Final = "settled.json"
GOOD: Final = "step-"
LAST: Final = "last-"
UNFINISHED: Final = "new-"


class Good(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of a training that is kept, after `tokens` tokens. Losses are nats per counted token; `validation_loss`
    None: none was put aside to validate on."""

    step: int
    epoch: float
    tokens: int
    train_loss: float
    validation_loss: float | None = None

    @property
    def order(self) -> tuple[bool, float, int]:
        """The best has the least: by validation; without one, the latest is the best."""
        if self.validation_loss is None:
            return True, 0.0, -self.step
        return False, self.validation_loss, self.step


class State(msgspec.Struct, kw_only=True):
    """`state.json`: where a training stands after `step` steps, besides its tensors. The loop changes it.

    `validated` is the step of the last validation (-1: none yet), `stale` how many validations brought nothing better,
    `skipped` how many steps had a loss that is no number, `in_a_row` how many of them in a row up to now.
    `stopped` says why no further step is taken. `identity` is a digest of the settings and of the rows' tokens.
    `compute` (a dtype's name) is what was chosen at the first start: another would be other bytes.
    """

    identity: str
    compute: str = "F32"
    step: int = 0
    tokens: int = 0
    validated: int = -1
    stale: int = 0
    skipped: int = 0
    in_a_row: int = 0
    stopped: str = ""
    goods: tuple[Good, ...] = ()


class Runs:
    """All runs of a node, a folder each below `root`, by the id of the job that began it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, run: str) -> Path:
        return self._root / run

    def list(self) -> Sequence[str]:
        """Newest first."""
        return sorted((path.name for path in self._root.glob("job_*")), reverse=True)

    def forget_before(self, time_ms: int) -> Sequence[str]:
        """Remove runs of which nothing was written since (milliseconds since 1970). Gives their names."""
        gone = [run for run in self.list() if _newest_ms(self.folder(run)) < time_ms]
        for run in gone:
            shutil.rmtree(self.folder(run), ignore_errors=True)
        return gone


def _newest_ms(folder: Path) -> float:
    return max(path.stat().st_mtime * 1000 for path in (folder, *folder.iterdir()))


def finish(folder: Path) -> None:
    """The run is over: what only going on needs is removed."""
    sweep(folder)
    for path in last_folders(folder):
        shutil.rmtree(path, ignore_errors=True)


def goods(folder: Path) -> list[Good]:
    """The good moments that a run keeps, best first; what can't be read is left out."""
    found = []
    for path in folder.glob(f"{GOOD}*/{CHECKPOINT_FILE}"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Good))
        except (OSError, msgspec.DecodeError):
            continue
    return sorted(found, key=lambda good: good.order)


def good_folder(folder: Path, step: int) -> Path:
    return folder / f"{GOOD}{step:08d}"


def forget(folder: Path, keep: Collection[int]) -> int:
    """Remove the good moments of other steps than `keep`. Gives the bytes."""
    gone = [path for path in folder.glob(f"{GOOD}*") if step_of(path) not in keep]
    freed = sum(map(size_of, gone))
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return freed


def last_folders(folder: Path) -> list[Path]:
    """Where the run can go on, latest first."""
    return sorted(folder.glob(f"{LAST}*"), reverse=True)


def chosen(folder: Path) -> State | None:
    """The latest state that can be read, for what is needed of it before the base is loaded; None before the first."""
    for path in last_folders(folder):
        try:
            return msgspec.json.decode((path / STATE_FILE).read_bytes(), type=State)
        except (OSError, msgspec.DecodeError):
            continue
    return None


def keep_settled(folder: Path, settled: Settled) -> None:
    """Raises OSError; nothing of it is left then."""
    draft = folder / f"{UNFINISHED}{SETTLED_FILE}"
    try:
        draft.write_bytes(msgspec.json.encode(settled))
        sync(draft)
        os.replace(draft, folder / SETTLED_FILE)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def settled(folder: Path) -> Settled | None:
    """What the plan chose for the run; None before."""
    try:
        return msgspec.json.decode((folder / SETTLED_FILE).read_bytes(), type=Settled)
    except (OSError, msgspec.DecodeError):
        return None


def last_folder(folder: Path, step: int) -> Path:
    return folder / f"{LAST}{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.rpartition("-")[2])


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sweep(folder: Path) -> None:
    """Remove checkpoints that a kill left half-written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when everything in it is on the disk. Raises OSError; nothing of
    it is left then. One that is there already is replaced."""
    draft = target.with_name(UNFINISHED + target.name)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for path in (*draft.iterdir(), draft):
            sync(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    sync(target.parent)
