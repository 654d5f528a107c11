"""From data, base and machine to the settings of a training: each rule with its why, all of them here.

Pure: facts in, settings and words out. `measure.py` finds the facts and takes the trial steps; `diagnosis.py` and
`settings.py` have what is said after a training and what can't be set at all. No torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from orchd.errors import MemoryShort
from orchd.jobs.sandbox import limits
from orchd.train.plan_specs import Alone, BaseFacts, DataFacts, Line, Machine, Plan, Trial, Work
from orchd.train.schedule import WARM_UP_SHARE
from orchd.train.specs import Finding, Settled, TrainSpec, alpha_of
from orchd.units import size

STEPS_PER_ROOT: Final = 25
"""Steps = 25·√n: half is clearly worse, double gains little (facts on training, section 6). Beside a quarter to four
times of it, chosen on validation, it is within .02 nats with 100 and 300 rows of `animals`, 100 of `translate` and 20
of `reverse`, with `DROPOUT` (benchmarks/train/steps.py, one seed); without, four times were 43 % better with 300."""

RATE_TIMES_WIDTH: Final = 0.64
"""The learning rate of rank 16 times the base's hidden width. 5e-3 at width 128 and 1e-3 at 576 were measured (facts on
training, sections 2 and 11); one over the width between and beyond them is Yang et al., Tensor Programs V (2022)."""

RATE_RANK: Final = 16
"""The rate goes with the root of this over the rank: on the demo base 1e-2 fails at rank 16 and 64, 2e-2 is fine at 4,
and 2.5e-3 is the best at 64."""

RATE_RANGE: Final = (0.1, 4.0)
"""Times the plan's rate: outside of it a training learns next to nothing, or goes astray."""

USUAL_RATES: Final = (1e-5, 1e-3)
"""Where bases learn whose width is not known."""

FULL: Final = 0.1
"""Of the rate, for whole weights (Schulman et al., LoRA Without Regret, 2025: that of a LoRA is ten times as high). On
the demo base a twentieth to two fifths of it come to the same, a loss below .001 (benchmarks/train/rates.py, one
seed)."""

PREFERENCES: Final = 0.5
"""Of the rate: DPO pushes answers down as well as up. On the demo base, rank 4, 60 steps at the whole of it bring a
quarter of the answers, at half of it most; at rank 16 and 250 steps, a quarter to the whole come to the same
(benchmarks/train/rates.py, one seed)."""

CONTINUED: Final = 0.5
"""Of the steps of a first training: part of the way is behind it. Of the rate it takes the whole: on the demo base an
adapter of `reverse` that goes on with 100 rows of `translate` comes to a test loss of .005 so, to .24 at half of the
rate, and what it knew before is lost by both (loss 7.7 and 6.5); all of the steps bring .04 (benchmarks/train/rates.py,
one seed)."""

DROPOUT: Final = 0.25
"""Of an adapter's inner numbers. What 300 rows of `animals` teach is learnt by heart without it: .0005 nats on them and
.31 on 1,000 others (six seeds); with a quarter left out .21 (.15 to .28; the same six). On the way to it, three seeds
with 500 others: none .33, .15 .24, a quarter .21; PEFT's own, of what comes into A, .1 .22 and .2 .19, in a fifth more
time on the demo base; twice the steps .29; averages over the last steps .27 to .33. With 100 rows of `translate` it is
.003 instead of .007, with 20 of `reverse` .003 instead of .005 (one seed each)."""

RANK, MAX_PLANNED_RANK, LEAST_RANK = 16, 64, 4
SHORTEST: Final = 256
"""Examples are not cut to fewer tokens to save memory."""

BITS_PER_NUMBER: Final = 2.0
"""What a trained number can hold (Allen-Zhu & Li, Physics of Language Models 3.3, 2024)."""

BATCH: Final = 8
SMALL_BASE_BATCH: Final = 16
SMALL_BASE: Final = 20_000_000
"""With a base with fewer parameters a step of 16 examples takes hardly longer than one of 8."""

ROW_TOKENS: Final = 1024
"""Packed into one pass, where memory allows it."""

MEMORY_SHARE: Final = 0.7
"""Of the free memory, what a training may take: other programs want some, too."""

