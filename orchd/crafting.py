"""From what a worker made to a signed manifest behind the door: the one way for adapters of our own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchd.average.gate_specs import STAGES, VERDICTS, Compared, GateExtra, GateReport, JudgedLeaf
from orchd.average.recipe import recipe_digest
from orchd.average.rules import MEAN
from orchd.average.specs import AverageExtra, AverageResult
from orchd.errors import TensorsRefused
from orchd.forgetting import RETENTION, RETENTION_KL, RETENTION_LOSS
from orchd.identity import Identity
from orchd.measuring import about, rounded, widened
from orchd.records import MICRO, BaseRef, Leaf, Lineage, Manifest, Metric, Training, Verified, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.records.manifest import Leak, Round, Routing
from orchd.registry import Admission, Base, Registry
from orchd.registry.admission import Check
from orchd.registry.describe import adapter_info, file_entries
from orchd.train.specs import Forgetting, Score, TrainResult


@dataclass(frozen=True)
class Making:
    """What an adapter of ours says about itself besides its files."""

    name: str
    description: str
    base: Base
    created_ms: int
    licence: str
    tags: tuple[str, ...] = ()
    supersedes: bytes | None = None


def admit(
    registry: Registry,
    identity: Identity,
    making: Making,
    folder: Path,
    *,
    origin: str,
    training: Training | None = None,
    lineage: Lineage | None = None,
    evaluation: tuple[Metric, ...] = (),
    leak: Leak | None = None,
    routing: Routing | None = None,
    round: Round | None = None,
    extra: dict[str, Any] | None = None,
    checks: Sequence[Check] = (),
) -> Admission:
    """Describe, sign and admit the PEFT folder that a worker left. `checks` come after the door's own."""
    manifest = Manifest(
        name=making.name,
        description=making.description,
        licence=making.licence,
        tags=making.tags,
        created_ms=making.created_ms,
        author=identity.public_key,
        base=BaseRef(fingerprint=making.base.digest, hint=making.base.name, architecture=making.base.architecture),
        adapter=adapter_info(folder),
        files=file_entries(folder),
        training=training,
        evaluation=evaluation,
        leak=leak,
        lineage=lineage,
        round=round,
        routing=routing,
        supersedes=making.supersedes,
        extra=extra or {},
    )
    return sign_in(registry, identity, manifest, folder, origin=origin, checks=checks)


def sign_in(
    registry: Registry,
    identity: Identity,
    manifest: Manifest,
    folder: Path,
    *,
    origin: str,
    checks: Sequence[Check] = (),
) -> Admission:
    """Sign a manifest and admit it with the files in `folder`."""
    signed: Verified[Manifest] = sign(manifest, identity)
    files = {entry.path: folder / entry.path for entry in manifest.files}
    return registry.admit(signed.envelope, files, origin=origin, checks=checks)


def training_record(
    result: TrainResult, *, initial: bytes | None, dataset: bytes, salt: bytes, increment: bool = False
) -> Training:
    """`dataset` is the digest of the data set's content, hidden behind `salt`. An `increment` counts less `initial`."""
    return Training(
        method=result.objective if result.extracted is None else f"{result.objective}, extracted from whole weights",
        initial=initial,
        relative_to=initial if increment else None,
        examples=result.examples,
        tokens=result.tokens,
        steps=result.steps,
        seed=result.seed,
        software=result.software,
        data_commitment=hashlib.sha256(salt + dataset).digest(),
    )


def trained_metrics(result: TrainResult) -> tuple[Metric, ...]:
    """What a trained adapter's manifest states: its scores, and what it lacks if it was extracted."""
    if result.extracted is None:
        return metrics(result.heldout, result.forgetting)
    lacks = Metric(
        metric="residual",
        value=result.extracted.residual_ppm,
        base_value=None,
        examples=result.examples,
        split="weights",
    )
    return (*metrics(result.extracted.heldout, result.extracted.forgetting), lacks)


