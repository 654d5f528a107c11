"""The job ``train``: a LoRA on a frozen base, in a plain loop that reads from top to bottom.

Batches are packed rows with a loss on the answers only; AdamW; one schedule, which can span
several rounds of averaging.
"""

from __future__ import annotations

import math
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers
from torch import Tensor

from orchd.errors import AdapterUnfit, DatasetUnusable, TrainingDiverged, TrainingRefused
from orchd.jobs.context import JobContext
from orchd.lm.adapter import (
    DTYPES,
    adapter_weights,
    read_config,
    read_weights,
    save_adapter,
    set_weights,
    start_adapter,
)
from orchd.lm.base import Base, best_device, load_base
from orchd.lm.chat import Encoded
from orchd.lm.losses import pack, token_losses
from orchd.train.datasets.store import read_part
from orchd.train.schedule import Schedule, default_steps
from orchd.train.score import encode_row, make_exam, mark
from orchd.train.specs import Score, TrainResult, TrainSpec

ROW_TOKENS: Final = 1024
MAX_GRADIENT_NORM: Final = 1.0
MAX_RANK: Final = 256


def run(spec: TrainSpec, job: JobContext) -> TrainResult:
    """Train on the data set's ``train`` part, save to ``adapter`` in the working folder, and score on
    what was put aside.

    Raises `TrainingRefused`, `TrainingDiverged`, `DatasetUnusable`, `BaseUnusable`, `AdapterUnfit`,
    `JobCancelled`.
    """
    _check(spec)
    torch.set_num_threads(job.threads)
    started = time.monotonic()
    base = load_base(spec.base, device=best_device())
    examples = read_examples(base, Path(spec.dataset))
    alpha = float(spec.alpha or 2 * spec.rank)
    torch.manual_seed(spec.seed)
    model = start_adapter(base, spec.rank, alpha)
    if spec.initial is not None:
        continue_from(model, Path(spec.initial))
    steps = spec.steps or default_steps(len(examples))
    job.log(f"{len(examples)} examples, {steps} steps of {spec.batch_size}, rank {spec.rank}, {software()}")
    losses, tokens = train(model, examples, spec, steps, job)
    job.log(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last; {tokens} tokens")
    config = save_adapter(model, job.workdir / "adapter", spec.dtype)
    heldout = score_heldout(model, base, Path(spec.dataset), job)
    return TrainResult(
        adapter="adapter",
        rank=config.r,
        alpha=config.lora_alpha,
        rslora=config.use_rslora,
        target_modules=tuple(config.target_modules),
        dtype=spec.dtype,
        parameters=sum(tensor.numel() for tensor in adapter_weights(model).values()),
        examples=len(examples),
        tokens=tokens,
        steps=steps,
        seed=spec.seed,
        train_loss=_mean(losses[-max(1, steps // 10) :]),
        software=software(),
        seconds=round(time.monotonic() - started, 3),
        heldout=heldout,
    )


def train(
    model: Any, examples: Sequence[Encoded], spec: TrainSpec, steps: int, job: JobContext
) -> tuple[list[float], int]:
    """The loop. Returns the mean loss of each step (nats per counted token) and the tokens passed."""
    schedule = Schedule(spec.learning_rate, spec.schedule_total or steps, spec.schedule_offset)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0)
    batches = draw_batches(examples, spec.batch_size, random.Random(f"{spec.seed}/{spec.schedule_offset}"))
    losses: list[float] = []
    tokens = 0
    model.train()
    for step in range(steps):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        loss = backward(model, batch)
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss} at step {step + 1}", field="learning_rate")
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        tokens += sum(len(one.ids) for one in batch)
        job.progress(step + 1, steps, "steps", loss=round(_mean(losses[-10:]), 4))
    model.eval()
    return losses, tokens


def backward(model: Any, batch: Sequence[Encoded]) -> float:
    """Add the gradients of the batch's mean loss over its counted tokens; returns that loss.

    A batch longer than a packed row goes through in several passes, with the same gradients.
    """
    counted = sum(one.counted_tokens for one in batch)
    total = 0.0
    for indexes in pack([len(one.ids) for one in batch], ROW_TOKENS):
        loss: Tensor = token_losses(model, [batch[i] for i in indexes]).sum() / counted
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def draw_batches(examples: Sequence[Encoded], size: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Endless batches; each example comes once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.sample(range(len(examples)), len(examples))
        yield [examples[i] for i in order[:size]]
        del order[:size]


def read_examples(base: Base, dataset: Path) -> list[Encoded]:
    """The train part as token ids, without what is longer than the base can see."""
    longest = int(getattr(base.model.config, "max_position_embeddings", 1 << 30))
    encoded = [encode_row(base.tokenizer, row) for row in read_part(dataset, "train")]
    kept = [one for one in encoded if one.counted_tokens and len(one.ids) <= longest]
    if not kept:
        detail = f"all {len(encoded)} are longer than {longest} tokens" if encoded else "it is empty"
        raise DatasetUnusable(f"nothing to train on: {detail}", field="dataset")
    return kept


def continue_from(model: Any, folder: Path) -> None:
    """Put the adapter in ``folder`` into the model's, which may have a higher rank and another scale.

    The function stays the same: the difference in scale goes into B, and added ranks keep their random
    A with a B of zeros. Raises `AdapterUnfit`.
    """
    config = read_config(folder)
    used = model.peft_config["default"]
    if config.rank_pattern or config.alpha_pattern:
        raise AdapterUnfit(f"{folder.name}: ranks that differ by module cannot be trained on")
    if config.r > used.r:
        raise TrainingRefused(f"rank {used.r} cannot hold an adapter of rank {config.r}", field="rank")
    factor = config.scale / (used.lora_alpha / used.r)
    own = adapter_weights(model)
    weights: dict[str, Tensor] = {}
    for name, tensor in read_weights(folder).items():
        tensor = tensor.float().to(model.device)
        room = own.get(name)
        if room is None:
            weights[name] = tensor  # refused by set_weights, with its name
        elif ".lora_A." in name:
            weights[name] = torch.cat([tensor, room[config.r :]])
        else:
            weights[name] = torch.cat([tensor * factor, room[:, config.r :]], dim=1)
    set_weights(model, weights)


def score_heldout(model: Any, base: Base, dataset: Path, job: JobContext) -> tuple[Score, ...]:
    """The adapter and the base alone on the validation and test rows together, if there are any."""
    rows = [row for part in ("validation", "test") for row in read_part(dataset, part)]
    exam = make_exam(base, rows)
    if not exam.examples:
        return ()
    with_adapter = mark(model, base, exam, check=job.check)
    with model.disable_adapter():
        alone = mark(model, base, exam, check=job.check)
    return (
        Score(
            split="heldout",
            loss=with_adapter.loss,
            base_loss=alone.loss,
            exact_match=with_adapter.exact_match,
            base_exact_match=alone.exact_match,
            examples=exam.examples,
        ),
    )


def software() -> str:
    """The versions that the result depends on; nothing about the machine or the user."""
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}"
    )


def _check(spec: TrainSpec) -> None:
    if not 1 <= spec.rank <= MAX_RANK:
        raise TrainingRefused(f"rank {spec.rank} is not in 1…{MAX_RANK}", field="rank")
    if spec.batch_size < 1 or spec.steps < 0:
        raise TrainingRefused("batch size and steps must be positive", field="batch_size")
    if not 0 < spec.learning_rate < 1:
        raise TrainingRefused(f"learning rate {spec.learning_rate}", field="learning_rate")
    if spec.alpha is not None and not spec.alpha > 0:
        raise TrainingRefused(f"alpha {spec.alpha} is not positive", field="alpha")
    if spec.dtype not in DTYPES:
        raise TrainingRefused(f"dtype {spec.dtype} is not one of {', '.join(DTYPES)}", field="dtype")
    if spec.schedule_offset < 0 or 0 < spec.schedule_total < spec.schedule_offset + spec.steps:
        raise TrainingRefused(
            f"the schedule ends after {spec.schedule_total} steps, this run reaches "
            f"{spec.schedule_offset + spec.steps}",
            field="schedule_total",
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