BYTES_PER_TRAINED: Final = 16
"""Of a number that is trained, float32: itself, its gradient, and AdamW's two moments."""

BYTES_PER_KEPT: Final = 16
"""Of a number of an adapter besides, float32: the best three are held in memory, and it itself while one is written."""

MARGIN_BYTES: Final = 32_000_000
"""For what is none of that: buffers of the libraries, and what comes after the last step. On the demo base a training
was seen to fail with 17 MB to fill and to end with 47 MB (two threads, rank 8)."""

WORTH_EXAMPLES: Final = 20
"""The fewest that were seen to teach something that holds for others (facts on training, section 6)."""

FEW_EXAMPLES: Final = 50
KNOWN_ACCURACY: Final = 0.98
KNOWN_LOSS: Final = 0.02
UNTESTED: Final = "no rows are put aside to test on: nothing will say how good it is on rows that it has not seen"
UNTESTED_HINT: Final = "Import it without `--split train`, or give rows of their own to `orchctl adapter evaluate`."
MANY_EPOCHS: Final = 100.0
"""The plan itself comes to 90 for its fewest examples."""
SCALES: Final = (0.5, 8.0)
"""Alpha over rank, outside of which it is a slip more often than a wish."""


OF_ADAPTERS: Final = ("rank", "alpha", "lora_dropout")
"""Where whole weights are trained there is none of them."""


def default_steps(examples: int) -> int:
    return max(1, round(STEPS_PER_ROOT * math.sqrt(examples)))


@dataclass(frozen=True)
class Facts:
    """All that a plan follows from. ``lengths`` are the tokens of each example. ``alone`` is None before the base was
    tried, ``initial_rank`` 0 for a first training; ``preferences`` are learnt by DPO; ``full`` trains the base.
    ``after`` is what comes after the last step."""

    data: DataFacts
    lengths: Sequence[int]
    base: BaseFacts
    machine: Machine
    alone: Alone | None = None
    initial_rank: int = 0
    preferences: bool = False
    full: bool = False
    after: Sequence[Work] = ()

    def trained(self, rank: int) -> int:
        """How many numbers are trained at most: chosen layers or modules are fewer."""
        return self.base.parameters if self.full else rank * self.base.adapter_parameters


@dataclass(frozen=True)
class Place:
    """How much is in memory at once."""

    recompute: bool
    row_tokens: int
    max_length: int
    rank: int


# ---- settings -----------------------------------------------------------------------------------------------------


def settle(spec: TrainSpec, facts: Facts, rate: float = 0.0) -> tuple[Settled, tuple[Line, ...]]:
    """The settings that ``spec`` leaves open, and a line of why for each. ``rate`` is what a trial came to (0: none).

    Raises `MemoryShort` when nothing fits, with what would.
    """
    rank, why_rank = _rank(spec, facts)
    place = fit(spec, facts, rank)
    batch, why_batch = _batch(spec, facts)
    steps, why_steps = _steps(spec, facts, batch * spec.gradient_accumulation_steps)
    peak, why_rate = _rate(spec, facts, rank, rate)
    warm_up, why_warm_up = _warm_up(spec, steps)
    alpha = alpha_of(msgspec.structs.replace(spec, rank=rank))
    dropout, why_dropout = _dropout(spec, facts)
    settled = Settled(
        rank=rank,
        alpha=alpha,
        learning_rate=peak,
        batch_size=batch,
        steps=steps,
        warmup_steps=warm_up,
        max_length=place.max_length,
        row_tokens=place.row_tokens,
        gradient_checkpointing="on" if place.recompute else "off",
        backend=facts.machine.backend,
        lora_dropout=dropout,
        doubts=not_worth(facts.data, facts.alone),
        computed=f"{facts.machine.compute} on {facts.machine.device}",
    )
    found = (
        *_backend(spec, facts),
        Line(name="steps", value=steps, shown=f"{steps:,}", why=why_steps),
        Line(name="batch_size", value=batch, shown=str(batch), why=why_batch),
        Line(name="max_length", value=place.max_length, shown=f"{place.max_length:,} tokens", why=_length(spec, facts)),
        Line(name="rank", value=rank, shown=str(rank), why=why_rank),
        Line(name="alpha", value=alpha, shown=f"{alpha:g}", why=_alpha(spec)),
        Line(name="lora_dropout", value=dropout, shown=f"{dropout:g}", why=why_dropout),
        Line(name="learning_rate", value=peak, shown=f"{peak:g}", why=why_rate),
        Line(name="warmup_steps", value=warm_up, shown=str(warm_up), why=why_warm_up),
        _checkpointing(spec, facts, place),
        *_offload(spec, facts),
    )
    return settled, tuple(line for line in found if not (facts.full and line.name in OF_ADAPTERS))


