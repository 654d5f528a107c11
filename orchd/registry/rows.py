"""What the registry answers with: typed rows, ids and keys as text, figures as floats."""

from __future__ import annotations

import msgspec

from orchd.records import MICRO, Announcement, Manifest, Verified, text_id
from orchd.records.ids import ADAPTER, BASE


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    pass


class MetricRow(_Row, frozen=True, kw_only=True):
    """`loss` in nats a token, `exact_match` from 0 to 1."""

    metric: str
    value: float
    base_value: float | None
    examples: int
    split: str


class TrainingRow(_Row, frozen=True, kw_only=True):
    method: str
    initial: str | None
    examples: int
    tokens: int
    steps: int
    software: str


class LeafRow(_Row, frozen=True, kw_only=True):
    id: str
    weight: float


class LineageRow(_Row, frozen=True, kw_only=True):
    """`residual` is what truncation cut off, as a share of the norm."""

    recipe: str
    method: str
    leaves: tuple[LeafRow, ...]
    residual: float


class AdapterRow(_Row, frozen=True, kw_only=True):
    """An adapter that is here. `size` in bytes, times in milliseconds since 1970."""

    id: str
    name: str
    author: str
    trust: str
    state: str
    reason: str
    origin: str
    base: str
    base_hint: str
    rank: int
    alpha: float
    dtype: str
    parameters: int
    size: int
    licence: str
    description: str
    created_ms: int
    received_ms: int
    evaluation: tuple[MetricRow, ...]
    training: TrainingRow | None
    lineage: LineageRow | None
    topics: tuple[str, ...]


class AnnouncementRow(_Row, frozen=True, kw_only=True):
    """An adapter that a peer says exists. `peer` is who said it to us, `here` whether we have it."""

    adapter: str
    author: str
    topics: tuple[str, ...]
    size: int
    base: str
    peer: str
    created_ms: int
    here: bool


class DatasetRow(_Row, frozen=True, kw_only=True):
    """Rows by part."""

    id: str
    name: str
    kind: str
    train: int
    validation: int
    test: int
    skipped: int
    warnings: tuple[str, ...]
    created_ms: int


def adapter_row(
    manifest: Verified[Manifest],
    *,
    trust: str,
    state: str,
    reason: str,
    origin: str,
    received_ms: int,
    topics: tuple[str, ...],
) -> AdapterRow:
    record = manifest.record
    return AdapterRow(
        id=manifest.id,
        name=record.name,
        author=manifest.author,
        trust=trust,
        state=state,
        reason=reason,
        origin=origin,
        base=text_id(BASE, record.base.fingerprint),
        base_hint=record.base.hint,
        rank=record.adapter.rank,
        alpha=record.adapter.alpha_milli / 1000,
        dtype=record.adapter.dtype,
        parameters=record.adapter.parameters,
        size=record.size,
        licence=record.licence,
        description=record.description,
        created_ms=record.created_ms,
        received_ms=received_ms,
        evaluation=_metrics(record),
        training=_training(record),
        lineage=_lineage(record),
        topics=topics,
    )


def _metrics(record: Manifest) -> tuple[MetricRow, ...]:
    return tuple(
        MetricRow(
            metric=metric.metric,
            value=metric.value / MICRO,
            base_value=None if metric.base_value is None else metric.base_value / MICRO,
            examples=metric.examples,
            split=metric.split,
        )
        for metric in record.evaluation
    )


def _training(record: Manifest) -> TrainingRow | None:
    training = record.training
    if training is None:
        return None
    return TrainingRow(
        method=training.method,
        initial=None if training.initial is None else text_id(ADAPTER, training.initial),
        examples=training.examples,
        tokens=training.tokens,
        steps=training.steps,
        software=training.software,
    )


def _lineage(record: Manifest) -> LineageRow | None:
    lineage = record.lineage
    if lineage is None:
        return None
    return LineageRow(
        recipe=lineage.recipe.hex(),
        method=lineage.method,
        leaves=tuple(LeafRow(id=text_id(ADAPTER, leaf.id), weight=leaf.weight_ppm / MICRO) for leaf in lineage.leaves),
        residual=lineage.residual_ppm / MICRO,
    )


def announcement_key(announcement: Verified[Announcement]) -> str:
    """The id of the announced adapter."""
    return text_id(ADAPTER, announcement.record.manifest)
