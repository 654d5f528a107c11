"""The facts that a plan follows from: the data in the base's tokens, the machine, and a few real steps on it."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from orchd.jobs.context import JobContext
from orchd.lm.adapter import read_config
from orchd.lm.base import Base
from orchd.lm.generate import greedy_ids
from orchd.lm.losses import pack
from orchd.train import plan, precision
from orchd.train.base_facts import base_facts
from orchd.train.datasets.store import read_info
from orchd.train.objective import Example, Objective, objective_of
from orchd.train.plan import Facts
from orchd.train.plan_specs import Alone, BaseFacts, DataFacts, Machine, Pace, Trial
from orchd.train.specs import Settled, TrainSpec
from orchd.train.trainee import trainee_of

TRIAL_STEPS: Final = 4
MAX_RATES: Final = 5
"""So many learning rates are tried, each half of the one before."""

CLEARLY: Final = 0.8
"""A loss below this share of what it was has clearly fallen. On the demo base, rank 16, four steps at 5e-3 lower it to
a third, at 2e-2 they leave it at two thirds or raise it."""

PROBE_EXAMPLES, PROBE_TOKENS = 32, 2048
"""On which the base alone is tried: enough to see that it knows the answers, little enough not to be waited for."""

ANSWER_TOKENS: Final = 4
ANSWERS: Final = 8
"""So many answers are written together, and one alone: what a pass takes and each answer in it follow from both."""

PACE_TOKENS: Final = 1024


def data_facts(
    examples: Sequence[Example], validation: Sequence[Example], dataset: Path, *, aside: float = 0.0
) -> DataFacts:
    """Of what is learnt and validated on of a data set (a folder) of whose train part the share ``aside`` is put aside.

    Raises `DatasetUnusable`.
    """
    info = read_info(dataset)
    rows = info.train - round(aside * info.train)
    ids = [one.ids for one in examples]
    answers = {tuple(one.ids[at] for at, counts in enumerate(one.counted) if counts) for one in examples}
    return DataFacts(
        examples=len(examples),
        distinct=len(set(ids)),
        answers=len(answers),
        counted=sum(one.counted_tokens for one in examples),
        tokens=sum(map(len, ids)),
        longest=max(map(len, ids), default=0),
        lengths=len(set(map(len, ids))),
        too_long=max(0, rows - len(examples)),
        duplicates=info.duplicates + info.near_duplicates,
        validation=len(validation),
        validation_tokens=sum(len(one.ids) for one in validation),
        heldout=info.test,
        learns=info.learns,
    )


def machine_facts(job: JobContext, device: str, compute: str, outside: int) -> Machine:
    """As it is now, with the base loaded, all but the layers ``outside``."""
    return Machine(
        device=device,
        threads=job.threads,
        compute=compute,
        free_memory=precision.free_memory(device),
        free_disk=shutil.disk_usage(job.workdir).free,
        outside=outside,
    )


@dataclass(frozen=True)
class Trying:
    """What is tried before a training: ``backward`` adds the gradients of a batch's loss to the model's parameters,
    with an objective and so many tokens in a row; ``batches`` draws batches of so many examples."""

    spec: TrainSpec
    base: Base
    examples: Sequence[Example]
    objective: Objective
    backward: Callable[[Any, Sequence[Example], Callable[[], None], Objective, int], object]
    batches: Callable[[int], Iterator[Sequence[Example]]]
    job: JobContext

    @property
    def probe(self) -> list[Example]:
        return probe_of(self.examples, self.spec.seed)

    def referred(self, model: Any, examples: Sequence[Example]) -> Sequence[Example]:
        return self.objective.referred(model, examples, self.job)


def probe_of(examples: Sequence[Example], seed: int) -> list[Example]:
    """Some of the examples, drawn by the seed."""
    count = min(PROBE_EXAMPLES, len(examples))
    return _within(random.Random(f"{seed}/probe").sample(list(examples), count), PROBE_TOKENS)


@torch.inference_mode()
def alone(model: Any, examples: Sequence[Example], objective: Objective) -> Alone:
    """How well a model does on ``examples``, by what the training lowers."""
    model.eval()
    total, right, counted = 0.0, 0, 0
    for indexes in pack([len(one.ids) for one in examples]):
        losses, hits = objective.scores(model, [examples[i] for i in indexes])
        total, right, counted = total + float(losses.sum()), right + int(hits.sum()), counted + len(losses)
    return Alone(loss=round(total / counted, 6), accuracy=round(right / counted, 4), examples=len(examples))


def facts_of(trying: Trying, data: DataFacts, machine: Machine) -> Facts:
    """All of them. The base is tried on some of the examples, with the adapter that it goes on from if there is one."""
    spec, base, rank = trying.spec, trying.base, initial_rank(trying.spec)
    if not rank:
        found = alone(base.model, trying.referred(base.model, trying.probe), trying.objective)
    else:
        trainee = trainee_of(msgspec.structs.replace(spec, rank=spec.rank or rank), base)
        found = alone(trainee.model, trying.referred(trainee.model, trying.probe), trying.objective)
        trainee.undo()
    known = base_facts(base.path, base.model.dtype)
    return replace(facts_from(spec, trying.examples, data, known, machine), alone=found)


def facts_from(
    spec: TrainSpec, examples: Sequence[Example], data: DataFacts, base: BaseFacts, machine: Machine
) -> Facts:
    """Those that are known without the base's weights."""
    return Facts(
        data=data,
        lengths=[len(one.ids) for one in examples],
        base=base,
        machine=machine,
        initial_rank=initial_rank(spec),
        preferences=objective_of(spec).name == "dpo",
        full=spec.method == "full",
    )