def _backend(spec: TrainSpec, facts: Facts) -> Iterator[Line]:
    """Said where it is not what everybody has."""
    backend = facts.machine.backend
    if spec.backend == backend:
        yield Line(name="backend", value=backend, shown=backend, why="as asked")
    elif backend == "mlx":
        why = "this is one of Apple's processors, and mlx, which is made for them, is installed"
        yield Line(name="backend", value=backend, shown=backend, why=why)


def _rank(spec: TrainSpec, facts: Facts) -> tuple[int, str]:
    if spec.rank:
        return spec.rank, "as asked"
    if facts.initial_rank:
        return facts.initial_rank, "that of the adapter that it goes on from"
    told = facts.alone.loss if facts.alone is not None else 0.0
    bits = facts.data.counted * told / math.log(2)
    holds = BITS_PER_NUMBER * facts.base.adapter_parameters
    rank = RANK
    while rank < MAX_PLANNED_RANK and rank * holds < bits:
        rank *= 2
    if bits:
        room = rank * holds / 8e3
        return rank, f"has room for {room:,.0f} kB; of the data the base does not know {bits / 8e3:,.0f} kB at most"
    return rank, "the usual one"


def _alpha(spec: TrainSpec) -> str:
    if spec.alpha is not None:
        return "as asked"
    return "scales rank 16 as without rsLoRA" if spec.rslora else "twice the rank"


def _dropout(spec: TrainSpec, facts: Facts) -> tuple[float, str]:
    if spec.lora_dropout is not None:
        return spec.lora_dropout, "as asked"
    for reason, holds in (
        ("of preferences", facts.preferences),
        ("of one of several rounds", spec.schedule_total > 0),
        ("of a base of this size", facts.base.parameters >= SMALL_BASE),
    ):
        if facts.full or holds:
            return 0.0, f"none: it was not measured to help the training {reason}"
    return DROPOUT, "with it what is learnt holds better for rows that were not seen"


def _batch(spec: TrainSpec, facts: Facts) -> tuple[int, str]:
    if spec.batch_size:
        return spec.batch_size, "as asked"
    small = facts.base.parameters < SMALL_BASE
    usual = SMALL_BASE_BATCH if small else BATCH
    if facts.data.examples < usual:
        return max(1, facts.data.examples), "all examples at once: there are no more"
    return (
        usual,
        "a base this small takes 16 as fast as 8" if small else "what the rule for the steps was measured with",
    )


def _steps(spec: TrainSpec, facts: Facts, batch: int) -> tuple[int, str]:
    """``batch`` is examples a step."""
    steps, why = _wanted_steps(spec, facts, batch)
    if spec.max_steps and spec.max_steps < steps:
        return spec.max_steps, f"at most {spec.max_steps:,}, as asked; it would be {steps:,}"
    return steps, why


def _wanted_steps(spec: TrainSpec, facts: Facts, batch: int) -> tuple[int, str]:
    n = facts.data.examples
    if spec.steps:
        return spec.steps, "as asked"
    if spec.epochs:
        return max(1, math.ceil(spec.epochs * n / batch)), f"{spec.epochs:g} epochs of {n:,} examples, {batch} a step"
    steps = round(default_steps(facts.data.distinct) / (1 - spec.replay))
    told = f"{STEPS_PER_ROOT} times the root of {facts.data.distinct:,} examples"
    told += f", and what {spec.replay:.0%} of replay takes" if spec.replay else ""
    if facts.initial_rank and not spec.schedule_total:
        return max(1, round(CONTINUED * steps)), f"half of {told}: it goes on from an adapter"
    return steps, f"{told}; half is clearly worse, double gains little"


