from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchd.importers.conversation import Message
from orchd.lm.base import Base
from orchd.lm.chat import Encoded, encode_conversation
from orchd.lm.losses import (
    CPU_ROW_TOKENS,
    DEFAULT_ROW_TOKENS,
    conversation_losses,
    pack,
    row_tokens_for,
    token_losses,
)


def sentences(base: Base, count: int) -> list[Encoded]:
    rng = random.Random(5)
    words = ["sun", "cat", "key", "zavo", "mirut", "tolbe", "moon"]
    return [
        encode_conversation(
            base.tokenizer,
            [
                Message("user", "copy: " + " ".join(rng.sample(words, rng.randint(1, 5)))),
                Message("assistant", " ".join(rng.sample(words, rng.randint(1, 5)))),
            ],
        )
        for _ in range(count)
    ]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(20, 60))
def test_packing_keeps_every_row_within_its_length(lengths: list[int], room: int) -> None:
    rows = pack(lengths, room)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= room or len(row) == 1


def test_packed_rows_equal_separate_rows(base: Base) -> None:
    row = sentences(base, 9)
    with torch.inference_mode():
        packed = token_losses(base.model, row)
        separate = torch.cat([token_losses(base.model, [one]) for one in row])
        plain = torch.cat([plainly(base, one) for one in row])
    assert torch.allclose(packed, separate, atol=1e-4)
    assert torch.allclose(packed, plain, atol=1e-4)


def test_control_with_a_mask_of_ones_the_rows_would_see_each_other(base: Base) -> None:
    """The trap that `token_losses` avoids: shows that the test above could fail."""
    row = sentences(base, 2)
    ids = torch.tensor([[token for one in row for token in one.ids]])
    positions = torch.tensor([[i for one in row for i in range(len(one.ids))]])
    with torch.inference_mode():
        apart = base.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        mixed = base.model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits
    first = len(row[0].ids)
    assert torch.allclose(apart[0, :first], mixed[0, :first], atol=1e-3)
    assert (apart[0, first:] - mixed[0, first:]).abs().max() > 0.5


def plainly(base: Base, one: Encoded) -> torch.Tensor:
    """The same losses the long way: all logits, shifted by hand."""
    ids = torch.tensor([one.ids])
    log_probabilities = base.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    where = [i for i, counts in enumerate(one.counted) if counts]
    return torch.stack([-log_probabilities[i - 1, one.ids[i]] for i in where])


def test_conversation_losses_do_not_depend_on_the_packing(base: Base) -> None:
    row = sentences(base, 12)
    small = conversation_losses(base.model, row, row_tokens=30)
    large = conversation_losses(base.model, row, row_tokens=4000)
    assert small == pytest.approx(large, abs=1e-3)


def test_short_texts_are_scored_in_shorter_rows_on_a_cpu(base: Base) -> None:
    texts, passes = sentences(base, 60), list[int]()
    lengths = [len(one.ids) for one in texts]
    conversation_losses(base.model, texts, check=lambda: passes.append(1))
    assert len(passes) == len(pack(lengths, CPU_ROW_TOKENS)) > len(pack(lengths, DEFAULT_ROW_TOKENS))
    graphics = SimpleNamespace(device=torch.device("cuda"))
    assert row_tokens_for(graphics) == DEFAULT_ROW_TOKENS
    assert (row_tokens_for(base.model, 64), row_tokens_for(graphics, 512)) == (64, 512)


def test_between_rows_the_work_can_be_stopped(base: Base) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation_losses(base.model, sentences(base, 2), check=stop)
