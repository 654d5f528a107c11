"""Greedy generation for many prompts at once, without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_PROMPTS_AT_ONCE = 128


@torch.inference_mode()
def greedy_ids(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Collection[int]
) -> list[list[int]]:
    """The most likely continuation of each prompt (token ids), in the order of the prompts.

    A continuation ends before the first token of ``stop`` or after ``max_new_tokens``. Prompts of one
    length run as one batch, so no padding and no attention mask can change an answer. The model is used
    in the mode (train or eval) that it is in.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for indexes in by_length.values():
        for start in range(0, len(indexes), MAX_PROMPTS_AT_ONCE):
            part = indexes[start : start + MAX_PROMPTS_AT_ONCE]
            rows = _continue(model, [prompts[i] for i in part], max_new_tokens, stop)
            for index, row in zip(part, rows, strict=True):
                answers[index] = row
    return answers


def _continue(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Collection[int]
) -> list[list[int]]:
    """``prompts`` all have the same length."""
    tokens = torch.tensor(prompts, dtype=torch.long, device=model.device)
    stops = torch.tensor(sorted(stop), dtype=torch.long, device=model.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    columns: list[Tensor] = []
    cache = None
    for _ in range(max_new_tokens):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        tokens = output.logits[:, -1:].argmax(-1)
        columns.append(tokens)
        ended |= torch.isin(tokens[:, 0], stops)
        if bool(ended.all()):
            break
    rows: list[list[int]] = torch.cat(columns, dim=1).tolist() if columns else [[] for _ in prompts]
    return [_until(row, stop) for row in rows]


def _until(row: list[int], stop: Collection[int]) -> list[int]:
    for position, token in enumerate(row):
        if token in stop:
            return row[:position]
    return row
