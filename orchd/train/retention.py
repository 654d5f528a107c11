"""What an adapter forgets: the base and the adapter on what the base is known to answer, and rows of that to mix in.

Every second row of a retention set measures, the others may be replayed in training, so that nothing is measured on
what was trained on. The answers are drawn from the base itself (temperature 1, nucleus .9), so that the set is what
the base does and not what somebody thinks it should.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from orchd.importers.conversation import Message
from orchd.lm.base import Base, context_length
from orchd.lm.chat import Encoded, encode_prompt
from orchd.lm.losses import pack, token_logits
from orchd.lm.significance import Interval, Sums, interval
from orchd.train.datasets.encode import encode_fitting
from orchd.train.datasets.store import ChatRow
from orchd.train.retention_prompts import PROMPTS
from orchd.train.retention_store import Kept, read, write
from orchd.train.score import stop_tokens
from orchd.train.specs import Forgetting

FILE: Final = "retention.jsonl"
ANSWER_TOKENS: Final = 48
AT_ONCE: Final = 16
NUCLEUS: Final = 0.9
SEED: Final = 0
ROW_TOKENS: Final = 256
"""Packed rows are short here: two distributions over the whole vocabulary are held for each counted token."""

BLOCK: Final = 50_000_000
"""Numbers of the base's distributions that are held at once; 200 MB."""


def find(base: Base, given: str, folder: Path, check: Callable[[], None] = lambda: None) -> Path:
    """The base's retention set: one made in ``folder`` before, the one ``given``, or a new one in ``folder``."""
    own = folder / FILE
    if own.is_file():
        return own
    if given and Path(given).is_file():
        return Path(given)
    folder.mkdir(parents=True, exist_ok=True)
    write(own, make(base, check))
    return own


def measured(base: Base, path: Path) -> list[Encoded]:
    """The rows that measure. Raises `DatasetUnusable`, `TemplateUnusable`."""
    return _encoded(base, read(path)[0::2])


def replayed(base: Base, path: Path) -> list[Encoded]:
    """The rows that may be trained on. Raises `DatasetUnusable`, `TemplateUnusable`."""
    return _encoded(base, read(path)[1::2])


def mixed(examples: Sequence[Any], rows: Sequence[Encoded], share: float) -> list[Any]:
    """``examples`` with so many of ``rows``, again and again where they are few, that they are ``share`` of all."""
    count = round(len(examples) * share / (1 - share))
    return [*examples, *itertools.islice(itertools.cycle(rows), count if rows else 0)]


def _encoded(base: Base, rows: Sequence[Kept]) -> list[Encoded]:
    longest = context_length(base.path)
    found = (one for row in rows for one in encode_fitting(base.tokenizer, _chat(row), longest))
    return [one for one in found if one.counted_tokens]


def _chat(row: Kept) -> ChatRow:
    return ChatRow(id="", messages=(Message("user", row.prompt), Message("assistant", row.answer)))


# ---- measuring ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forgetting(
    model: Any,
    rows: Sequence[Encoded],
    untrained: Callable[[], AbstractContextManager[None]],
    check: Callable[[], None] = lambda: None,
) -> Forgetting | None:
    """Of a trained model (in eval mode) beside what it computes in ``untrained``, the base alone. None without rows."""
    if not rows:
        return None
    before, after, divergence = (np.zeros(len(rows)) for _ in range(3))
    for block in _blocks(rows, int(model.config.vocab_size)):
        check()
        with untrained():
            olds = [_log_shares(model, rows, indexes)[0] for indexes in block]
        for indexes, old in zip(block, olds, strict=True):
            new, wanted = _log_shares(model, rows, indexes)
            apart = (old.exp() * (old - new)).sum(-1)
            counts = [rows[at].counted_tokens for at in indexes]
            for sums, values in ((before, -_of(old, wanted)), (after, -_of(new, wanted)), (divergence, apart)):
                sums[indexes] = [float(one.sum()) for one in torch.split(values, counts)]
    tokens = np.array([one.counted_tokens for one in rows], np.float64)
    rise, kl = Sums(after - before, tokens), Sums(divergence, tokens)
    low, high = interval(rise) or Interval(rise.ratio, rise.ratio)
    return Forgetting(
        loss=Sums(after, tokens).ratio,
        base_loss=Sums(before, tokens).ratio,
        low=low,
        high=high,
        kl=max(0.0, kl.ratio),
        examples=len(rows),
    )


def _blocks(rows: Sequence[Encoded], vocabulary: int) -> list[list[list[int]]]:
    """Packed rows, as many together as `BLOCK` allows: going over to the untrained model may cost a copy of it."""
    blocks: list[list[list[int]]] = []
    size = BLOCK + 1
    for indexes in pack([len(one.ids) for one in rows], ROW_TOKENS):
        held = vocabulary * sum(rows[at].counted_tokens for at in indexes)
        if size + held > BLOCK:
            blocks.append([])
            size = 0
        blocks[-1].append(indexes)
        size += held
    return blocks


def _log_shares(model: Any, rows: Sequence[Encoded], indexes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each counted token of one packed row: log-probabilities, float32 (tokens, vocabulary), and the token."""
    logits, wanted = token_logits(model, [rows[at] for at in indexes])
    return torch.log_softmax(logits.float(), -1), wanted


def _of(log_shares: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return log_shares.gather(-1, wanted[:, None])[:, 0]


# ---- making a set ------------------------------------------------------------------------------------------------


def make(base: Base, check: Callable[[], None] = lambda: None) -> list[Kept]:
    """The base's own answers to `PROMPTS`, in an order that mixes them. Torch's generators are left as they were."""
    prompts = list(PROMPTS)
    random.Random(SEED).shuffle(prompts)
    devices = [base.model.device] if base.model.device.type == "cuda" else []
    found: list[Kept] = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(SEED)
        for start in range(0, len(prompts), AT_ONCE):
            check()
            part = prompts[start : start + AT_ONCE]
            answers = _answers(base, part)
            found += [Kept(prompt, answer) for prompt, answer in zip(part, answers, strict=True) if answer]
    return found


@torch.inference_mode()
def _answers(base: Base, prompts: Sequence[str]) -> list[str]:
    """Drawn for all prompts at once, with padding on the left; an exact answer is not wanted here."""
    ids = [encode_prompt(base.tokenizer, [Message("user", prompt)]) for prompt in prompts]
    width, stop = max(map(len, ids)), sorted(stop_tokens(base))
    padding = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else stop[0] if stop else 0
    device = base.model.device
    tokens = torch.tensor([[padding] * (width - len(one)) + one for one in ids], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids], device=device)
    answers = base.model.generate(
        input_ids=tokens,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=NUCLEUS,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=stop or None,
        pad_token_id=padding,
    )
    texts: list[str] = base.tokenizer.batch_decode(answers[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]
