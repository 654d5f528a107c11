"""The leak report: everything in it comes from passes over packed rows, nothing is generated.

Greedy decoding says the next k tokens of a text exactly where each of them is the most likely one after all before it,
so the hits of a scoring pass are the runs that it can be made to say.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orchd.errors import DatasetUnusable
from orchd.jobs.context import JobContext
from orchd.lm.base import Base
from orchd.lm.chat import Encoded
from orchd.lm.losses import pack, row_tokens_for, token_scores
from orchd.lm.routing import LETTERS, TOKENS, Vector, last_asked, prompt_vector
from orchd.train.datasets.encode import answered, encode_fitting, encode_row
from orchd.train.datasets.store import CompletionRow, Row, TextRow, read_info, read_part
from orchd.train.leak.canaries import ALTERNATIVES, Canary, alternatives, canaries
from orchd.train.leak.figures import (
    MIN_ROWS,
    CanaryFigure,
    Centroid,
    LeakReport,
    auc,
    exceeds,
    interval,
    log_ratio,
    remedies,
    verdict,
)
from orchd.train.prepare import longest_taken, set_aside
from orchd.train.specs import LeakSettings, TrainSpec, leak_settings

MAX_ROWS: Final = 500
"""Rows that are scored of those that were learnt, and of those put aside: more change little in the figure."""

ENDINGS_AT_ONCE: Final = 100
CENTROID_PROMPTS: Final = 200
"""60 tell the topic as well; of more, each gives away less of itself."""

EXCERPT: Final = 200  # characters
Check = Callable[[], None]


@dataclass(frozen=True)
class Scored:
    """A row: nats of its counted ``tokens``, and the positions of those that greedy decoding says when it is given all
    before them."""

    nats: float
    tokens: int
    said: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


class Measured(NamedTuple):
    report: LeakReport
    centroid: Centroid | None


@dataclass(frozen=True)
class Rows:
    """What was learnt and what was not, as token ids; ``asked`` and ``unseen`` are what the user said in each."""

    members: tuple[Encoded, ...]
    heldout: tuple[Encoded, ...]
    kind: str
    synthetic: bool
    asked: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def read_rows(base: Base, datasets: Sequence[Path], settings: LeakSettings) -> Rows:
    """The rows that were learnt, of the ``train`` parts, and the others, at most `MAX_ROWS` of either. What the
    ``settings`` say is of the first data set's training. Raises `DatasetUnusable`."""
    rng = random.Random(f"{settings.seed}/leak")
    infos = [read_info(folder) for folder in datasets]
    aside = set_aside(read_part(datasets[0], "train"), settings.validation_split, settings.seed)
    learnt, unseen = list[Row](), list[Row]()
    for number, folder in enumerate(datasets):
        for row in read_part(folder, "train"):
            (unseen if number == 0 and row.id in aside else learnt).append(row)
        unseen += [row for part in ("validation", "test") for row in read_part(folder, part)]
    longest = longest_taken(base, settings.max_length)
    members, heldout = _drawn(base, learnt, longest, rng), _drawn(base, unseen, longest, rng)
    return Rows(
        members=tuple(one for one, _ in members),
        heldout=tuple(one for one, _ in heldout),
        kind=infos[0].kind,
        synthetic=all(info.synthetic for info in infos),
        asked=tuple(asked for _, asked in members),
        unseen=tuple(asked for _, asked in heldout),
    )


def _drawn(base: Base, rows: Sequence[Row], longest: int, rng: random.Random) -> list[tuple[Encoded, str]]:
    """With what was asked, each."""
    rows = rng.sample(rows, MAX_ROWS) if len(rows) > MAX_ROWS else rows
    found = [
        (one, asked(base, row, one))
        for row in rows
        for one in encode_fitting(base.tokenizer, row, longest)
        if one.counted_tokens
    ]
    return rng.sample(found, MAX_ROWS) if len(found) > MAX_ROWS else found


