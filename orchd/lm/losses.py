"""Token losses on packed rows: several conversations in one row, none of which sees another.

A row with positions that restart and *no* attention mask equals separate rows; an all-ones mask
would let the conversations see each other. The head runs only where a token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from orchd.lm.chat import Encoded

DEFAULT_ROW_TOKENS = 1024
CPU_ROW_TOKENS = 256
"""Short texts in a long row cost a CPU what each would pay for looking at all others: on the demo base a row of 1,024
takes 1.6 times as long for the same tokens, on layers 576 wide 1.3 times. A longer text has a row of its own."""


def pack(lengths: Sequence[int], row_tokens: int = DEFAULT_ROW_TOKENS) -> list[list[int]]:
    """Indexes of ``lengths`` by row, first fit decreasing. One that is longer than a row gets its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, free in enumerate(room):
            if lengths[index] <= free:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(row_tokens - lengths[index])
    return rows


def row_tokens_for(model: Any, most: int = DEFAULT_ROW_TOKENS) -> int:
    """How many tokens to pack into a row that is only scored."""
    return min(most, CPU_ROW_TOKENS) if model.device.type == "cpu" else most


class Scorer(Protocol):
    """Computes a base in another library (`mlx_base`); the torch model has the names and the adapter only.
    ``device``: as people read it; ``peak_bytes``: the most memory that it took."""

    @property
    def device(self) -> str: ...

    @property
    def peak_bytes(self) -> int: ...

    def token_scores(self, model: Any, row: Sequence[Encoded]) -> tuple[Tensor, Tensor]: ...

    def recompute(self) -> None: ...


def scorer_of(model: Any) -> Scorer | None:
    """What computes the model, where torch does not."""
    found: Scorer | None = getattr(model, "scorer", None)
    return found


def token_losses(model: Any, row: Sequence[Encoded]) -> Tensor:
    """Nats of each counted token of one packed row, in order: float32 (counted tokens,)."""
    return token_scores(model, row)[0]


def token_scores(model: Any, row: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Of each counted token of one packed row, in order: its nats, float32, and whether the model would have chosen
    it, bool; both (counted tokens,)."""
    if (scorer := scorer_of(model)) is not None:
        return scorer.token_scores(model, row)
    logits, wanted = token_logits(model, row)
    losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
    return losses, logits.detach().argmax(-1) == wanted


def token_logits(model: Any, row: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Of each counted token of one packed row, in order: the logits before it, (counted tokens, vocabulary) in the
    model's dtype, and the token itself, int64 (counted tokens,)."""
    ids = [token for one in row for token in one.ids]
    positions = [position for one in row for position in range(len(one.ids))]
    targets = [i for i, counts in enumerate(_flat(row)) if counts]
    tokens = torch.tensor([ids], dtype=torch.long, device=model.device)
    where = torch.tensor(targets, dtype=torch.long, device=model.device)
    logits = model(
        input_ids=tokens,
        position_ids=torch.tensor([positions], dtype=torch.long, device=model.device),
        use_cache=False,
        logits_to_keep=where - 1,
    ).logits[0]
    return logits, tokens[0, where]


@torch.inference_mode()
def conversation_scores(
    model: Any,
    conversations: Sequence[Encoded],
    row_tokens: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[int]]:
    """Of each conversation: its nats, summed over its counted tokens, and how many of these the model would have
    chosen. ``row_tokens`` None is what suits the device. ``check`` is called between rows and may raise to stop."""
    sums, hits = [0.0] * len(conversations), [0] * len(conversations)
    for indexes in pack([len(one.ids) for one in conversations], row_tokens or row_tokens_for(model)):
        check()
        row = [conversations[i] for i in indexes]
        counts = [one.counted_tokens for one in row]
        losses, chosen = (torch.split(part, counts) for part in token_scores(model, row))
        for index, nats, right in zip(indexes, losses, chosen, strict=True):
            sums[index], hits[index] = float(nats.sum()), int(right.sum())
    return sums, hits


def conversation_losses(
    model: Any,
    conversations: Sequence[Encoded],
    row_tokens: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """The nats of `conversation_scores`."""
    return conversation_scores(model, conversations, row_tokens, check)[0]


def _flat(row: Sequence[Encoded]) -> Iterator[bool]:
    for one in row:
        yield False
        yield from one.counted[1:]