def _rate(spec: TrainSpec, facts: Facts, rank: int, tried: float) -> tuple[float, str]:
    if spec.learning_rate:
        return spec.learning_rate, "as asked"
    rate, why = rule_rate(facts.base, RATE_RANK if spec.rslora else rank)
    if facts.full:
        rate, _ = rule_rate(facts.base, RATE_RANK)
        rate, why = float(f"{FULL * rate:.2g}"), f"a tenth of an adapter's, {rate:g}, for whole weights"
    if facts.preferences:
        rate, why = PREFERENCES * rate, f"{why}; half of it for preferences"
    if tried and tried < rate:
        return tried, f"in the trial steps it lowered the loss more than {rate:g} did; {why}"
    return rate, why


def rule_rate(base: BaseFacts, rank: int) -> tuple[float, str]:
    """Before any trial. rsLoRA does by its scale what the root of the rank does here: give `RATE_RANK` for it."""
    width = base.width
    rate = RATE_TIMES_WIDTH / width * math.sqrt(RATE_RANK / rank)
    return float(f"{rate:.2g}"), f"for a base {width:,} wide, by the root of the rank"


def odd_rate(spec: TrainSpec, rate: float, rank: int, base: BaseFacts | None) -> Finding | None:
    """What there is to say of a learning rate outside the range that suits the base; of `USUAL_RATES`, without one."""
    low, high = USUAL_RATES
    if base is not None:
        usual, _ = rule_rate(base, RATE_RANK if spec.rslora else rank)
        low, high = (float(f"{share * usual:.2g}") for share in RATE_RANGE)
    if low <= rate <= high:
        return None
    whom = "most bases" if base is None else f"this base, which is {base.width:,} wide"
    told = f"learning_rate {rate:g} is outside {low:g}…{high:g}, the range that suits {whom}"
    return Finding(field="learning_rate", message=told)


def _warm_up(spec: TrainSpec, steps: int) -> tuple[int, str]:
    if spec.warmup_steps is not None:
        return spec.warmup_steps, "as asked"
    total = spec.schedule_total or steps
    return max(1, round(WARM_UP_SHARE * total)), f"{WARM_UP_SHARE:.0%} of {total:,} steps"


def _length(spec: TrainSpec, facts: Facts) -> str:
    cut = facts.data.too_long
    left_out = f"{cut:,} rows are longer and left out" if cut else "nothing is cut"
    if spec.max_length:
        return f"as asked; {left_out}"
    return f"the longest example has {facts.data.longest:,}; {left_out}"


def _checkpointing(spec: TrainSpec, facts: Facts, place: Place) -> Line:
    asked = "as asked; " if spec.gradient_checkpointing != "auto" else ""
    free = facts.machine.free_memory
    kept = size(needed(facts, replace(place, recompute=False)))
    there = "" if free is None else f" of {size(free)} free"
    why = f"{asked}a pass of {place.row_tokens:,} tokens keeps about {kept}{there}"
    if facts.machine.outside:
        why += "; without it the layers that are not held would be kept"
    shown = "on" if place.recompute else "off"
    return Line(name="gradient_checkpointing", value=shown, shown=shown, why=why)


def _offload(spec: TrainSpec, facts: Facts) -> Iterator[Line]:
    """Said where it is not what everybody has."""
    base, machine = facts.base, facts.machine
    if spec.offload is None and not machine.outside:
        return
    whole = f"the base takes {size(base.parameters * base.itemsize)}"
    stay = f"{whole}; these layers stay in its files, and each step reads them twice" if machine.outside else whole
    asked = "" if spec.offload is None else "as asked; "
    shown = f"{machine.outside} of {base.layers} layers"
    yield Line(name="offload", value=machine.outside, shown=shown, why=asked + stay)


NOTHING_FITS: Final = "Close other programs, or train on a smaller base; nothing that can be set makes this one fit."

# ---- memory -------------------------------------------------------------------------------------------------------