def metrics(scores: tuple[Score, ...], forgetting: Forgetting | None = None) -> tuple[Metric, ...]:
    """The adapter's figures beside the base's, as a manifest states them, half of the 95 % interval of how much its
    loss differs, and what it forgot. Raises `TensorsRefused` for a loss that is no number."""
    found: list[Metric] = []
    for score in scores:
        for one in score.comparisons:
            found.append(_metric(one.metric, one.value, one.against_value, one.examples, score.split))
            if one.metric == "loss" and one.high is not None and one.low is not None:
                found.append(_metric("loss_interval", (one.high - one.low) / 2, None, one.examples, score.split))
    if forgetting is not None:
        told, count = forgetting, forgetting.examples
        found.append(_metric(RETENTION_LOSS, told.loss, told.base_loss, count, RETENTION))
        found.append(_metric(RETENTION_KL, told.kl, None, count, RETENTION))
    return tuple(found)


def _metric(metric: str, value: float, base_value: float | None, examples: int, split: str) -> Metric:
    return Metric(
        metric=metric,
        value=_micro(value, metric),
        base_value=None if base_value is None else _micro(base_value, metric),
        examples=examples,
        split=split,
    )


def _micro(value: float, metric: str) -> int:
    if not math.isfinite(value):
        raise TensorsRefused(f"the trained adapter's {metric} is {value}: training went astray, nothing was kept")
    return max(0, round(value * MICRO))


def lineage_record(result: AverageResult, leaves: tuple[bytes, ...], *, method: str, rank: int) -> Lineage:
    """The lineage of an average of `leaves`, in the order of the job's adapters; `rank` is what was asked for."""
    weighted = sorted(zip(leaves, result.weights_ppm, strict=True))
    return Lineage(
        recipe=recipe_digest(weighted, method=method, rank=rank, strength_ppm=result.strength_ppm, dtype=result.dtype),
        method=method,
        rank=rank,
        strength_ppm=result.strength_ppm,
        leaves=tuple(Leaf(id=leaf, weight_ppm=weight) for leaf, weight in weighted),
        previous=None,
        outer=None,
        residual_ppm=result.residual_ppm,
        tolerance_ppm=result.tolerance_ppm,
    )


def average_extra(result: AverageResult, leaves: tuple[bytes, ...], missing: tuple[bytes, ...] = ()) -> dict[str, Any]:
    """What a manifest says besides (`AverageExtra`), for averages of this one: what it took of each leaf, and who is
    not in it though its parents had them."""
    told: dict[str, Any] = {"missing": sorted(missing)} if missing else {}
    if result.method != MEAN and result.coefficients_ppm:
        taken = tuple(ppm for _, ppm in sorted(zip(leaves, result.coefficients_ppm, strict=True)))
        told["coefficients_ppm"] = list(taken)
    return {"average": {"version": AverageExtra().version, **told}} if told else {}


def gate_extra(report: GateReport | None) -> dict[str, Any]:
    """What a manifest says of what the gate decided (`GateExtra`): numbers, none of them of a single row of data."""
    if report is None:
        return {}
    told: dict[str, Any] = {"version": GateExtra().version, "verdict": VERDICTS.index(report.verdict)}
    if (found := report.against_base) is not None:
        half = 0.0 if found.low is None or found.high is None else (found.high - found.low) / 2
        singles = [leaf.single.difference for leaf in report.leaves if leaf.single is not None]
        told |= {
            "examples": about(report.deciding),
            "base": _hundredths(found.against),
            "average": _hundredths(found.loss),
            "difference": _hundredths(found.difference),
            "interval": round(widened(half) * MICRO),
            "single": _hundredths(max(singles, default=0.0)),
            "triggers": len(report.probes),
        }
    told["refused"] = [
        {"id": parse_id(leaf.id, ADAPTER), "stage": STAGES.index(leaf.stage), "figure": _figure(leaf)}
        for leaf in report.leaves
        if leaf.stage != "kept"
    ]
    return {"gate": told}


def _figure(leaf: JudgedLeaf) -> int:
    """The difference that a refusal rests on, in micro-nats."""
    looked_at: Compared | None = leaf.without if leaf.stage == "left out" else leaf.alone
    return 0 if looked_at is None else _hundredths(looked_at.difference)


def _hundredths(value: float) -> int:
    return round(rounded(value) * MICRO)
