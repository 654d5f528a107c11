"""The leaves of an average, opened: the modules that any of them has, and Gram matrices, kept while there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchd.average.adapter import Adapter, Module, naming
from orchd.average.gram import Factors, Grams, Matrix, grams_of, inner_products
from orchd.errors import AverageIsZero, LeafUnreadable, ShapesDiffer

KEPT_GRAMS = 256 << 20
"""Bytes of Gram matrices that are kept for the next pass; the rest is computed again."""


@dataclass(frozen=True)
class Union:
    """All modules that any of the adapters has. `found[name]` are the modules of that name, of equal shape."""

    modules: tuple[Module, ...]
    found: dict[str, list[Module]]
    targets: tuple[str, ...]

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Union:
        """Raises `ShapesDiffer` naming the module."""
        found: dict[str, list[Module]] = {}
        for adapter in adapters:
            for module in adapter.modules.values():
                found.setdefault(module.name, []).append(module)
        for name, same in found.items():
            shapes = {(m.rows, m.columns, m.embedding) for m in same}
            if len(shapes) > 1:
                listed = " and ".join(sorted(f"{rows}×{columns}" for rows, columns, _ in shapes))
                raise ShapesDiffer(f"the adapters' shapes for {name[:120]} differ: {listed}")
        if not found:
            raise AverageIsZero("the adapters have no module at all")
        return cls(
            modules=tuple(found[name][0] for name in sorted(found)),
            found=found,
            targets=tuple(target for adapter in adapters for target in adapter.target_modules),
        )

    @property
    def largest(self) -> int:
        """The largest rank that a module of the average can have."""
        return max(sum(m.rank for m in found) for found in self.found.values())


class Opened:
    """Opened adapters and all their modules; `keep` their Gram matrices for a second pass."""

    def __init__(self, adapters: Sequence[Adapter], *, keep: bool) -> None:
        self.adapters = adapters
        self.union = Union.of(adapters)
        self._kept: dict[str, Grams] = {}
        self._room = KEPT_GRAMS if keep else 0
        #: Of the adapters' files, over all passes.
        self.bytes_read = 0

    @property
    def names(self) -> list[str]:
        return [module.name for module in self.union.modules]

    def present(self, name: str) -> list[int]:
        """The places of the adapters that have the module."""
        return [i for i, adapter in enumerate(self.adapters) if name in adapter.modules]

    def factors(self, name: str) -> list[Factors]:
        """Of those that have the module. Raises `TensorsRefused`."""
        found = []
        for i in self.present(name):
            with naming(self.adapters[i].called), readable():
                found.append(self.adapters[i].factors(name))
            self.bytes_read += self.adapters[i].size_of(name)
        return found

    def grams(self, name: str, factors: Sequence[Factors] | None = None) -> Grams:
        """Of those that have the module; of `factors` where they are read already."""
        if (kept := self._kept.get(name)) is not None:
            return kept
        made = grams_of(self.factors(name) if factors is None else factors)
        if made.size <= self._room:
            self._room -= made.size
            self._kept[name] = made
        return made

    def inner(self, step: Callable[[], None]) -> Matrix:
        """⟨ΔWᵢ, ΔWⱼ⟩ over all modules, (k, k)."""
        total = np.zeros((len(self.adapters), len(self.adapters)))
        for name in self.names:
            step()
            present = self.present(name)
            total[np.ix_(present, present)] += inner_products(self.grams(name))
        return total


@contextmanager
def readable() -> Iterator[None]:
    """What can't be read inside, is refused: `LeafUnreadable`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise LeafUnreadable(f"its files can't be read: {what}", field="adapters") from error


@contextmanager
def opened(named: Sequence[tuple[str, str]]) -> Iterator[list[Adapter]]:
    """The adapters of (name, PEFT folder), opened. What is refused, is with the adapter's name."""
    with ExitStack() as stack:
        found = []
        for name, path in named:
            with naming(name), readable():
                found.append(stack.enter_context(Adapter(Path(path), name)))
        yield found