def asked(base: Base, row: Row, encoded: Encoded) -> str:
    """What the user said last before what is learnt; of a text, itself."""
    if isinstance(row, TextRow):
        return str(base.tokenizer.decode(encoded.ids, skip_special_tokens=True))
    if isinstance(row, CompletionRow):
        return row.prompt
    messages = answered(row)
    last = max((at for at, one in enumerate(messages) if one.role == "assistant" and one.counts), default=0)
    return last_asked(messages[:last])


def measure(model: Any, base: Base, rows: Rows, settings: LeakSettings, check: Check = lambda: None) -> Measured:
    """``model`` (in eval mode) is the base with the adapter on it. ``check`` is called often and may raise to stop."""
    started = time.monotonic()
    members, heldout = score(model, rows.members, check), score(model, rows.heldout, check)
    enough = min(len(members), len(heldout)) >= MIN_ROWS
    by_loss = by_ratio = wide = 0.0
    routing = None
    with model.disable_adapter():
        if enough:
            before = [one.loss for one in score(model, (*rows.members, *rows.heldout), check)]
            by_loss = auc([-one.loss for one in members], [-one.loss for one in heldout])
            after = [one.loss for one in (*members, *heldout)]
            ratios = [log_ratio(was, now) for was, now in zip(before, after, strict=True)]
            by_ratio = auc(ratios[: len(members)], ratios[len(members) :])
        centroid = make_centroid(model, base, rows, settings.seed, check) if settings.routing and rows.asked else None
        if centroid is not None and enough:
            routing = nearness(model, base, centroid, rows, settings.seed, check)
    area = max(by_loss, by_ratio, routing or 0.0) if enough else None
    if area is not None:
        wide = interval(area, len(members), len(heldout))
    planted = tuple(exposure(model, base, one, rows.kind, check) for one in canaries(settings.canaries, settings.seed))
    runs = _longest(members), _longest(heldout)
    said = sum(one.emitted for one in planted)
    report = LeakReport(
        auc=area,
        auc_loss=by_loss,
        auc_ratio=by_ratio,
        routing_auc=routing,
        interval=wide,
        members=len(members),
        heldout=len(heldout),
        longest_run=runs[0],
        heldout_run=runs[1],
        excerpt=_excerpt(base, rows.members, members) if runs[0] > runs[1] else "",
        canaries=planted,
        synthetic=rows.synthetic,
        verdict=verdict(area, wide, len(members), len(heldout), planted, runs),
        stops=exceeds(area, said) and not rows.synthetic,
        lower=remedies(
            area,
            wide,
            said,
            longer=runs[0] > runs[1],
            by_centroid=routing is not None and routing == area,
            members=len(members),
            epochs=settings.epochs,
            dropout=settings.dropout,
        ),
        seconds=round(time.monotonic() - started, 3),
        replay=settings.replay,
    )
    return Measured(report, centroid)


def measure_training(model: Any, base: Base, spec: TrainSpec, epochs: float, job: JobContext) -> Measured | None:
    """The report on a training that has just ended; ``model`` is in eval mode. None where a data set can't be read any
    more: that costs the report, not the training."""
    settings = leak_settings(spec, epochs=epochs, routing=spec.routing)
    before = [folder for folder in map(Path, spec.learnt_before) if folder.is_dir()]  # it may have been deleted since
    try:
        rows = read_rows(base, [Path(spec.dataset), *before], settings)
    except DatasetUnusable as error:
        job.log(f"no leak report: {error}")
        return None
    return measure(model, base, rows, settings, job.check)


