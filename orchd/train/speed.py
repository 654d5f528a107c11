"""How fast a model answers one question at a time: time to the first token, and tokens a second after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

import torch

from orchd.lm.generate import greedy_ids

PROMPTS: Final = 3
TOKENS: Final = 16
MAX_PROMPT_TOKENS: Final = 256


class Speed(NamedTuple):
    """Medians over the prompts: milliseconds until the first token, tokens a second from there on."""

    first_token_ms: float
    tokens_s: float


def measure(model: Any, prompts: Sequence[Sequence[int]], check: Callable[[], None] = lambda: None) -> Speed | None:
    """Of the middle prompts by length, each alone, after one that only warms up; None where there is no prompt."""
    ordered = sorted((prompt[:MAX_PROMPT_TOKENS] for prompt in prompts if prompt), key=len)
    start = max(0, (len(ordered) - PROMPTS) // 2)
    chosen = ordered[start : start + PROMPTS]
    if not chosen:
        return None
    _seconds(model, chosen[0], 2)
    firsts, rates = [], []
    for prompt in chosen:
        check()
        first, whole = _seconds(model, prompt, 1), _seconds(model, prompt, TOKENS)
        firsts.append(1000 * first)
        rates.append((TOKENS - 1) / max(1e-6, whole - first))
    return Speed(round(median(firsts), 3), round(median(rates), 1))


def _seconds(model: Any, prompt: Sequence[int], tokens: int) -> float:
    """To answer with so many tokens; no token ends it sooner."""
    started = time.perf_counter()
    greedy_ids(model, [prompt], tokens, ())
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - started
