"""What a model says to held-out rows: the loss on their answers, and its own greedy answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np

from orchd.lm.base import Base, context_length
from orchd.lm.chat import Encoded
from orchd.lm.generate import MAX_PROMPTS_AT_ONCE, greedy_ids
from orchd.lm.losses import conversation_scores
from orchd.lm.significance import Sums
from orchd.train.datasets.encode import answer_of, encode_fitting
from orchd.train.datasets.store import CompletionRow, PreferenceRow, Row, TextRow
from orchd.train.objective import Pair, encode_pair, margins

MAX_ANSWER_TOKENS: Final = 256
ANSWERED_TOKENS: Final = 4_096
"""Questions are asked, in an order drawn by `ORDER`, until their wanted answers have so many tokens together: answering
takes a whole pass through the model for each."""

ORDER: Final = "questions"


@dataclass(frozen=True)
class Question:
    """The messages up to the last answer that counts, as token ids, and that answer as text. ``asked`` is the last
    message, ``unit`` the number of the conversation or document that it is from."""

    prompt: tuple[int, ...]
    asked: str
    answer: str
    answer_tokens: int
    unit: int


@dataclass(frozen=True)
class Exam:
    """Rows made ready once, to be scored with any number of models. ``units`` are those of ``conversations``;
    ``pairs`` are preferences, and ``pair_units`` theirs."""

    conversations: tuple[Encoded, ...]
    units: tuple[int, ...]
    questions: tuple[Question, ...]
    examples: int
    pairs: tuple[Pair, ...] = ()
    pair_units: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(one.counted_tokens for one in self.conversations)

    def sums(self, units: Sequence[int], values: Iterable[float], weights: Iterable[float]) -> Sums:
        """Added up by unit."""
        size = max(self.units, default=-1) + 1
        return Sums(
            np.bincount(units, np.fromiter(values, np.float64), size).astype(np.float64),
            np.bincount(units, np.fromiter(weights, np.float64), size).astype(np.float64),
        )


@dataclass(frozen=True)
class Mark:
    """What one model did: nats and tokens that it would have chosen, both over counted tokens by unit, and its answers
    to the questions in their order. ``preferred``: pairs whose chosen answer it finds likelier, of all pairs."""

    losses: Sums
    hits: Sums
    answers: tuple[str, ...]
    examples: int
    preferred: Sums | None = None

    @property
    def loss(self) -> float:
        """Mean nats per counted token."""
        return self.losses.ratio


def make_exam(base: Base, rows: Sequence[Row]) -> Exam:
    """Encode ``rows``; those with nothing to learn, and conversations that are longer than the base takes in, are left
    out, as in training. Plain text has no question, and is read in stretches where it is longer."""
    conversations: list[Encoded] = []
    units: list[int] = []
    questions: list[Question] = []
    pairs: list[Pair] = []
    pair_units: list[int] = []
    numbers: dict[str, int] = {}
    examples = 0
    longest = context_length(base.path)
    for row in rows:
        encoded = [one for one in encode_fitting(base.tokenizer, row, longest) if one.counted_tokens]
        if not encoded:
            continue
        unit = numbers.setdefault(row.group or row.id, len(numbers))
        conversations += encoded
        units += [unit] * len(encoded)
        examples += 1
        if found := answer_of(base.tokenizer, row):
            prompt, answer, tokens = found
            questions.append(Question(prompt, _asked(row), answer, tokens, unit))
        if isinstance(row, PreferenceRow):
            found_pairs = encode_pair(base.tokenizer, row, longest)
            pairs += found_pairs
            pair_units += [unit] * len(found_pairs)
    return Exam(tuple(conversations), tuple(units), _affordable(questions), examples, tuple(pairs), tuple(pair_units))


def _affordable(questions: Sequence[Question]) -> tuple[Question, ...]:
    """All of them, or so many drawn ones, in the order of the rows."""
    kept, tokens = list[int](), 0
    for at in random.Random(ORDER).sample(range(len(questions)), len(questions)):
        tokens += min(questions[at].answer_tokens, MAX_ANSWER_TOKENS)
        if kept and tokens > ANSWERED_TOKENS:
            break
        kept.append(at)
    return tuple(questions[at] for at in sorted(kept))


def _asked(row: Row) -> str:
    """The last message before the answer that is wanted."""
    if isinstance(row, CompletionRow):
        return row.prompt
    if isinstance(row, TextRow):
        return ""
    if isinstance(row, PreferenceRow):
        return row.messages[-1].content
    last = max(at for at, one in enumerate(row.messages) if one.role == "assistant" and one.counts)
    return row.messages[last - 1].content


def mark(
    model: Any,
    base: Base,
    exam: Exam,
    answers: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Mark:
    """Score ``model`` (in eval mode). ``check`` is called often and may raise to stop."""
    losses, hits = conversation_scores(model, exam.conversations, check=check)
    counted = [one.counted_tokens for one in exam.conversations]
    likes = [float(margin > 0) for margin in margins(model, exam.pairs, check)]
    return Mark(
        losses=exam.sums(exam.units, losses, counted),
        hits=exam.sums(exam.units, hits, counted),
        answers=_answers(model, base, exam.questions, check) if answers else (),
        examples=exam.examples,
        preferred=exam.sums(exam.pair_units, likes, [1.0] * len(likes)) if likes else None,
    )


def _answers(model: Any, base: Base, questions: Sequence[Question], check: Callable[[], None]) -> tuple[str, ...]:
    """Greedy ones, cut off where the longest that is wanted beside them would have ended."""
    stop = stop_tokens(base)
    found = [""] * len(questions)
    for part in _parts(questions):
        check()
        answers = greedy_ids(model, [questions[at].prompt for at in part], _limit(questions, part), stop)
        for at, ids in zip(part, answers, strict=True):
            found[at] = base.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return tuple(found)


def _parts(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Those that are asked in one call, by the length of their prompts."""
    order = sorted(range(len(questions)), key=lambda at: len(questions[at].prompt))
    for start in range(0, len(order), MAX_PROMPTS_AT_ONCE):
        yield order[start : start + MAX_PROMPTS_AT_ONCE]


def _limit(questions: Sequence[Question], part: Sequence[int]) -> int:
    return min(MAX_ANSWER_TOKENS, max(questions[at].answer_tokens for at in part) + 1)


class Together(NamedTuple):
    """So many ``rows`` with prompts of ``prompt`` tokens are answered as one batch, in at most ``limit`` passes; the
    ``longest`` answer that is wanted has so many tokens."""

    rows: int
    prompt: int
    limit: int
    longest: int


def asked_together(questions: Sequence[Question]) -> Iterator[Together]:
    """How the questions are answered: what it takes follows from that."""
    for part in _parts(questions):
        limit = _limit(questions, part)
        for prompt, group in groupby(part, key=lambda at: len(questions[at].prompt)):
            wanted = [questions[at].answer_tokens for at in group]
            yield Together(len(wanted), prompt, limit, max(wanted))


def stop_tokens(base: Base) -> set[int]:
    """The ids that end an answer, as the base's generation settings and tokenizer name them."""
    named = base.model.generation_config.eos_token_id
    found = set(named) if isinstance(named, list) else {named}
    return {int(one) for one in found | {base.tokenizer.eos_token_id} if one is not None}
