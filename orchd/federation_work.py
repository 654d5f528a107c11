"""What a member of a federation has done: each command of the rounds as jobs, fetches and records of this node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from orchd.average import rounds_events as ev
from orchd.average.rounds_specs import IncrementPath, RoundSpec
from orchd.average.rounds_state import Increment, Judgement, Rules, age_of
from orchd.errors import AdapterUnknown, DatasetUnusable, ForgetsTooMuch, JobUnknown, NoProvider, OrchdError
from orchd.federation_notes import RoundAveraged, RoundAverageNote
from orchd.gate import ended_well
from orchd.jobs import Job, State
from orchd.measuring import LEAST_EXAMPLES, about, evaluation, rounded, widened
from orchd.notes import RoundNote, Trained
from orchd.records import MICRO, Attestation, Federation, Verified, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, AdapterRow
from orchd.registry.peft_config import AVERAGEABLE
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish, start_fetch
from orchd.rpc.methods_training import TrainStart, start_training
from orchd.train.specs import EvaluateResult
from orchd.updates import LEFT

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger("orchd.federation")
MARGIN: Final = 0.01
"""Nats a token by which an average may be worse where there are too few rows to tell by: less is rounding."""
NEWEST_JOBS: Final = 50
"""Among which a round's training is looked for that ended when nobody listened."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.rounds` of a federation's record: steps of one round, the learning rate (0: each plans its own), and the
    outer step; `momentum_ppm` -1 is what the number of members asks for."""

    version: int = 1
    steps: int = 100
    learning_rate_nano: int = 0
    momentum_ppm: int = -1
    strength_ppm: int = 1_000_000


def terms_of(record: Federation) -> Terms:
    """Raises `msgspec.ValidationError` for what is of another form."""
    return msgspec.convert(record.extra.get("rounds", {}), Terms)


@dataclass(frozen=True)
class Membership:
    """One federation as this node takes part in it. `base` is the name of the base here, `dataset` an id."""

    id: str
    record: Federation
    terms: Terms
    rules: Rules
    base: str
    dataset: str


async def train(node: Node, here: Membership, command: ev.Train) -> Job:
    """The job of a round's training: the one that is under way or over, or a new one."""
    note = RoundNote(federation=here.id, number=command.round, start=command.start.recipe)
    if (running := await _under_way(node, note)) is not None:
        return running
    steps = here.terms.steps
    rate = here.terms.learning_rate_nano / 1e9
    wanted = TrainStart(
        name=f"{here.record.topic} round {command.round}"[:120],
        dataset=here.dataset,
        base=here.base,
        rank=here.rules.rank,
        initial=command.start.adapter or None,
        steps=steps,
        schedule_total=steps * here.rules.rounds,
        schedule_offset=steps * (command.round - 1),
        learning_rate=rate or None,
        seed=_seed(here, node.identity.author, command.round),
    )
    return await node.jobs.get((await start_training(node, wanted, note)).job)


async def _under_way(node: Node, note: RoundNote) -> Job | None:
    told = msgspec.to_builtins(note)
    done, _ = await node.jobs.list(State.DONE, limit=NEWEST_JOBS)
    for job in (*await node.unfinished_jobs(), *done):
        if job.kind == "train" and isinstance(job.note, dict) and job.note.get("round") == told:
            return job
    return None


def _seed(here: Membership, author: str, round: int) -> int:
    """Of one's own in each round."""
    return int.from_bytes(f"{here.id} {author} {round}".encode()[-6:], "big") % 2**31


async def trained(node: Node, command: ev.Train, job: str) -> ev.Trained | ev.TrainingFailed:
    """What came of it, once it has ended."""
    try:
        ended = await node.jobs.wait(job)
    except JobUnknown as error:
        return ev.TrainingFailed(command.round, error.message)
    if ended.state is State.DONE and (row := msgspec.convert(ended.result, Trained).adapter) is not None:
        increment = Increment(adapter=row.id, author=row.author, round=command.round, start=command.start.recipe)
        return ev.Trained(increment)
    if ended.state is State.CANCELLED:
        return ev.TrainingFailed(command.round, f"the training {job} was cancelled")
    reason = ended.error.message if ended.error else f"it ended as {ended.state}"
    return ev.TrainingFailed(command.round, reason)


