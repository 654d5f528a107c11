"""What two adapters do not have in common, as their manifests tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from orchd.records import MICRO, Manifest, text_id
from orchd.records.ids import ADAPTER, BASE
from orchd.registry.rows import AdapterRow

if TYPE_CHECKING:
    from orchd.registry.registry import Registry

ABSENT = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing and what it is in both; empty where an adapter has none."""

    what: str
    adapter: str
    other: str


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`same_files`: names of the files that are the same to the last byte."""

    adapter: AdapterRow
    other: AdapterRow
    differences: list[Difference]
    same_files: list[str]


def compare(registry: Registry, adapter: str, other: str) -> Compared:
    """Raises `AdapterUnknown` or `AmbiguousId`."""
    rows = registry.adapter(adapter), registry.adapter(other)
    ours, theirs = (registry.manifest(row.id).record for row in rows)
    return Compared(
        adapter=rows[0], other=rows[1], differences=differences(ours, theirs), same_files=same_files(ours, theirs)
    )


def differences(ours: Manifest, theirs: Manifest) -> list[Difference]:
    """In the order of a manifest; ids, authors and times differ always and are left out."""
    left, right = dict(_facts(ours)), dict(_facts(theirs))
    names = list(left) + [name for name in right if name not in left]
    return [
        Difference(what=name, adapter=left.get(name, ABSENT), other=right.get(name, ABSENT))
        for name in names
        if left.get(name, ABSENT) != right.get(name, ABSENT)
    ]


def same_files(ours: Manifest, theirs: Manifest) -> list[str]:
    digests: Mapping[str, bytes] = {file.path: file.sha256 for file in theirs.files}
    return [file.path for file in ours.files if digests.get(file.path) == file.sha256]


def _facts(record: Manifest) -> Iterator[tuple[str, str]]:
    adapter = record.adapter
    yield "name", record.name
    yield "description", record.description
    yield "licence", record.licence
    yield "tags", ", ".join(record.tags)
    yield "base", text_id(BASE, record.base.fingerprint)
    yield "base hint", record.base.hint
    yield "rank", str(adapter.rank)
    yield "alpha", f"{adapter.alpha_milli / 1000:g}"
    yield "rslora", "yes" if adapter.rslora else "no"
    yield "modules", ", ".join(sorted(adapter.target_modules))
    yield "dtype", adapter.dtype
    yield "parameters", f"{adapter.parameters:,}"
    yield "capabilities", ", ".join(sorted(adapter.capabilities))
    yield "size", f"{record.size:,} bytes"
    yield from _training_facts(record)
    for metric in record.evaluation:
        yield f"{metric.split} {metric.metric}", f"{metric.value / MICRO:.4f} ({metric.examples} examples)"
    yield from _lineage_facts(record)


def _training_facts(record: Manifest) -> Iterator[tuple[str, str]]:
    training = record.training
    if training is None:
        return
    yield "training method", training.method
    yield "trained on from", _id(training.initial)
    yield "increment over", _id(training.relative_to)
    yield "examples", f"{training.examples:,}"
    yield "tokens", f"{training.tokens:,}"
    yield "steps", f"{training.steps:,}"
    yield "seed", str(training.seed)
    yield "software", training.software


def _lineage_facts(record: Manifest) -> Iterator[tuple[str, str]]:
    lineage = record.lineage
    if lineage is None:
        return
    yield "recipe", lineage.recipe.hex()[:16]
    yield "average by", lineage.method
    for leaf in lineage.leaves:
        yield f"leaf {text_id(ADAPTER, leaf.id)[:14]}", f"{leaf.weight_ppm / MICRO:.3f}"
    yield "after", _id(lineage.previous)


def _id(digest: bytes | None) -> str:
    return ABSENT if digest is None else text_id(ADAPTER, digest)
