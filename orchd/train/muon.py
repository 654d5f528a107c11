"""Muon in float32: momentum whose matrices are orthogonalised before they are applied.

Source: Keller Jordan, "Muon: an optimizer for hidden layers" (2024). ``torch.optim.Muon`` runs its
Newton-Schulz iteration in bfloat16, which is about five times slower on CPUs without bf16 units.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)


class Muon:
    """Update matrices in place; matrices of one shape are orthogonalised as one batch.

    ``parameters`` are float32 matrices (rows, columns). ``weight_decay`` is decoupled and scaled by the
    learning rate, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        self.learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._momentum = momentum
        self._groups: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            rows, columns = parameter.shape
            self._groups.setdefault((rows, columns), []).append(parameter)
        self._buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients in ``.grad`` (all must be set) and clear them."""
        for (rows, columns), group in self._groups.items():
            gradients = torch.stack([_gradient(parameter) for parameter in group])
            buffer = self._buffers[rows, columns]
            buffer.lerp_(gradients, 1 - self._momentum)
            update = orthogonalise(gradients.lerp(buffer, self._momentum))
            scale = self.learning_rate * max(1.0, rows / columns) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - self.learning_rate * self._weight_decay)
                parameter.sub_(change, alpha=scale)
                parameter.grad = None


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Push all singular values of each matrix towards 1 (quintic Newton-Schulz, approximate).

    ``matrices`` is float32 (batch, rows, columns); so is the result.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
