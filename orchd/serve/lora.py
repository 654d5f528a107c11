"""A PEFT LoRA folder, read for folding into its base: W' = W + scale · B·A, in float32, without torch.

`scale` is alpha / r, or alpha / √r with rsLoRA; `rank_pattern` and `alpha_pattern` change r and alpha of single
modules. What can't be expressed as such a product is refused by name, never dropped: DoRA, trained biases, saved
modules, transposed layers (`registry.peft_config`), embeddings (here). Source: peft 0.21, tuners/lora/layer.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orchd.errors import AdapterConfigRefused, AdapterNotMergeable
from orchd.registry import peft_config
from orchd.registry.peft_config import PeftConfig
from orchd.serve.weights import FloatArray, Weights

MATRIX_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
AT_ONCE = 1 << 15  # numbers of W that are updated together: they stay in a core's cache


class Update(NamedTuple):
    """What one module gets: `scale`, and the tensors' names of A (rank, in) and B (out, rank)."""

    scale: float
    a: str
    b: str


class Factors(NamedTuple):
    """A (rank, in), and B (out, rank) with the scale in it; float32."""

    a: FloatArray
    b: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Of their product."""
        return self.b.shape[0], self.a.shape[1]

    def add_to(self, rows: FloatArray, start: int = 0) -> None:
        """Add rows of the product, from `start` on, to `rows`, float32, in place.

        In steps of one size, so that the bytes don't depend on how many threads share a matrix.
        """
        step = max(1, AT_ONCE // rows.shape[1])
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            some += self.b[start + at : start + at + len(some)] @ self.a


class Lora:
    """The updates of one adapter by module name (`model.layers.0.self_attn.q_proj`).

    Raises AdapterNotMergeable for what a plain product can't say, WeightsUnreadable for damaged files.
    """

    def __init__(self, folder: Path) -> None:
        self._weights = Weights([folder / "adapter_model.safetensors"])
        try:
            config = peft_config.read_plain(folder / "adapter_config.json")
        except (OSError, AdapterConfigRefused) as error:
            raise AdapterNotMergeable(f"the adapter can't be folded in: {error}") from error
        self._updates = _updates(config, self._weights)

    @property
    def modules(self) -> frozenset[str]:
        return frozenset(self._updates)

    def factors(self, module: str, shape: tuple[int, ...]) -> Factors:
        """The factors of a module whose weight has that shape (out, in). KeyError for one that is not changed.

        Raises AdapterNotMergeable when the shapes don't fit.
        """
        update = self._updates[module]
        b = self._weights.read(update.b).astype(np.float64) * update.scale
        found = Factors(self._weights.read(update.a), b.astype(np.float32))
        if found.shape != shape:
            own, other = (" × ".join(map(str, one)) for one in (found.shape, shape))
            raise AdapterNotMergeable(f"{module}: the adapter is for a {own} matrix, the base has {other}")
        return found

    def fold(self, module: str, weight: FloatArray) -> None:
        """Add this adapter's update to `weight`, float32 (out, in), in place. Raises as `factors`."""
        if module in self._updates:
            self.factors(module, weight.shape).add_to(weight)


def _updates(config: PeftConfig, weights: Weights) -> dict[str, Update]:
    pairs: dict[str, dict[str, str]] = {}
    for name, tensor in weights.items():
        match = MATRIX_NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise AdapterNotMergeable(f"the adapter holds {name}, no LoRA matrix of a linear layer")
        pairs.setdefault(match[1], {})[match[2]] = name
    return {module: _update(config, module, pair, weights) for module, pair in pairs.items()}


def _update(config: PeftConfig, module: str, pair: dict[str, str], weights: Weights) -> Update:
    if set(pair) != {"A", "B"}:
        raise AdapterNotMergeable(f"{module} has only one of lora_A and lora_B")
    stated = config.rank_of(module)
    rank_of_a, rank_of_b = weights[pair["A"]].shape[0], weights[pair["B"]].shape[1]
    if not stated == rank_of_a == rank_of_b:
        raise AdapterNotMergeable(f"{module}: rank {stated} in the settings, A has {rank_of_a}, B has {rank_of_b}")
    scale = config.scale_of(module)
    return Update(scale, pair["A"], pair["B"])
