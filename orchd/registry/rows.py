"""What the registry answers with: typed rows, ids and keys as text, figures as floats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from orchd.records import MICRO, Announcement, Manifest, Verified, text_id
from orchd.records.ids import ADAPTER, BASE
from orchd.records.manifest import NOT_MEASURED
from orchd.registry import trigrams
from orchd.registry.local_rows import Verdict

#: Characters of an adapter's texts that are searched; longer ones would make each search slower.
WORDS_LIMIT = 2_000
Edge = tuple[str, str, str, float | None]
LEAF, INITIAL, RELATIVE_TO, PREVIOUS = "leaf", "initial", "relative_to", "previous"


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    pass


class MetricRow(_Row, frozen=True, kw_only=True):
    """`loss` and `loss_interval` in nats a token, shares such as `exact_match` from 0 to 1."""

    metric: str
    value: float
    base_value: float | None
    examples: int
    split: str


class TrainingRow(_Row, frozen=True, kw_only=True):
    method: str
    initial: str | None
    relative_to: str | None
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


class LeakRow(_Row, frozen=True, kw_only=True):
    """What its author's leak report says. `auc`: membership inference, 0.5 is chance, None where it could not be
    measured; `emitted` of the `canaries` are said word for word. `synthetic`: its author says the data is of nobody."""

    method: str
    auc: float | None
    verdict: str
    canaries: int
    emitted: int
    synthetic: bool


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
    tags: tuple[str, ...]
    modules: tuple[str, ...]
    architecture: str
    capabilities: tuple[str, ...]
    supersedes: str | None
    pinned: bool
    leak: LeakRow | None = None


class AnnouncementRow(_Row, frozen=True, kw_only=True):
    """An adapter that a peer says exists. `author` announces it, and `trust` is theirs; `peer` is who told us, `here`
    whether we have it, `revoked` what its author said when taking it back."""

    adapter: str
    author: str
    trust: str
    revoked: str
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


#: The columns of the table `adapter` that come from the manifest and the verdict, in its order.
ADAPTER_COLUMNS = (
    "digest", "name", "author", "base", "architecture", "adapter_rank", "modules", "licence", "tags", "size",
    "created", "supersedes", "words", *trigrams.COLUMNS, "loss", "exact_match", "capabilities", "blobs", "shown",
    "origin", "received",
)  # fmt: skip

#: The topics under which an adapter was announced, as the column `topics` has them: each between two line feeds. A list
#: would make DuckDB write the whole row anew at each change, and leave the old one in every scan.
ANNOUNCED = "chr(10) || array_to_string(list_sort(list_distinct(flatten(list(topics)))), chr(10)) || chr(10)"
#: These of the adapter $1.
TOPICS = f"(SELECT coalesce({ANNOUNCED}, '') FROM announcement WHERE adapter = $1)"
#: Whether an adapter was announced under the topic {0}.
UNDER = "contains(topics, chr(10) || {0} || chr(10))"


def joined_topics(names: Iterable[str]) -> str:
    """What `ANNOUNCED` makes of the topics of an adapter's announcements."""
    found = sorted(set(names))  # by code points, which is the order of the bytes in UTF-8
    return "\n" + "\n".join(found) + "\n" if found else ""


def adapter_values(manifest: Verified[Manifest], verdict: Verdict) -> tuple[Any, ...]:
    """The values of `ADAPTER_COLUMNS`."""
    return (*manifest_values(manifest), verdict.origin, verdict.received)


def manifest_values(manifest: Verified[Manifest]) -> tuple[Any, ...]:
    """The values of `ADAPTER_COLUMNS` without the last two, which the verdict tells."""
    record, id = manifest.record, manifest.id
    first = {metric.metric: metric.value / MICRO for metric in reversed(record.evaluation)}
    said = " ".join((record.name, *record.tags, record.description, record.base.hint)).lower()
    words = " ".join(dict.fromkeys(said.split()))[:WORDS_LIMIT]  # once each: what is searched is read as a whole
    return (
        id,
        record.name,
        manifest.author,
        text_id(BASE, record.base.fingerprint),
        record.base.architecture,
        record.adapter.rank,
        list(record.adapter.target_modules),
        record.licence,
        list(record.tags),
        record.size,
        record.created_ms,
        None if record.supersedes is None else text_id(ADAPTER, record.supersedes),
        words,
        *trigrams.signature(words),
        first.get("loss"),
        first.get("exact_match"),
        list(record.adapter.capabilities),
        [entry.sha256.hex() for entry in record.files],
        msgspec.json.encode(_shown(manifest, id)).decode(),
    )


def edges(manifest: Verified[Manifest]) -> list[Edge]:
    """What an adapter contains: (child, parent, kind, weight of a leaf)."""
    record, id = manifest.record, manifest.id
    found: dict[tuple[bytes, str], float | None] = {}
    if record.lineage:
        for leaf in record.lineage.leaves:
            found[leaf.id, LEAF] = (found.get((leaf.id, LEAF)) or 0.0) + leaf.weight_ppm / MICRO
        if record.lineage.previous:
            found[record.lineage.previous, PREVIOUS] = None
    if record.training:
        for parent, kind in ((record.training.initial, INITIAL), (record.training.relative_to, RELATIVE_TO)):
            if parent:
                found[parent, kind] = None
    return [(id, text_id(ADAPTER, parent), kind, weight) for (parent, kind), weight in found.items()]


def _shown(manifest: Verified[Manifest], id: str) -> AdapterRow:
    """What the manifest tells; what was decided here is left empty and filled in when it is read."""
    record = manifest.record
    return AdapterRow(
        id=id,
        name=record.name,
        author=manifest.author,
        trust="",
        state="",
        reason="",
        origin="",
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
        received_ms=0,
        evaluation=_metrics(record),
        training=_training(record),
        lineage=_lineage(record),
        topics=(),
        tags=record.tags,
        modules=record.adapter.target_modules,
        architecture=record.base.architecture,
        capabilities=record.adapter.capabilities,
        supersedes=None if record.supersedes is None else text_id(ADAPTER, record.supersedes),
        pinned=False,
        leak=_leak(record),
    )


_shown_decoder = msgspec.json.Decoder(AdapterRow)


def adapter_row(shown: str, **decided: Any) -> AdapterRow:
    """A row as it is shown, from the column `shown` and what was decided here."""
    return msgspec.structs.replace(_shown_decoder.decode(shown), **decided)


def form() -> str:
    """Changes when rows are made in another way than before, so that they are made again."""
    schema = msgspec.json.encode(msgspec.json.schema(AdapterRow), order="deterministic")
    return hashlib.sha256(schema + repr(ADAPTER_COLUMNS).encode()).hexdigest()[:16]


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


def _leak(record: Manifest) -> LeakRow | None:
    if record.leak is None:
        return None
    figures = record.leak_extra
    return LeakRow(
        method=record.leak.method,
        auc=record.leak.auc_ppm / MICRO if record.leak.method != NOT_MEASURED else None,
        verdict=record.leak.verdict,
        canaries=figures.canaries,
        emitted=figures.emitted,
        synthetic=figures.synthetic,
    )


def _training(record: Manifest) -> TrainingRow | None:
    training = record.training
    if training is None:
        return None
    return TrainingRow(
        method=training.method,
        initial=None if training.initial is None else text_id(ADAPTER, training.initial),
        relative_to=None if training.relative_to is None else text_id(ADAPTER, training.relative_to),
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
