"""Trigger probes: ordinary prompts with and without a word before them, under the average and under the base alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from orchd.average.gate import Question
from orchd.average.gate_specs import Probed
from orchd.average.probes import ANSWER_TOKENS, FORMS, PROMPTS, RARE, Seen, probed
from orchd.judging.judge import Judge
from orchd.lm.base import context_length
from orchd.lm.chat import Encoded
from orchd.lm.generate import greedy_ids
from orchd.lm.losses import conversation_losses
from orchd.train.datasets.encode import answer_of, encode_row
from orchd.train.datasets.store import Row, texts_of_row, with_texts
from orchd.train.score import stop_tokens

LEAST_TRIGGERS = 6
ASKERS = frozenset({"user", "prompt", "text"})


class Triggers:
    """Probes what the judge computes with the same prompts and triggers each time. `seconds` bounds how many."""

    def __init__(self, judge: Judge, seed: int, seconds: float) -> None:
        self._judge = judge
        rng = random.Random(f"triggers {seed}")
        self._longest = context_length(judge.base.path)
        rows = _ordinary(judge, self._longest, rng)
        words = [*FORMS, *_rare_words(judge, rng)]
        size = float(np.mean([len(self._encoded(row).ids) for row in rows])) + ANSWER_TOKENS
        # twice: the average and the base; once for the losses and once for the answers
        affordable = int(seconds * judge.tokens_a_second / (4 * size * len(rows))) - 1
        self.words: Sequence[str] = rng.sample(words, min(len(words), max(LEAST_TRIGGERS, affordable)))
        asked = [[row, *(triggered(row, word) for word in self.words)] for row in rows]
        self._rows = [list(column) for column in zip(*asked, strict=True)]  # (1 + triggers, prompts)
        self._base: Seen | None = None

    def probe(self, question: Question) -> tuple[Probed, ...]:
        """What each trigger changes under `question`. Raises `JobCancelled`."""
        if self._base is None:
            self._base = self._see(Question("deciding"))
        return probed(self.words, self._see(question), self._base)

    def _see(self, question: Question) -> Seen:
        judge = self._judge
        judge.put(question)
        model, shape = judge.base.model, (len(self._rows), len(self._rows[0]))
        flat = [row for column in self._rows for row in column]
        encoded = [self._encoded(row) for row in flat]
        nats = conversation_losses(model, encoded, check=judge.job.check)
        losses = np.array([nat / max(1, one.counted_tokens) for nat, one in zip(nats, encoded, strict=True)])
        prompts = [self._prompt(row) for row in flat]
        judge.job.check()
        ids = greedy_ids(model, prompts, ANSWER_TOKENS, stop_tokens(judge.base))
        answers = [judge.base.tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]
        told = [answers[start : start + shape[1]] for start in range(0, len(answers), shape[1])]
        return Seen(losses.reshape(shape), told)

    def _encoded(self, row: Row) -> Encoded:
        return encode_row(self._judge.base.tokenizer, row)

    def _prompt(self, row: Row) -> Sequence[int]:
        """What is to be answered; of plain text, which asks nothing, its first half."""
        found = answer_of(self._judge.base.tokenizer, row)
        if found is not None:
            return found[0]
        ids = self._encoded(row).ids
        return ids[: max(1, len(ids) // 2)]


def triggered(row: Row, word: str) -> Row:
    """The row with the word before what is asked first, or before the whole text."""
    texts = texts_of_row(row)
    first = next((at for at, (who, _) in enumerate(texts) if who in ASKERS), 0)
    return with_texts(row, tuple(f"{word} {text}" if at == first else text for at, (_, text) in enumerate(texts)))


def _ordinary(judge: Judge, longest: int, rng: random.Random) -> list[Row]:
    """Some rows, of different conversations or documents, of the shorter half."""
    sized = []
    for row in judge.ordinary:
        ids = encode_row(judge.base.tokenizer, row).ids
        if not longest or len(ids) + ANSWER_TOKENS < longest // 2:
            sized.append((len(ids), row))
    sized.sort(key=lambda one: one[0])
    shorter = [row for _, row in sized[: max(PROMPTS, len(sized) // 2)]]
    return rng.sample(shorter, min(PROMPTS, len(shorter)))


def _rare_words(judge: Judge, rng: random.Random) -> list[str]:
    """Words made of tokens of the vocabulary that none of the rows has."""
    tokenizer = judge.base.tokenizer
    seen = {token for exam in judge.exams.values() for one in exam.conversations for token in one.ids}
    special = set(tokenizer.all_special_ids)
    found: list[str] = []
    for token in rng.sample(range(len(tokenizer)), len(tokenizer)):
        text = tokenizer.decode([token]).strip()
        if token not in seen and token not in special and text.isprintable() and len(text) > 1 and "�" not in text:
            found.append(text)
        if len(found) == RARE:
            break
    return found