def initial_rank(spec: TrainSpec) -> int:
    """Of the adapter that the training goes on from; 0 for a first training. Raises `AdapterUnfit`."""
    return 0 if spec.initial is None else read_config(Path(spec.initial)).r


@dataclass(frozen=True)
class _Attempt:
    """Trial steps at one learning rate: the probe's loss before and after, and the seconds of each step."""

    rate: float
    before: float
    after: float
    seconds: Sequence[float]


def try_steps(trying: Trying, settled: Settled) -> Trial:
    """A few real steps at the full learning rate. Where these do not clearly lower the loss, and nobody asked for the
    rate, half of it is tried, too, and so on: the best of them is kept.

    The base is afterwards as it was. Raises `JobCancelled`.
    """
    batches = trying.batches(settled.batch_size * trying.spec.gradient_accumulation_steps)
    chosen = [next(batches) for _ in range(TRIAL_STEPS)]
    if settled.gradient_checkpointing == "on":
        precision.recompute(trying.base.model)
    tried = [_attempt(trying, settled, chosen, settled.learning_rate)]
    while not trying.spec.learning_rate and len(tried) < MAX_RATES and _doubtful(tried):
        tried.append(_attempt(trying, settled, chosen, tried[-1].rate / 2))
    best = min(tried, key=lambda one: one.after if math.isfinite(one.after) else math.inf)
    later = best.seconds[1:]  # the first step also makes ready
    return Trial(
        steps=TRIAL_STEPS,
        step_s=sum(later) / len(later),
        tokens=sum(len(one.ids) for batch in chosen for one in batch) / TRIAL_STEPS,
        pace=Pace(token_s=0.0, pass_s=0.0, answer_s=0.0),
        loading_s=0.0,
        trying_s=0.0,
        memory=0,
        loss_before=best.before,
        loss_after=best.after,
        rate=best.rate,
        rates=tuple(one.rate for one in tried),
    )


def _doubtful(tried: Sequence[_Attempt]) -> bool:
    """The last rate did not clearly lower the loss, and is no worse than the one before it."""
    last = tried[-1]
    if last.after <= CLEARLY * last.before:
        return False
    return len(tried) == 1 or not tried[-2].after < last.after


def _attempt(trying: Trying, settled: Settled, batches: Sequence[Sequence[Example]], rate: float) -> _Attempt:
    torch.manual_seed(trying.spec.seed)
    trainee = trainee_of(settled.put_into(trying.spec), trying.base)
    model = trainee.model
    shown = trying.referred(model, trying.probe)
    before = alone(model, shown, trying.objective)
    with plan.memory_watched(settled):
        seconds = _take(trying, settled, model, [trying.referred(model, batch) for batch in batches], rate)
    after = alone(model, shown, trying.objective)
    trainee.undo()
    return _Attempt(rate, before.loss, after.loss, seconds)


def _take(
    trying: Trying, settled: Settled, model: Any, batches: Sequence[Sequence[Example]], rate: float
) -> list[float]:
    """A step a batch. Gives the seconds of each."""
    model.train()
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=trying.spec.weight_decay)
    seconds = []
    for batch in batches:
        begun = time.perf_counter()
        trying.backward(model, batch, trying.job.check, trying.objective, settled.row_tokens)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    return seconds


def pace(model: Any, probe: Sequence[Example], objective: Objective, job: JobContext) -> Pace:
    """How fast ``model`` scores and answers; it is left in eval mode. Raises `JobCancelled`."""
    model.eval()
    rows = objective.referred(model, _within(probe, PACE_TOKENS), job)
    job.check()
    token_s = _seconds_of(lambda: alone(model, rows, objective)) / sum(len(one.ids) for one in rows)
    prompt = rows[0].ids[: max(1, rows[0].counted.index(True))]
    single, several = (_pass_seconds(model, [prompt] * count, job.check) for count in (1, ANSWERS))
    answer_s = max(0.0, several - single) / (ANSWERS - 1)
    return Pace(token_s=token_s, pass_s=max(0.0, single - answer_s), answer_s=answer_s)


def _pass_seconds(model: Any, prompts: Sequence[Sequence[int]], check: Callable[[], None]) -> float:
    """What one more token of all answers takes: many less one, so that reading the prompts is in neither."""
    check()
    first = _seconds_of(lambda: greedy_ids(model, prompts, 1, set()))
    whole = _seconds_of(lambda: greedy_ids(model, prompts, 1 + ANSWER_TOKENS, set()))
    return max(0.0, whole - first) / ANSWER_TOKENS


def _seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _within(examples: Sequence[Example], tokens: int) -> list[Example]:
    """The first ones of so many tokens together, one at least."""
    sums = accumulate(len(one.ids) for one in examples)
    return [one for one, sum_ in zip(examples, sums, strict=True) if one is examples[0] or sum_ <= tokens]


def settle(trying: Trying, facts: Facts) -> Settled:
    """What a training without settings is run with. A learning rate that nobody asked for is tried first, but where one
    schedule spans several runs: each of them has to take the same. Raises `MemoryShort`, `JobCancelled`.
    """
    settled, lines = plan.settle(trying.spec, facts)
    if not trying.spec.learning_rate and not trying.spec.schedule_total:
        settled, lines = plan.settle(trying.spec, facts, try_steps(trying, settled).rate)
    for line in lines:
        trying.job.log(f"{line.name} {line.shown}: {line.why}")
    for reason in settled.doubts:
        trying.job.log(f"this training is not worth it: {reason}")
    return settled
