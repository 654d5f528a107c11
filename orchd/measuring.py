"""Adapters measured on data of one's own: for the user, for a signed attestation, and for the gate of updates."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from orchd.errors import DatasetUnusable, ParamsInvalid, TooFewToAttest
from orchd.records import MICRO, Attestation, Verified, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import AdapterRow
from orchd.registry.attested import DIFFERENCE_INTERVAL
from orchd.train.specs import AdapterPath, EvaluateResult, EvaluateSpec, EvaluationRow

if TYPE_CHECKING:
    from orchd.node import Node

SPLITS = ("train", "validation", "test")
LEAST_EXAMPLES = 10  # of an attestation
NINETY_FIVE = 1.96  # half the width of the 95 % interval, in standard errors


class AttestNote(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation is for, when its figure is to be signed. `metric` is loss or exact_match."""

    adapter: str
    metric: str


class Attested(msgspec.Struct, frozen=True, kw_only=True):
    """`value`, `base_value` and `interval` are nats a token, or shares from 0 to 1."""

    attestation: str
    adapter: AdapterRow
    metric: str
    value: float
    base_value: float
    interval: float
    examples: int


async def evaluation(
    node: Node,
    rows: Sequence[AdapterRow],
    *,
    dataset: str,
    split: str = "test",
    base: bool = True,
    compare: bool = False,
    alone: str = "demo",
    without: Collection[str] = ("speed", "forgetting"),
) -> EvaluateSpec:
    """The job that scores adapters of one base on one part of a data set, or without any the base ``alone``,
    ``without`` what is named of base, answers, speed and forgetting.

    Raises `ParamsInvalid`, `DatasetUnknown`, `BaseUnknown`."""
    base = base and "base" not in without
    if not rows and not base:
        raise ParamsInvalid("neither an adapter nor the base is left to measure", field="without")
    if split not in SPLITS:
        raise ParamsInvalid(f"split {split!r} is not {', '.join(SPLITS)}", field="split")
    found = await trio.to_thread.run_sync(node.datasets.get, dataset)
    known = node.registry.known_bases
    if rows and not {row.base for row in rows} <= known.same(rows[0].base):
        hint = "Evaluate the adapters of each base by themselves; `orchctl adapter show` tells the base."
        raise ParamsInvalid("these adapters are for different bases", hint=hint, field="adapters")
    folders = [await trio.to_thread.run_sync(node.registry.adapter_folder, row.id) for row in rows]
    model = await trio.to_thread.run_sync(known.folder, rows[0].base if rows else alone)
    kept = node.retention.path
    return EvaluateSpec(
        base=str(model.path),
        adapters=tuple(
            AdapterPath(id=row.id, name=row.name, path=str(path)) for row, path in zip(rows, folders, strict=True)
        ),
        dataset=str(node.datasets.folder(found.id)),
        split=split,
        include_base=base,
        answers="answers" not in without,
        speed="speed" not in without,
        compare=compare,
        retention=None if "forgetting" in without else await trio.to_thread.run_sync(kept, model.fingerprint),
        fingerprint=model.fingerprint,
    )


async def attest(node: Node, note: AttestNote, result: EvaluateResult) -> Attested:
    """Sign what was measured and tell it to whoever has heard of the adapter."""
    base, measured = result.rows
    if measured.examples < LEAST_EXAMPLES or measured.loss_interval is None:
        hint = f"Take a data set with {LEAST_EXAMPLES} examples or more, of several conversations or documents."
        raise TooFewToAttest(f"{measured.examples} examples say too little to be signed", hint=hint, field="dataset")
    value, base_value, half = figures(note.metric, measured, base)
    difference = widened(_difference(result, note.metric) or 2 * half)
    value, base_value, interval = rounded(value), rounded(base_value), widened(half)
    examples = about(measured.examples)
    record = Attestation(
        manifest=parse_id(note.adapter, ADAPTER),
        evaluator=node.identity.public_key,
        metric=note.metric,
        value=round(value * MICRO),
        base_value=round(base_value * MICRO),
        examples=examples,
        interval=round(interval * MICRO),
        created_ms=node.clock(),
        extra={DIFFERENCE_INTERVAL: round(difference * MICRO)},
    )
    signed: Verified[Attestation] = await trio.to_thread.run_sync(partial(sign, record, node.identity))
    await node.network.tell(signed)
    return Attested(
        attestation=signed.id,
        adapter=await trio.to_thread.run_sync(node.registry.adapter, note.adapter),
        metric=note.metric,
        value=value,
        base_value=base_value,
        interval=interval,
        examples=examples,
    )


def rounded(value: float) -> float:
    """To hundredths of a nat, or of the whole: more would tell of single rows of data that nobody else may see."""
    return round(value, 2)


def widened(half: float) -> float:
    """An interval's half width, rounded up to hundredths: it never claims to be surer than it is."""
    return math.ceil(100 * half) / 100


def about(examples: int) -> int:
    """Rounded down to fives, from a hundred on to tens, and so on."""
    step = 5 if examples < 100 else 10 ** (len(str(examples)) - 2)
    return examples - examples % step


def _difference(result: EvaluateResult, metric: str) -> float:
    """Half of the 95 % interval of how much the adapter differs from the base on the same rows; where it is not known,
    all that it differs."""
    found = next((one for one in result.comparisons if one.metric == metric), None)
    if found is None:
        return 0.0
    if found.low is None or found.high is None:
        return abs(found.value - found.against_value)
    return (found.high - found.low) / 2


def figures(metric: str, measured: EvaluationRow, base: EvaluationRow) -> tuple[float, float, float]:
    """The adapter's figure, the base's, and half the width of the 95 % interval of the first.

    That of a share is Agresti and Coull's: it is not nothing where all or none was right.
    """
    if metric == "loss":
        return measured.loss, base.loss, measured.loss_interval or 0.0
    if measured.exact_match is None or base.exact_match is None:
        raise DatasetUnusable("nothing in it asks for an answer", hint="Attest the loss instead.", field="metric")
    count = measured.examples + 4
    share = (measured.exact_match * measured.examples + 2) / count
    return measured.exact_match, base.exact_match, NINETY_FIVE * math.sqrt(share * (1 - share) / count)
