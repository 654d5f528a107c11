"""Many LoRA adapters over one base, of which any weighted sum, or any other middle matrix, is one forward pass away.

Per module the factors stand stacked, A (R, n) and B (m, R); what is added to the module's output is B M A x, where M is
changed between questions and the base is loaded once. Everything about the adapters is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchd.errors import AdapterUnfit
from orchd.lm.middle import Middle

Single = NDArray[np.float32]


class _Layer:
    """One module's stack; `turned` is what is added now, or None."""

    def __init__(self, module: nn.Module, a: Single, b: Single, device: torch.device, *, embedding: bool) -> None:
        self._a, self._b = torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)
        self._embedding = embedding
        self._turned: tuple[Tensor, Tensor] | None = None
        module.register_forward_hook(self._add)

    def put(self, middle: Middle | None) -> None:
        if middle is None:
            self._turned = None
            return
        end = middle.first + middle.right.shape[-1]
        a, b = self._a[middle.first : end], self._b[:, middle.first : end]
        right = torch.from_numpy(middle.right).to(a)
        if middle.left is None:
            self._turned = a, b * right
        else:
            self._turned = right @ a, b @ torch.from_numpy(middle.left).to(b)

    def _add(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._turned is None:
            return output
        a, b = self._turned
        inner = nn.functional.embedding(given[0], a.T) if self._embedding else given[0].float() @ a.T
        return output + (inner @ b.T).to(output.dtype)


class Stack:
    """Stacked factors on ``model`` (in place). Nothing is added until `put` says what."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._layers: dict[str, _Layer] = {}

    def add(self, name: str, a: Single, b: Single, *, embedding: bool = False) -> None:
        """The stacked factors of the module ``name`` of the base: ``a`` (R, n), ``b`` (m, R), for an embedding n is the
        vocabulary. Raises `AdapterUnfit` where the base has no such module."""
        try:
            module = self.model.get_submodule(name)
        except AttributeError:
            raise AdapterUnfit(f"this base has no module {name[:120]}", field="adapters") from None
        fits = (a.shape[1], b.shape[0])
        own = tuple(module.weight.shape) if embedding else (_width(module, "in"), _width(module, "out"))
        if own != fits and None not in own:
            told = f"the adapters' shape for {name[:120]} is {fits[1]}×{fits[0]}, this base's {own[1]}×{own[0]}"
            raise AdapterUnfit(told, field="adapters")
        self._layers[name] = _Layer(module, a, b, self.model.device, embedding=embedding)

    def put(self, middles: Mapping[str, Middle]) -> None:
        """From now on the model computes the base and these; of modules that are not named, the base alone."""
        for name, layer in self._layers.items():
            layer.put(middles.get(name))


def _width(module: nn.Module, side: str) -> int | None:
    width = getattr(module, f"{side}_features", None)
    return width if isinstance(width, int) else None