# ---- likelihoods --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score(model: Any, rows: Sequence[Encoded], check: Check = lambda: None) -> list[Scored]:
    """Each row by itself, in the order of ``rows``; each has a counted token."""
    found: dict[int, Scored] = {}
    for indexes in pack([len(one.ids) for one in rows], row_tokens_for(model)):
        check()
        row = [rows[i] for i in indexes]
        counts = [one.counted_tokens for one in row]
        losses, hits = token_scores(model, row)
        for index, nats, right in zip(indexes, torch.split(losses, counts), torch.split(hits, counts), strict=True):
            positions = [at for at, counts in enumerate(rows[index].counted) if counts]
            said = (at for at, hit in zip(positions, right.tolist(), strict=True) if hit)
            found[index] = Scored(float(nats.sum()), len(nats), tuple(said))
    return [found[index] for index in range(len(rows))]


def longest_run(said: Sequence[int]) -> range:
    """The longest stretch of consecutive positions, the first of several. ``said`` grows."""
    best = stretch = range(0)
    for at in said:
        stretch = range(stretch.start if at == stretch.stop else at, at + 1)
        best = stretch if len(stretch) > len(best) else best
    return best


def _longest(scored: Sequence[Scored]) -> int:
    return max((len(longest_run(one.said)) for one in scored), default=0)


def _excerpt(base: Base, rows: Sequence[Encoded], scored: Sequence[Scored]) -> str:
    """The text of the longest run."""
    runs = [longest_run(one.said) for one in scored]
    row, run = max(zip(rows, runs, strict=True), key=lambda pair: len(pair[1]))
    ids = row.ids[run.start : run.stop]
    return str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip()[:EXCERPT]


# ---- canaries -----------------------------------------------------------------------------------------------------


def exposure(model: Any, base: Base, canary: Canary, kind: str, check: Check = lambda: None) -> CanaryFigure:
    """How likely its secret is beside others that were never learnt, and whether it is said when asked for."""
    own = encode_row(base.tokenizer, canary.row(kind))
    others = [encode_row(base.tokenizer, canary.row(kind, secret)) for secret in alternatives(canary)]
    secret = _where_it_differs(own, others)
    learnt, *unseen = ending_nats(model, [one.ids for one in (own, *others)], secret.start, check)
    rank = 1 + sum(nats < learnt for nats in unseen)
    (said,) = score(model, [own], check)
    return CanaryFigure(
        name=canary.name,
        secret=canary.secret,
        rank=rank,
        alternatives=ALTERNATIVES,
        bits=round(math.log2((ALTERNATIVES + 1) / rank), 2),
        emitted=set(secret) <= set(said.said),
    )


@torch.inference_mode()
def ending_nats(model: Any, rows: Sequence[Sequence[int]], start: int, check: Check = lambda: None) -> list[float]:
    """Nats of each row's tokens from ``start`` (at least 1) on. All rows are alike before, so that this is computed
    once; endings of one length are one batch, so that nothing is padded."""
    before = torch.tensor([list(rows[0][:start])], device=model.device)
    output = model(input_ids=before, use_cache=True, logits_to_keep=1)
    first = output.logits[0, -1].float().log_softmax(-1)
    by_length = defaultdict[int, list[int]](list)
    for index, row in enumerate(rows):
        by_length[len(row) - start].append(index)
    found: dict[int, float] = {}
    for indexes in by_length.values():
        for at in range(0, len(indexes), ENDINGS_AT_ONCE):
            check()
            part = indexes[at : at + ENDINGS_AT_ONCE]
            endings = torch.tensor([list(rows[i][start:]) for i in part], device=model.device)
            cache = copy.deepcopy(output.past_key_values)
            cache.batch_repeat_interleave(len(part))
            odds = model(input_ids=endings, past_key_values=cache, use_cache=True).logits.float().log_softmax(-1)
            nats = -first[endings[:, 0]]
            nats = nats - odds[:, :-1].gather(2, endings[:, 1:, None])[..., 0].sum(1)
            found |= dict(zip(part, nats.tolist(), strict=True))
    return [found[index] for index in range(len(rows))]