def needed(facts: Facts, place: Place) -> int:
    """Bytes that a training takes besides the base itself, about.

    In each layer of a Llama a pass keeps eight vectors of the hidden width and five of the inner one a token (norms,
    projections, gate, product), and the logits in float32; computed twice, the layer's input and one layer's values.
    After Korthikanti et al., Reducing Activation Recomputation (2022), section 4, without the attention scores, which
    are not kept.
    """
    each = BYTES_PER_TRAINED + (0 if facts.full else BYTES_PER_KEPT)
    base, tokens = facts.base, max(place.row_tokens, place.max_length)
    layer = (8 * base.width + 5 * base.inner) * base.itemsize
    kept = base.layers * base.width * base.itemsize + layer if place.recompute else base.layers * layer
    return MARGIN_BYTES + facts.trained(place.rank) * each + tokens * (kept + 3 * 4 * base.vocabulary)


def fit(spec: TrainSpec, facts: Facts, rank: int) -> Place:
    """The first of `places` that memory allows. Raises `MemoryShort` naming how much is missing, and what fits."""
    asked, *others = places(spec, facts, rank)
    free = facts.machine.free_memory
    if free is None:
        return asked
    for place in (asked, *others):
        if needed(facts, place) <= MEMORY_SHARE * free:
            if place.max_length < asked.max_length or place.rank < rank or _overrules(spec, place):
                raise short(facts, asked, place)
            return place
    raise short(facts, asked, None)


def _overrules(spec: TrainSpec, place: Place) -> bool:
    return spec.gradient_checkpointing == "off" and place.recompute


def places(spec: TrainSpec, facts: Facts, rank: int) -> Iterator[Place]:
    """From the fastest to the one that takes least memory: the later ones leave out long examples, then rank."""
    longest = max(1, facts.data.longest)
    whole = max(spec.row_tokens or ROW_TOKENS, longest)
    if spec.gradient_checkpointing != "on" and not facts.machine.outside:
        yield Place(False, whole, longest, rank)
    yield Place(True, whole, longest, rank)
    yield Place(True, longest, longest, rank)
    for length in (length for length in (4096, 2048, 1024, 512, SHORTEST) if length < longest):
        yield Place(True, length, length, rank)
    for lower in (8, LEAST_RANK):
        if lower < rank and not facts.initial_rank and not facts.full:
            yield Place(True, min(SHORTEST, longest), min(SHORTEST, longest), lower)


def short(facts: Facts, asked: Place, fitting: Place | None, missing: int | None = None) -> MemoryShort:
    """The error that names how much memory was ``missing`` (bytes; None: by the estimate) and what fits."""
    free = facts.machine.free_memory or 0
    if missing is None:
        missing = needed(facts, asked) - round(MEMORY_SHARE * free)
    told = f"this training needs {size(needed(facts, asked))} besides the base, and may take "
    told += f"{size(round(MEMORY_SHARE * free))} of the {size(free)} that are free: {size(missing)} are missing"
    if fitting is None:
        return MemoryShort(told, hint=NOTHING_FITS, field="base")
    words = ["--gradient-checkpointing on"] if fitting.recompute else []
    if fitting.max_length < asked.max_length:
        words.append(f"--max-length {fitting.max_length}")
    words += [f"--rank {fitting.rank}"] if fitting.rank < asked.rank else []
    cut = sum(one > fitting.max_length for one in facts.lengths)
    left_out = f"; {cut:,} of {facts.data.examples:,} examples are longer and would be left out" if cut else ""
    hint = f"This fits, in {size(needed(facts, fitting))}: `{' '.join(words)}`{left_out}."
    return MemoryShort(told, hint=hint, field="max_length" if cut else "gradient_checkpointing")


