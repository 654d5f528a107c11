"""Several processes that train one adapter together under torch's launcher, or one alone.

Each takes its share of every batch; the gradients are added up, so that all make the same step as one process would
with the whole batch. The first of them decides, writes checkpoints and curves, and what comes out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
S = TypeVar("S")


class Peers(Protocol):
    """``first``: whether this process is the one that decides and writes."""

    first: bool

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch; it may be empty."""

    def add_up(self, parameters: Iterable[Tensor], figures: tuple[float, float]) -> tuple[float, float]:
        """Replace each gradient by the sum over all processes; the sums of the figures."""

    def agreed(self, make: Callable[[], S], kind: type[S]) -> S:
        """What the first process makes; the others wait for it."""


class _Alone:
    first = True

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        return batch

    def add_up(self, parameters: Iterable[Tensor], figures: tuple[float, float]) -> tuple[float, float]:
        return figures

    def agreed(self, make: Callable[[], S], kind: type[S]) -> S:
        return make()


ALONE: Final[Peers] = _Alone()


class Launched:
    """The processes that `torchrun` started: nccl between GPUs, gloo between CPUs."""

    def __init__(self) -> None:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        self.first = self._rank == 0

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        return batch[self._rank :: self._count]

    def add_up(self, parameters: Iterable[Tensor], figures: tuple[float, float]) -> tuple[float, float]:
        trained = [one for one in parameters if one.requires_grad]
        for one in trained:
            if one.grad is None:  # it had no part of this batch
                one.grad = torch.zeros_like(one)
        gradients = [one.grad for one in trained if one.grad is not None]
        flat = torch.cat(
            [*(gradient.flatten().float() for gradient in gradients), torch.tensor(figures).to(self._device)]
        )
        dist.all_reduce(flat)
        parts = torch.split(flat, [*(one.numel() for one in gradients), len(figures)])
        for gradient, summed in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(summed.view_as(gradient))
        first, second = parts[-1].tolist()
        return first, second

    def agreed(self, make: Callable[[], S], kind: type[S]) -> S:
        """As msgpack, which knows numbers that are none."""
        made = make() if self.first else None
        data = torch.tensor(list(msgspec.msgpack.encode(made)) if self.first else [], dtype=torch.uint8)
        size = torch.tensor([data.numel()], device=self._device)
        dist.broadcast(size, 0)
        told = data.to(self._device) if self.first else torch.empty(int(size), dtype=torch.uint8, device=self._device)
        dist.broadcast(told, 0)
        return msgspec.msgpack.decode(bytes(told.tolist()), type=kind)

    def close(self) -> None:
        dist.destroy_process_group()
