"""What a training changes: an adapter on a frozen base, or weights of the base itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from orchd.errors import AdapterUnfit
from orchd.lm.adapter import adapter_weights, read_weights, save_adapter, set_weights
from orchd.lm.base import Base, best_device, load_base
from orchd.lm.losses import scorer_of
from orchd.lm.whole import read_base_weights, save_base
from orchd.train.places import chosen
from orchd.train.prepare import new_adapter
from orchd.train.specs import TrainSpec

RECORD_FILE: Final = "RECORD.json"


class Trainee(Protocol):
    """``model`` computes; ``small``: copies of its weights cost next to nothing, so that they may be held in memory."""

    model: Any
    small: bool

    def weights(self) -> dict[str, Tensor]:
        """What is trained, detached float32 tensors that share the model's memory, by name."""

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of those names and shapes into the model. Raises `AdapterUnfit`."""

    def write(self, folder: Path, dtype: str) -> None:
        """A folder that others can load: an adapter, or a base."""

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The weights in a folder that `write` made."""

    def untrained(self) -> AbstractContextManager[None]:
        """In it the model computes what the base alone does."""

    def undo(self) -> None:
        """The base is as it was before anything was trained on it."""


class Adapter:
    """A LoRA on a frozen base."""

    small = True

    def __init__(self, spec: TrainSpec, base: Base) -> None:
        self._base, self.model = base, new_adapter(spec, base)

    def weights(self) -> dict[str, Tensor]:
        return adapter_weights(self.model)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        set_weights(self.model, dict(weights))

    def write(self, folder: Path, dtype: str) -> None:
        save_adapter(self.model, folder, dtype)

    def read(self, folder: Path) -> dict[str, Tensor]:
        return read_weights(folder)

    def untrained(self) -> AbstractContextManager[None]:
        found: AbstractContextManager[None] = self.model.disable_adapter()
        return found

    def undo(self) -> None:
        self.model.unload()
        if self._base.outside is not None:
            self._base.outside.leave()


class Whole:
    """All weights of a base, or those of the chosen modules and layers. It must have been loaded in float32."""

    small = False

    def __init__(self, spec: TrainSpec, base: Base) -> None:
        self.base, self.model = base, base.model
        names = chosen([name for name, _ in self.model.named_parameters()], spec.modules, spec.layers)
        self._trained = {name: self.model.get_parameter(name).requires_grad_() for name in names}

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self._trained.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        for name, own in self._trained.items():
            if name not in weights or weights[name].shape != own.shape:
                raise AdapterUnfit(f"{name} is missing or of another shape", field="base")
            own.copy_(weights[name])

    def write(self, folder: Path, dtype: str) -> None:
        save_base(self.base, folder, dtype)
        (folder / RECORD_FILE).write_text(json.dumps(record(self.base.path), indent=1) + "\n", encoding="utf-8")

    def read(self, folder: Path) -> dict[str, Tensor]:
        return read_base_weights(folder, list(self._trained))

    def before(self) -> dict[str, Tensor]:
        """What is trained, as the base's files have it: read again, so that nobody holds a copy meanwhile."""
        original = load_base(self.base.path).model
        return {name: original.get_parameter(name).detach() for name in self._trained}

    @contextmanager
    def untrained(self) -> Iterator[None]:
        now = {name: tensor.clone() for name, tensor in self.weights().items()}
        self.put(self.before())
        try:
            yield
        finally:
            self.put(now)

    def undo(self) -> None:
        self.put(self.before())
        self.model.requires_grad_(False)


def trainee_of(spec: TrainSpec, base: Base) -> Trainee:
    """Raises `TrainingRefused`, `AdapterUnfit`."""
    return Whole(spec, base) if spec.method == "full" else Adapter(spec, base)


def on_torch(spec: TrainSpec, trainee: Trainee, base: Base) -> tuple[Trainee, Base]:
    """The same adapter on torch's base, whose weights take the place of mlx's."""
    if scorer_of(base.model) is None:
        return trainee, base
    from orchd.lm.mlx_base import let_go

    let_go(base)
    whole = load_base(spec.base, base.model.dtype, best_device())
    same = trainee_of(spec, whole)
    same.put(trainee.weights())
    same.model.eval()
    return same, whole


def record(source: Path) -> dict[str, object]:
    """What stands beside the files of a base that was made here. ``private``: it is never announced."""
    try:
        licence = json.loads((source / RECORD_FILE).read_bytes()).get("licence", "unknown")
    except (OSError, ValueError, AttributeError):
        licence = "unknown"
    return {"licence": licence, "private": True}