async def announce(node: Node, here: Membership, adapter: str) -> ev.Arrived | ev.Refused:
    """Tell the topic, once. What is above the leak limit waits for the user, and takes no part until then."""
    try:
        row = await trio.to_thread.run_sync(node.registry.adapter, adapter)
        if here.record.topic not in row.topics:
            await adapter_publish(node, AdapterPublish(adapter=adapter, topics=[here.record.topic]))
    except OrchdError as error:
        LOG.warning("%s is not announced: %s", adapter, error)
        despite = "--despite-forgetting" if isinstance(error, ForgetsTooMuch) else "--despite-leak"
        again = f"`orchctl adapter publish {adapter} --topic {here.record.topic} {despite}`"
        told = f"it waits for you ({again}, then `orchctl federation join {here.record.topic}`): {error.message}"
        return ev.Refused(adapter, told)
    return ev.Arrived(adapter)


async def fetch(node: Node, adapter: str) -> ev.Arrived | ev.Refused | None:
    """None where nobody who is there gives it."""
    try:
        return await _fetched(node, adapter)
    except NoProvider:
        return None
    except OrchdError as error:
        return ev.Refused(adapter, error.message)


async def _fetched(node: Node, adapter: str) -> ev.Arrived | ev.Refused:
    try:
        row = await trio.to_thread.run_sync(node.registry.adapter, adapter)
    except AdapterUnknown:
        job = await start_fetch(node, adapter)
        ended = await node.jobs.wait(job.id)
        if ended.error is not None and ended.error.name in LEFT:
            raise NoProvider(ended.error.message) from None
        if ended.error is not None:
            return ev.Refused(adapter, ended.error.message)
        row = await trio.to_thread.run_sync(node.registry.adapter, adapter)
    if row.state != ADMITTED:
        return ev.Refused(adapter, row.reason or row.state)
    if AVERAGEABLE not in row.capabilities:
        return ev.Refused(adapter, "it has more than factors: DoRA, trained biases or saved modules")
    return ev.Arrived(adapter)


async def make(node: Node, here: Membership, command: ev.Make) -> ev.Made | ev.Failed:
    digest = command.recipe.digest
    try:
        spec = await trio.to_thread.run_sync(_round_spec, node, command)
        previous = next((one.adapter for one in command.globals if one.recipe == command.recipe.previous), "")
        note = RoundAverageNote(
            name=f"{here.record.topic} global {command.round}"[:120],
            base=here.base,
            federation=here.id,
            number=command.round,
            recipe=command.recipe,
            previous=previous,
            ages=tuple(age_of(one, command.round, command.recipe.previous) for one in command.increments),
        )
        title = f"average round {command.round} of {len(command.increments)}"
        job = await node.jobs.submit("average.round", spec, title=title, note=note)
        made = msgspec.convert((await ended_well(node, job)).result, RoundAveraged)
    except OrchdError as error:
        return ev.Failed(digest, error.message)
    return ev.Made(digest, made.adapter.id, made.shares)


def _round_spec(node: Node, command: ev.Make) -> RoundSpec:
    """Raises `AdapterUnknown`, `BlobUnknown`."""
    adapters = {one.recipe: one.adapter for one in command.globals}
    weights = dict(command.recipe.leaves)

    def folder(recipe: str) -> str | None:
        return str(node.registry.adapter_folder(adapters[recipe])) if recipe else None

    return RoundSpec(
        increments=tuple(
            IncrementPath(
                id=one.adapter,
                path=str(node.registry.adapter_folder(one.adapter)),
                start=folder(one.start),
                weight_ppm=weights[one.adapter],
                author=one.author,
            )
            for one in command.increments
        ),
        previous=folder(command.recipe.previous),
        before=folder(command.recipe.before),
        momentum_ppm=command.recipe.momentum_ppm,
        strength_ppm=command.recipe.strength_ppm,
        rank=command.recipe.rank,
    )


