"""Everything that a training needs to go on bit-exactly after a kill, as files: no pickle, nothing half-written.

What would change the weights when it is left out (facts on training, section 7): the adapter, AdamW's moments and
step numbers, the number of steps done (the schedule and the order of the examples follow from it and the seed) and
torch's random state (dropout).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from orchd.errors import CheckpointUnfit
from orchd.lm.tensors import write_tensors
from orchd.train import runs
from orchd.train.runs import STATE_FILE, State
from orchd.train.trainee import Trainee

TENSORS_FILE: Final = "tensors.safetensors"
DIGEST_FILE: Final = "tensors.sha256"
WEIGHTS, MOMENTS, RANDOM = "adapter/", "optimizer/", "random/"


def save(folder: Path, state: State, trainee: Trainee, optimizer: torch.optim.Optimizer) -> None:
    """Write where the training stands and remove the place before it. Raises OSError; the one before stays then."""
    target = runs.last_folder(folder, state.step)
    if not target.exists():
        with runs.whole_folder(target) as draft:
            write_tensors(_tensors(trainee, optimizer), draft / TENSORS_FILE)
            (draft / DIGEST_FILE).write_text(_digest(draft / TENSORS_FILE))
            (draft / STATE_FILE).write_bytes(msgspec.json.encode(state))
    for path in runs.last_folders(folder):
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


def restore(folder: Path, identity: str, trainee: Trainee, optimizer: torch.optim.Optimizer) -> State | None:
    """Put the latest whole checkpoint into the model, the optimiser and torch's random generators; where it stands.

    None: there is no checkpoint, so the run begins. One that is damaged is removed, and the one before it is taken.
    Raises `CheckpointUnfit` when it is of other settings or other data than ``identity``.
    """
    for path in runs.last_folders(folder):
        try:
            state = msgspec.json.decode((path / STATE_FILE).read_bytes(), type=State)
            if (path / DIGEST_FILE).read_text() != _digest(path / TENSORS_FILE):
                raise SafetensorError("damaged")
            tensors = load_file(path / TENSORS_FILE)
        except (OSError, msgspec.DecodeError, SafetensorError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if state.identity != identity:
            raise CheckpointUnfit(f"the checkpoint of step {state.step} is of other settings or other data")
        _set_weights(trainee, _part(tensors, WEIGHTS))
        _set_moments(optimizer, _part(tensors, MOMENTS))
        _set_random(_part(tensors, RANDOM))
        return state
    return None


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators, uint8, by device."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _set_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _tensors(trainee: Trainee, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {
        f"{number}.{name}": tensor
        for number, one in optimizer.state_dict()["state"].items()
        for name, tensor in one.items()
    }
    parts = {WEIGHTS: trainee.weights(), MOMENTS: moments, RANDOM: random_state()}
    return {prefix + name: tensor.contiguous() for prefix, part in parts.items() for name, tensor in part.items()}


def _set_weights(trainee: Trainee, weights: dict[str, Tensor]) -> None:
    trainee.put(weights)


def _set_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def random_kept_if_stopped() -> Any:
    """A step that is stopped half-way has used up random numbers; take them back, as if it had not begun."""
    before = random_state()
    try:
        yield
    except BaseException:
        _set_random(before)
        raise
