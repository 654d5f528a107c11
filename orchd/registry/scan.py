"""How an adapter's changes look beside those of known adapters of its base: spectral figures by module.

The calibration is made of admitted adapters of this node's user and of followed authors. Outside it the answer is
*unknown*; inside it is *alike* or *unlike*. It is never that an adapter does no harm: a backdoor can have ordinary
figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from orchd.registry import bounds, grams, parts, peft_config, weights
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.peft_config import PeftConfig
from orchd.registry.registry import Registry
from orchd.registry.rows import AdapterRow
from orchd.registry.standing import ADMITTED

UNKNOWN, ALIKE, UNLIKE = "unknown", "alike", "unlike"
KNOWN_LEVELS = ("self", "followed")
MOST_KNOWN = 16
"""Known adapters that are looked at, the newest first: each is read whole."""
LEAST_KNOWN = bounds.MIN_SEEN
STRETCH = 2.0
"""A figure is alike up to this many times beyond the smallest and largest of the known ones."""
NOTE = (
    "It compares figures with those of known adapters. It does not say what the adapter does, or that it does no harm."
)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one module's change s·B A: `norm` (Frobenius), `largest` singular value, `share` of it in the squared norm
    (1: the change has one direction), and `effective_rank` (the exponential of the spectrum's entropy).
    """

    norm: float
    largest: float
    share: float
    effective_rank: float


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest and largest of each figure among `count` known adapters."""

    count: int
    least: Figures
    most: Figures


class ModuleScan(msgspec.Struct, frozen=True, kw_only=True):
    """`unlike` names the figures that are outside; `known` is None where too few known adapters have the module."""

    module: str
    verdict: str
    figures: Figures
    known: Range | None
    unlike: tuple[str, ...]


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict` is unknown, alike or unlike; `reason` says why. `compared` are the ids of the known adapters."""

    verdict: str
    reason: str
    note: str
    compared: tuple[str, ...]
    modules: tuple[ModuleScan, ...]


def scan(registry: Registry, id: str) -> Scan:
    """Raises `AdapterUnknown`, `BlobUnknown`, or what the readers refuse."""
    row = registry.adapter(id)
    known = _known(registry, row)
    config, own = spectra(registry.files(row.id))
    others = [spectra(registry.files(other.id)) for other in known]
    modules = tuple(_module(name, figures, [found for _, found in others]) for name, figures in own.items())
    verdict, reason = _verdict(config, [found for found, _ in others], modules)
    return Scan(verdict=verdict, reason=reason, note=NOTE, compared=tuple(other.id for other in known), modules=modules)


def _known(registry: Registry, row: AdapterRow) -> list[AdapterRow]:
    found = registry.index.read(
        "SELECT digest, author FROM adapter WHERE state = ? AND base = ? AND digest <> ? ORDER BY created DESC, digest",
        (ADMITTED, row.base, row.id),
    )
    ids = [id for id, author in found if registry.trust(author) in KNOWN_LEVELS]
    return registry.rows_of(ids[:MOST_KNOWN])


def spectra(files: Mapping[str, Path]) -> tuple[PeftConfig, dict[str, Figures]]:
    """The settings and each module's figures. Raises `AdapterConfigRefused` or `TensorsRefused`."""
    config = peft_config.read(files[CONFIG])
    found = parts.sort(weights.read_header(files[WEIGHTS]), config)
    room = weights.scratch()
    with weights.mapped(files[WEIGHTS]) as view:
        values = {
            module: grams.singular_values(grams.gram(view, a, room), grams.gram(view, b, room))
            for module, (a, b) in sorted(found.pairs.items())
            if grams.makes_product(a, b)
        }
    return config, {module: _figures(config.scale_of(module) * change) for module, change in values.items()}


def _figures(values: grams.Matrix) -> Figures:
    squares = values**2
    total = float(squares.sum())
    if total == 0:
        return Figures(norm=0.0, largest=0.0, share=0.0, effective_rank=0.0)
    shares = squares[squares > 0] / total
    return Figures(
        norm=float(np.sqrt(total)),
        largest=float(values[0]),
        share=float(shares[0]),
        effective_rank=float(np.exp(-np.sum(shares * np.log(shares)))),
    )


def _module(name: str, figures: Figures, others: Iterable[Mapping[str, Figures]]) -> ModuleScan:
    seen = [found[name] for found in others if name in found]
    if len(seen) < LEAST_KNOWN:
        return ModuleScan(module=name, verdict=UNKNOWN, figures=figures, known=None, unlike=())
    known = Range(count=len(seen), least=_each(min, seen), most=_each(max, seen))
    unlike = tuple(
        field
        for field in Figures.__struct_fields__
        if not getattr(known.least, field) / STRETCH <= getattr(figures, field) <= getattr(known.most, field) * STRETCH
    )
    return ModuleScan(module=name, verdict=UNLIKE if unlike else ALIKE, figures=figures, known=known, unlike=unlike)


def _each(choose: Callable[[Iterable[float]], float], seen: Sequence[Figures]) -> Figures:
    return Figures(**{field: choose(getattr(one, field) for one in seen) for field in Figures.__struct_fields__})


def _verdict(config: PeftConfig, known: Sequence[PeftConfig], modules: Sequence[ModuleScan]) -> tuple[str, str]:
    if config.beyond_product:
        return UNKNOWN, f"{config.beyond_product}: what it changes besides B·A has no figures here"
    if len(known) < LEAST_KNOWN:
        return UNKNOWN, f"{len(known)} known adapters of this base are here; {LEAST_KNOWN} are needed to compare"
    ranks = [other.rank for other in known]
    if not min(ranks) <= config.rank <= max(ranks):
        return UNKNOWN, f"its rank is {config.rank}, the known adapters have {min(ranks)} to {max(ranks)}"
    if strange := [module.module for module in modules if module.verdict == UNKNOWN]:
        return UNKNOWN, f"{len(strange)} of its modules, {strange[0]} first, are in too few known adapters"
    if unlike := [module for module in modules if module.verdict == UNLIKE]:
        first = f"{unlike[0].module} ({', '.join(unlike[0].unlike)})"
        return UNLIKE, f"{len(unlike)} of {len(modules)} modules differ from all known adapters, {first} first"
    return ALIKE, f"its figures are within those of {len(known)} known adapters"