async def judge(node: Node, here: Membership, command: ev.Judge) -> ev.Judged | ev.Failed:
    """The losses with the global before and the new one, on the part of one's data that was put aside."""
    try:
        split = await trio.to_thread.run_sync(_held_out, node, here.dataset)
        if split is None:
            return ev.Judged(command.recipe, None)
        names = [command.before, command.adapter] if command.before else [command.adapter]
        rows: Sequence[AdapterRow] = [await trio.to_thread.run_sync(node.registry.adapter, one) for one in names]
        spec = await evaluation(
            node,
            rows,
            dataset=here.dataset,
            split=split,
            compare=True,
            without=("answers", "speed", "forgetting", *(["base"] if command.before else [])),
        )
        job = await node.jobs.submit("evaluate", spec, title=f"judge {rows[-1].name}"[:120])
        result = msgspec.convert((await ended_well(node, job)).result, EvaluateResult)
    except DatasetUnusable:
        return ev.Judged(command.recipe, None)
    except OrchdError as error:
        return ev.Failed(command.recipe, error.message)
    return ev.Judged(command.recipe, judgement_of(result, command))


def _held_out(node: Node, dataset: str) -> str | None:
    row = node.datasets.get(dataset)
    return "validation" if row.validation else "test" if row.test else None


def judgement_of(result: EvaluateResult, command: ev.Judge) -> Judgement:
    """Worse only by more than chance, where the rows can tell that."""
    before, after = result.rows[-2].loss, result.rows[-1].loss
    against = command.before or None
    told = next(
        (
            one.verdict
            for one in result.comparisons
            if (one.metric, one.adapter, one.against) == ("loss", command.adapter, against)
        ),
        "too few rows",
    )
    worse = told == "worse" if told != "too few rows" else after > before + MARGIN
    last = result.rows[-1]
    return Judgement(before=before, after=after, worse=worse, examples=last.examples, half=last.loss_interval or 0.0)


async def attest(node: Node, here: Membership, command: ev.Attest) -> None:
    """Sign it as any measurement is: of enough rows, and rounded so that it tells nothing of single ones."""
    told = command.judgement
    if told.examples < LEAST_EXAMPLES:
        LOG.info("%s was measured on %d rows, too few to be signed", command.adapter, told.examples)
        return
    record = Attestation(
        manifest=parse_id(command.adapter, ADAPTER),
        evaluator=node.identity.public_key,
        metric="loss",
        value=round(rounded(told.after) * MICRO),
        base_value=None,
        examples=about(told.examples),
        interval=round(widened(told.half) * MICRO),
        created_ms=node.clock(),
        extra={
            "round": {
                "version": 1,
                "federation": here.id,
                "number": command.round,
                "previous": round(rounded(told.before) * MICRO),
                "worse": told.worse,
            },
        },
    )
    signed: Verified[Attestation] = await trio.to_thread.run_sync(partial(sign, record, node.identity))
    await node.network.tell(signed)


class RoundWord(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.round` of an attestation. `previous` is the loss with the global before, in micro-nats a token."""

    version: int
    federation: str
    number: int
    previous: int
    worse: bool


for _each in (Terms, RoundWord):
    msgspec.json.Decoder(_each)  # before two threads are the first to convert one (`records/envelope.py`)


def attested(signed: Verified[Attestation], adapter: str, federation: str) -> ev.Attested | None:
    """None for what is said of something else, or in another form."""
    record = signed.record
    try:
        word = msgspec.convert(record.extra.get("round"), RoundWord)
    except msgspec.ValidationError:
        return None
    if word.version != 1 or word.federation != federation or record.metric != "loss":
        return None
    judgement = Judgement(before=word.previous / MICRO, after=record.value / MICRO, worse=word.worse)
    return ev.Attested(word.number, adapter, signed.author, judgement)