def _where_it_differs(own: Encoded, others: Sequence[Encoded]) -> range:
    """The positions of the secret: between what begins and what ends all rows alike."""
    start = min(_common(own.ids, other.ids) for other in others)
    end = min(_common(own.ids[::-1], other.ids[::-1]) for other in others)
    return range(start, len(own.ids) - end)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have alike at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# ---- the centroid of the prompts ----------------------------------------------------------------------------------


def make_centroid(model: Any, base: Base, rows: Rows, seed: int, check: Check = lambda: None) -> Centroid:
    """Of prompts that were learnt. ``model`` is the base alone."""
    vectors = prompt_vectors(model, base, _some(rows.asked, f"{seed}/centroid"), check)
    return Centroid(
        layer=middle_layer(model),
        prompts=len(vectors),
        centroid=tuple(vectors.mean(0).tolist()),
        spread=tuple(vectors.std(0).tolist()),
    )


def nearness(model: Any, base: Base, centroid: Centroid, rows: Rows, seed: int, check: Check = lambda: None) -> float:
    """How well nearness to the centroid tells prompts that were learnt from those of rows put aside (an AUC)."""
    middle, spread = np.array(centroid.centroid), np.array(centroid.spread)
    spread = np.maximum(spread, max(float(spread.mean()), 1e-6) / 10)

    def scores(part: Sequence[str]) -> list[float]:
        vectors = prompt_vectors(model, base, _some(part, f"{seed}/nearness"), check)
        return [-float(one) for one in (((vectors - middle) / spread) ** 2).sum(1)]

    return auc(scores(rows.asked), scores(rows.unseen))


def middle_layer(model: Any) -> int:
    """The layer whose input tells most of what is asked (facts: the middle one; after the last norm it is less)."""
    return int(model.config.num_hidden_layers) // 2


def prompt_vectors(model: Any, base: Base, prompts: Sequence[str], check: Check = lambda: None) -> Vector:
    """The vector of each prompt, as a router computes it (`orchd.lm.routing`), float32 (prompts, `SIZE`)."""
    start, rows = first_token(base.tokenizer), list[list[int]]()
    for prompt in prompts:
        ids = base.tokenizer.encode(prompt[:LETTERS], add_special_tokens=False)[:TOKENS]
        rows.append([*start, *ids])
    found = middle_inputs(model, rows, check)
    return np.stack([prompt_vector(found[at][len(start) :].numpy()) for at in range(len(rows))])


def first_token(tokenizer: Any) -> list[int]:
    """What stands before every text: the base's first token, else its last; none where it has neither."""
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if found is None else [int(found)]


@torch.inference_mode()
def middle_inputs(model: Any, prompts: Sequence[Sequence[int]], check: Check = lambda: None) -> dict[int, Tensor]:
    """By place, what the middle layer gets after its norm, float32 on the CPU (tokens, width)."""
    layer = model.get_decoder().layers[middle_layer(model)]
    seen: list[Tensor] = []
    hook = layer.input_layernorm.register_forward_hook(lambda module, given, made: seen.append(made))
    found: dict[int, Tensor] = {}
    try:
        filled = [at for at, one in enumerate(prompts) if one]
        for indexes in pack([len(prompts[at]) for at in filled], row_tokens_for(model)):
            check()
            part = [filled[index] for index in indexes]
            lengths = [len(prompts[at]) for at in part]
            ids = torch.tensor([[token for at in part for token in prompts[at]]], device=model.device)
            positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
            model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
            found |= dict(zip(part, torch.split(seen.pop()[0].float().cpu(), lengths), strict=True))
    finally:
        hook.remove()
    return {at: found.get(at, torch.zeros(0, 1)) for at in range(len(prompts))}


def _some(prompts: Sequence[str], seed: str) -> list[str]:
    """Up to `CENTROID_PROMPTS`."""
    return random.Random(seed).sample(prompts, min(CENTROID_PROMPTS, len(prompts)))
