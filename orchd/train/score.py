"""Held-out loss and greedy exact match of a model on conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchd.lm.base import Base, context_length
from orchd.lm.chat import Encoded
from orchd.lm.generate import MAX_PROMPTS_AT_ONCE, greedy_ids
from orchd.lm.losses import conversation_losses
from orchd.train.datasets.encode import answer_of, encode_fitting
from orchd.train.datasets.store import Row, TextRow

MAX_ANSWER_TOKENS: Final = 256


@dataclass(frozen=True)
class Question:
    """The messages up to the last answer that counts, as token ids, and that answer as text."""

    prompt: tuple[int, ...]
    answer: str
    answer_tokens: int


@dataclass(frozen=True)
class Exam:
    """Conversations made ready once, to be scored with any number of adapters."""

    conversations: tuple[Encoded, ...]
    questions: tuple[Question, ...]

    @property
    def examples(self) -> int:
        return len(self.conversations)


@dataclass(frozen=True)
class Mark:
    """``loss``: mean nats per counted token. ``exact_match``: share from 0 to 1.

    ``loss_interval``: half the width of its 95 % interval, had these conversations been drawn by chance.
    """

    loss: float
    exact_match: float
    examples: int
    loss_interval: float = 0.0


def make_exam(base: Base, rows: Sequence[Row]) -> Exam:
    """Encode ``rows``; those with nothing to learn are left out. Plain text has no question, and is read
    in stretches where it is longer than the base takes in."""
    tokenizer = base.tokenizer
    conversations: list[Encoded] = []
    questions: list[Question] = []
    for row in rows:
        longest = context_length(base.path) if isinstance(row, TextRow) else 0
        encoded = [one for one in encode_fitting(tokenizer, row, longest) if one.counted_tokens]
        if not encoded:
            continue
        conversations.extend(encoded)
        if asked := answer_of(tokenizer, row):
            questions.append(Question(*asked))
    return Exam(tuple(conversations), tuple(questions))


def mark(
    model: Any,
    base: Base,
    exam: Exam,
    exact_match: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Mark:
    """Score ``model`` (in eval mode). ``check`` is called often and may raise to stop."""
    losses = conversation_losses(model, exam.conversations, check=check)
    tokens = sum(one.counted_tokens for one in exam.conversations)
    right = _right_answers(model, base, exam, check) if exact_match else 0
    loss = sum(losses) / max(1, tokens)
    interval = _interval(losses, [one.counted_tokens for one in exam.conversations], loss)
    return Mark(loss, right / max(1, exam.examples), exam.examples, interval)


def _interval(losses: Sequence[float], tokens: Sequence[int], mean: float) -> float:
    """Of a ratio of sums over conversations (Cochran, Sampling Techniques, 3rd ed., 6.4)."""
    squares = sum((loss - mean * count) ** 2 for loss, count in zip(losses, tokens, strict=True))
    return 1.96 * math.sqrt(squares) / max(1, sum(tokens))


def _right_answers(model: Any, base: Base, exam: Exam, check: Callable[[], None]) -> int:
    stop = stop_tokens(base)
    right = 0
    questions = sorted(exam.questions, key=lambda one: len(one.prompt))
    for start in range(0, len(questions), MAX_PROMPTS_AT_ONCE):
        check()
        part = questions[start : start + MAX_PROMPTS_AT_ONCE]
        limit = min(MAX_ANSWER_TOKENS, max(one.answer_tokens for one in part) + 1)
        answers = greedy_ids(model, [one.prompt for one in part], limit, stop)
        for one, ids in zip(part, answers, strict=True):
            right += base.tokenizer.decode(ids, skip_special_tokens=True).strip() == one.answer
    return right


def stop_tokens(base: Base) -> set[int]:
    """The ids that end an answer, as the base's generation settings and tokenizer name them."""
    named = base.model.generation_config.eos_token_id
    found = set(named) if isinstance(named, list) else {named}
    return {int(one) for one in found | {base.tokenizer.eos_token_id} if one is not None}
