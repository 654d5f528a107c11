"""What a training lowers: the loss of the tokens that count, or the loss of preferring the wrong answer (DPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from orchd.errors import DatasetUnusable, TrainingRefused
from orchd.jobs.context import JobContext
from orchd.lm.chat import Encoded
from orchd.lm.losses import pack, token_losses, token_scores
from orchd.train.datasets.encode import encode_fitting
from orchd.train.datasets.store import PreferenceRow, Row, read_info
from orchd.train.specs import TrainSpec

ROW_TOKENS: Final = 1024


class Example(Protocol):
    """One row as training takes it: its token ids, and which of them count."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def counted(self) -> tuple[bool, ...]: ...

    @property
    def counted_tokens(self) -> int: ...


@dataclass(frozen=True)
class Pair:
    """Two answers to one question. ``reference`` is by how many nats the model preferred the chosen one before the
    first step."""

    chosen: Encoded
    rejected: Encoded
    reference: float = 0.0

    @cached_property
    def ids(self) -> tuple[int, ...]:
        return self.chosen.ids + self.rejected.ids

    @cached_property
    def counted(self) -> tuple[bool, ...]:
        return self.chosen.counted + self.rejected.counted

    @property
    def counted_tokens(self) -> int:
        return self.chosen.counted_tokens + self.rejected.counted_tokens


class Objective(Protocol):
    """``name`` is a manifest's word for it. A batch's loss is the sum of ``scores`` over the sum of ``weight``."""

    name: str

    def encode(self, tokenizer: Any, row: Row, longest: int) -> Sequence[Example]:
        """The row as examples of at most ``longest`` tokens (0: no bound)."""

    def referred(self, model: Any, examples: Sequence[Example], job: JobContext) -> Sequence[Example]:
        """The examples with what ``model`` makes of them before the first step, where that is needed."""

    def weight(self, one: Any) -> int:
        """What an example counts."""

    def scores(self, model: Any, row: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Of one packed row: losses in nats, float32, and whether each is right, bool; both (sum of weights,)."""


class Sft:
    """Supervised fine-tuning: cross-entropy of each token that counts."""

    name = "sft"

    def encode(self, tokenizer: Any, row: Row, longest: int) -> Sequence[Encoded]:
        return encode_fitting(tokenizer, row, longest)

    def referred(self, model: Any, examples: Sequence[Example], job: JobContext) -> Sequence[Example]:
        return examples

    def weight(self, one: Encoded) -> int:
        return one.counted_tokens

    def scores(self, model: Any, row: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        return token_scores(model, row)


class Dpo:
    """Direct preference optimisation (Rafailov et al., 2023): -log σ(β · (margin - reference margin)) of each pair, and
    ``sft`` times the chosen answer's loss a token (Pang et al., Iterative Reasoning Preference Optimization, 2024).

    The margin is log p(chosen) - log p(rejected), summed over the answers' tokens. The reference is the model as it is
    before the first step, when a new adapter changes nothing yet: each pair is scored once then, so that no second
    model is held, and a run that goes on after a kill finds the same references.
    """

    name = "dpo"

    def __init__(self, beta: float, sft: float) -> None:
        self.beta, self.sft = beta, sft

    def encode(self, tokenizer: Any, row: Row, longest: int) -> Sequence[Pair]:
        return encode_pair(tokenizer, row, longest)

    def referred(self, model: Any, examples: Sequence[Any], job: JobContext) -> Sequence[Pair]:
        found = margins(model, examples, job.check)
        return [replace(one, reference=margin) for one, margin in zip(examples, found, strict=True)]

    def weight(self, one: Pair) -> int:
        return 1

    def scores(self, model: Any, row: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        references = torch.tensor([one.reference for one in row], dtype=torch.float32, device=model.device)
        chosen, rejected = row_sums(model, row)
        gained = rejected - chosen - references
        losses = -torch.nn.functional.logsigmoid(self.beta * gained)
        if self.sft:
            lengths = torch.tensor([one.chosen.counted_tokens for one in row], device=model.device)
            losses = losses + self.sft * chosen / lengths
        return losses, gained.detach() > 0


def objective_of(spec: TrainSpec) -> Objective:
    """As asked for, or as the data set's kind has it. Raises `TrainingRefused`, `DatasetUnusable`."""
    kind = read_info(Path(spec.dataset)).kind
    if spec.objective == "dpo" and kind != "preference":
        hint = "Give a data set with a chosen and a rejected answer a row, or leave out `--objective`."
        detail = f"DPO learns from preferences, and this is a data set of the kind {kind}"
        raise TrainingRefused(detail, hint=hint, field="objective")
    if spec.objective == "dpo" or (spec.objective == "auto" and kind == "preference"):
        return Dpo(spec.dpo_beta, spec.dpo_sft)
    return Sft()


def encode_pair(tokenizer: Any, row: Row, longest: int) -> Sequence[Pair]:
    """Both answers of a preference, or nothing where one does not fit or says nothing. Raises `DatasetUnusable`."""
    if not isinstance(row, PreferenceRow):
        raise DatasetUnusable("its rows are no preferences", field="dataset")
    chosen = encode_fitting(tokenizer, row, longest)
    rejected = encode_fitting(tokenizer, replace_answer(row), longest)
    pairs = [Pair(one, other) for one, other in zip(chosen, rejected, strict=False)]
    return [pair for pair in pairs if pair.chosen.counted_tokens and pair.rejected.counted_tokens]


def replace_answer(row: PreferenceRow) -> PreferenceRow:
    """The row as if the rejected answer had been chosen."""
    return PreferenceRow(row.id, row.messages, row.rejected, row.chosen, row.title, row.group)


def row_sums(model: Any, row: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Nats of each pair's chosen and rejected answer: float32, (pairs,) each. One packed row."""
    answers = [one for pair in row for one in (pair.chosen, pair.rejected)]
    losses = torch.split(token_losses(model, answers), [one.counted_tokens for one in answers])
    sums = torch.stack([part.sum() for part in losses])
    return sums[0::2], sums[1::2]


@torch.inference_mode()
def margins(model: Any, pairs: Sequence[Pair], check: Callable[[], None] = lambda: None) -> list[float]:
    """By how many nats each pair's chosen answer is likelier than the other, without dropout. ``check`` is called
    between rows and may raise to stop."""
    model.eval()
    found = [0.0] * len(pairs)
    for indexes in pack([len(pair.ids) for pair in pairs], ROW_TOKENS):
        check()
        chosen, rejected = row_sums(model, [pairs[i] for i in indexes])
        for index, margin in zip(indexes, (rejected - chosen).tolist(), strict=True):
            found[index] = margin
    return found
