from __future__ import annotations

import torch

from orchd.importers.conversation import Message
from orchd.lm.base import Base
from orchd.lm.chat import encode_prompt
from orchd.lm.generate import greedy_ids

QUESTIONS = ("copy: sun cat key", "first: moon star", "last: zavo fish mirut", "double: cow owl", "cycle: sun cat key")


def prompts(base: Base) -> list[list[int]]:
    return [encode_prompt(base.tokenizer, [Message("user", text)]) for text in QUESTIONS]


def test_the_base_does_what_it_was_taught(base: Base) -> None:
    answers = greedy_ids(base.model, prompts(base), 12, {base.tokenizer.eos_token_id})
    assert [base.tokenizer.decode(ids) for ids in answers] == [
        " sun cat key", " moon", " mirut", " cow cow owl owl", " key sun cat"]  # fmt: skip


def test_the_same_as_transformers_one_by_one(base: Base) -> None:
    together = greedy_ids(base.model, prompts(base), 6, ())
    for prompt, answer in zip(prompts(base), together, strict=True):
        with torch.inference_mode():
            ids = base.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                eos_token_id=None,
            )
        assert ids[0, len(prompt) :].tolist() == answer


def test_edges(base: Base) -> None:
    assert greedy_ids(base.model, [], 5, {3}) == []
    assert greedy_ids(base.model, prompts(base)[:1], 0, {3}) == [[]]
    assert len(greedy_ids(base.model, prompts(base)[:1], 2, {3})[0]) == 2