@contextlib.contextmanager
def memory_watched(settled: Settled) -> Iterator[None]:
    """What memory running out comes down to: `MemoryShort`, with how much was missing and what takes less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (lacking := limits.shortage(error)) is None:
            raise
        raise MemoryShort(lacking, hint=_less(settled), field="max_length") from error


def _less(settled: Settled) -> str:
    """The next step to take less memory."""
    if settled.gradient_checkpointing == "off":
        words, does = "--gradient-checkpointing on", "computes layers twice and keeps a fraction of them"
    elif settled.max_length > SHORTEST:
        words, does = f"--max-length {max(SHORTEST, settled.max_length // 2)}", "leaves out longer examples"
    elif settled.rank > LEAST_RANK:
        words, does = f"--rank {max(LEAST_RANK, settled.rank // 2)}", "makes a smaller adapter"
    else:
        return NOTHING_FITS
    return f"Train with `{words}`: it {does}."


# ---- what it costs, and whether it is worth it ----------------------------------------------------------------------


def make(spec: TrainSpec, facts: Facts, trial: Trial, validations: int) -> Plan:
    """The whole plan. ``validations`` are made on the way. Raises `MemoryShort`."""
    settled, lines = settle(spec, facts, trial.rate)
    alone = facts.alone or Alone(loss=trial.loss_before, accuracy=0.0, examples=0)
    times = tuple(_times(settled, facts, trial, validations))
    memory, disk = _memory(spec, settled, facts, trial), _disk(spec, settled, facts)
    reasons = not_worth(facts.data, facts.alone)
    machine = facts.machine
    free_memory = "" if machine.free_memory is None else f"; {size(machine.free_memory)} are free"
    free_disk = "" if machine.free_disk is None else f"; {size(machine.free_disk)} are free"
    fell = f"{trial.loss_before:.3g} to {trial.loss_after:.3g}"
    tried = f"in {trial.steps} trial steps the loss went from {fell}, at {trial.step_s:.3g} s a step"
    costs = (
        Line(name="compute", value=machine.compute, shown=f"{machine.compute} on {machine.device}", why=tried),
        *times,
        Line(name="memory", value=memory, shown=size(memory), why=f"the most that the trial took{free_memory}"),
        Line(name="disk", value=disk, shown=size(disk), why=f"checkpoints, the best few, the adapter{free_disk}"),
    )
    return Plan(
        kind="continued" if facts.initial_rank else "first",
        worth=not reasons,
        reasons=reasons,
        settled=settled,
        lines=(*lines, *costs),
        warnings=tuple(warnings(spec, settled, facts)),
        seconds=float(times[0].value),
        memory=memory,
        disk=disk,
        data=facts.data,
        base=facts.base,
        machine=machine,
        alone=alone,
        trial=trial,
    )


def _times(settled: Settled, facts: Facts, trial: Trial, validations: int) -> Iterator[Line]:
    """What the whole takes, then what comes after the last step, one line each."""
    data, pace = facts.data, trial.pace
    validating = (validations + 1) * data.validation_tokens * pace.token_s if data.validation else 0.0
    after = [(work, pace.seconds(work, trial.loading_s)) for work in facts.after]
    parts = [
        ("loading", trial.loading_s),
        ("trial steps", trial.trying_s),
        ("steps", settled.steps * trial.step_s),
        ("validating", validating),
        *((work.phase, seconds) for work, seconds in after),
    ]
    told = ", ".join(f"{name} {duration(part)}" for name, part in parts if part)
    yield _time("seconds", sum(part for _, part in parts), f"measured here: {told}")
    for work, seconds in after:
        yield _time(f"{work.phase.replace(' ', '_')}_seconds", seconds, work.why)


def _time(name: str, seconds: float, why: str) -> Line:
    return Line(name=name, value=round(seconds, 1), shown=duration(seconds), why=why)


def _memory(spec: TrainSpec, settled: Settled, facts: Facts, trial: Trial) -> int:
    """The best few adapters are held in memory; whole bases are not."""
    return trial.memory + (0 if facts.full else spec.checkpointing.keep_best * 4 * facts.trained(settled.rank))


def _disk(spec: TrainSpec, settled: Settled, facts: Facts) -> int:
    """A checkpoint is what is trained and two moments, and is there twice for a moment; what is left is BF16."""
    one = 4 * facts.trained(settled.rank)
    return 2 * 3 * one + spec.checkpointing.keep_best * one + one


def not_worth(data: DataFacts, alone: Alone | None) -> tuple[str, ...]:
    """Why a training on this would not be worth its time; empty where it is."""
    found = []
    if data.distinct < WORTH_EXAMPLES:
        same = data.duplicates + data.examples - data.distinct
        also = f", and {same:,} more that are the same" if same else ""
        told = f"{data.distinct:,} {'example' if data.distinct == 1 else 'different examples'}{also}"
        found.append(f"{told}: below {WORTH_EXAMPLES} an adapter learns them by heart and little else")
    if data.examples > 1 and data.answers == 1:
        found.append("every example has the same answer: an adapter would learn to say that to everything")
    if alone is not None and (alone.accuracy >= KNOWN_ACCURACY or alone.loss <= KNOWN_LOSS):
        share = f"{alone.accuracy:.0%} of the answers' tokens"
        found.append(f"it is known already: {share} would be said without this training (loss {alone.loss:.3g})")
    return tuple(found)


# ---- what there is to say of settings -------------------------------------------------------------------------------


def warnings(spec: TrainSpec, settled: Settled, facts: Facts) -> Iterator[Finding]:
    """Settings that will likely make a worse adapter than others would."""
    data = facts.data
    if not facts.full and (rate := odd_rate(spec, settled.learning_rate, settled.rank, facts.base)):
        yield rate
    if WORTH_EXAMPLES <= data.distinct < FEW_EXAMPLES:
        told = f"{data.distinct} examples are few: it may learn them by heart"
        yield Finding(field="dataset", message=told, hint=f"From {FEW_EXAMPLES} on it is safer.")
    for reason in not_worth(data, facts.alone):
        yield Finding(field="dataset", message=f"not worth it: {reason}")
    if not data.heldout:
        yield Finding(field="dataset", message=UNTESTED, hint=UNTESTED_HINT)
    batch = settled.batch_size * spec.gradient_accumulation_steps
    if batch > data.examples:
        told = f"{batch} examples a step are more than the {data.examples:,} that there are"
        yield Finding(field="batch_size", message=told, hint=f"Give at most {data.examples}.")
    epochs = settled.steps * batch / max(1, data.examples)
    if epochs > MANY_EPOCHS:
        told = f"each example is seen {epochs:.0f} times: it is learnt by heart, and leaks"
        yield Finding(field="epochs" if spec.epochs else "steps", message=told)
    scale = settled.alpha / settled.rank
    if not spec.rslora and not SCALES[0] <= scale <= SCALES[1]:
        yield Finding(
            field="alpha", message=f"alpha over rank is {scale:g}; from {SCALES[0]:g} to {SCALES[1]:g} is usual"
        )
    if settled.warmup_steps > settled.steps / 2:
        told = f"{settled.warmup_steps} steps of warm-up leave less than half of {settled.steps} for learning"
        yield Finding(field="warmup_steps", message=told)
    if data.too_long:
        hint = "Give a longer one, or a base that takes in more." if spec.max_length else "A base that takes in more."
        told = f"{data.too_long:,} rows are longer than {spec.max_length or facts.base.context:,} tokens and left out"
        yield Finding(field="max_length", message=told, hint=hint)
    if spec.early_stopping.enabled and not data.validation and not spec.validation_split:
        told = "there is nothing to validate on, so that it never stops early"
        yield Finding(field="early_stopping.enabled", message=told, hint="Give a `validation_split`.", value=0.1)
    yield from _too_much(spec, settled, facts)


def _too_much(spec: TrainSpec, settled: Settled, facts: Facts) -> Iterator[Finding]:
    disk, free = _disk(spec, settled, facts), facts.machine.free_disk
    if free is not None and disk > free:
        hint = "Keep fewer checkpoints, or free some."
        yield Finding(field="checkpointing.keep_best", message=f"{size(disk)} of disk, {size(free)} free", hint=hint)


def recommendations(spec: TrainSpec, given: Sequence[str], facts: Facts) -> Iterator[Finding]:
    """For what was given: what the plan would have chosen, where that is far from it.

    A warm-up is a share of the steps that were asked for; the rest is what would be chosen if nothing were given.
    """
    _, lines = settle(TrainSpec(base=spec.base, dataset=spec.dataset, schedule_total=spec.schedule_total), facts)
    _, as_given = settle(msgspec.structs.replace(spec, warmup_steps=None), facts)
    warmups = [line for line in as_given if line.name == "warmup_steps"]
    for line in (*(line for line in lines if line.name != "warmup_steps"), *warmups):
        value = getattr(spec, line.name)
        if line.name not in given or not value or not line.value or isinstance(line.value, str):
            continue
        if not 0.5 <= value / line.value <= 2.0:
            yield Finding(field=line.name, message=line.why, value=line.value)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
