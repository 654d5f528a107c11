"""What an average, or anything else that changes the demo base, loses on rows; and PEFT folders as dense changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.average.pool import BASE, RANK, Rows
from orchd.average.adapter import Adapter
from orchd.average.gram import Matrix
from orchd.lm.base import Base, context_length, load_base
from orchd.lm.chat import Encoded
from orchd.lm.losses import conversation_scores
from orchd.train.datasets.encode import encode_fitting
from orchd.train.datasets.store import to_row

Delta = dict[str, Matrix]
"""ΔW by the base's module name, (rows, columns) float64."""
STRENGTHS: Final = (0.25, 0.4, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
DENSITIES: Final = (0.2, 0.5, 0.8)
PEFT_WAYS: Final = ("linear", "svd", "ties", "dare_linear", "dare_ties")
ALPHA: Final = 2.0 * RANK


class Tuned(NamedTuple):
    """The best strength by validation, and what it loses there and on the test rows."""

    strength: float
    validation: float
    test: float


class Judge:
    """The demo base with rows to validate on and rows to score on. Losses are nats a counted token."""

    def __init__(self, validation: Rows, test: Rows) -> None:
        self.base: Base = load_base(BASE)
        self.validation, self.test = self._encoded(validation), self._encoded(test)
        self._plain = {
            name.removesuffix(".weight"): values.detach().clone() for name, values in self.base.model.named_parameters()
        }

    def loss(self, delta: Mapping[str, Matrix], rows: Sequence[Encoded], strength: float = 1.0) -> float:
        sums, _ = self._scores(delta, rows, strength)
        found = sum(sums) / sum(one.counted_tokens for one in rows)
        return found if np.isfinite(found) else 1e3

    def tuned(self, *deltas: Mapping[str, Matrix], strengths: Sequence[float] = STRENGTHS) -> Tuned:
        """Of several forms of one method (densities, say), each at every strength, what validates best."""
        tried = [(self.loss(one, self.validation, by), at, by) for at, one in enumerate(deltas) for by in strengths]
        validation, at, strength = min(tried)
        return Tuned(strength, validation, self.loss(deltas[at], self.test, strength))

    def _scores(
        self, delta: Mapping[str, Matrix], rows: Sequence[Encoded], strength: float
    ) -> tuple[list[float], list[int]]:
        for name, change in delta.items():
            self._set(name, self._plain[name] + torch.from_numpy(strength * change).float())
        try:
            return conversation_scores(self.base.model, rows)
        finally:
            for name in delta:
                self._set(name, self._plain[name])

    def _set(self, name: str, values: torch.Tensor) -> None:
        self.base.model.get_submodule(name).weight.data = values

    def _encoded(self, rows: Rows) -> list[Encoded]:
        longest = context_length(BASE)
        return [one for row in rows for one in encode_fitting(self.base.tokenizer, to_row(row), longest)]


def delta_of(folder: Path) -> Delta:
    """Of a PEFT folder."""
    with Adapter(folder) as adapter:
        found = {name: adapter.factors(name) for name in adapter.modules}
    return {name: one.scale * (one.b.astype(np.float64) @ one.a.astype(np.float64)) for name, one in found.items()}


def factorwise(folders: Sequence[Path]) -> Delta:
    """Federated averaging of adapters as it is commonly done: A and B, each by itself."""
    total: dict[str, tuple[Matrix, Matrix, float]] = {}
    for folder in folders:
        with Adapter(folder) as adapter:
            for name in adapter.modules:
                one = adapter.factors(name)
                b, a, _ = total.get(name, (np.zeros(one.b.shape), np.zeros(one.a.shape), 0.0))
                total[name] = (b + one.b / len(folders), a + one.a / len(folders), one.scale)
    return {name: scale * (b @ a) for name, (b, a, scale) in total.items()}


def peft(folders: Sequence[Path], way: str, density: float | None) -> Delta:
    """`add_weighted_adapter` of PEFT with equal weights that sum to 1."""
    torch.manual_seed(0)
    model = _peft_model(folders)
    names = [str(at) for at in range(len(folders))]
    options: dict[str, Any] = {"density": density} if density is not None else {}
    options |= {"svd_rank": RANK} if way == "svd" else {}
    model.base_model.add_weighted_adapter(names, [1 / len(names)] * len(names), "all", combination_type=way, **options)
    found: Delta = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "all" in module.lora_A:
            b, a = (factors["all"].weight.detach().double().numpy() for factors in (module.lora_B, module.lora_A))
            found[name] = module.scaling["all"] * (b @ a)
    return found


def _peft_model(folders: Sequence[Path]) -> Any:
    base = load_base(BASE)
    with Adapter(folders[0]) as first:
        targets = sorted({name.rpartition(".")[2] for name in first.modules})
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    model: Any = get_peft_model(base.model, settings, adapter_name="0")
    for at, folder in enumerate(folders):
        if at:
            model.add_adapter(str(at), settings)
        with Adapter(folder) as adapter:
            for name in adapter.modules:
                one, target = adapter.factors(name), model.base_model.model.get_submodule(name)
                target.lora_A[str(at)].weight.data = torch.from_numpy(one.a)
                target.lora_B[str(at)].weight.data = torch.from_numpy(one.b) * (one.scale / target.scaling[str(at)])
    return model


def progress(text: str) -> None:
    print(text, flush=True)
