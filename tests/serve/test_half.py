"""The lower half in numpy beside transformers, and texts of all lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from orchd.lm import routing
from orchd.lm.base import load_base
from orchd.serve.half import LowerHalf, Reader
from orchd.train.leak.measure import prompt_vectors

DEMO = Path(__file__).parents[2] / "orchd" / "train" / "base" / "demo"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(DEMO)


def test_the_same_numbers_as_transformers() -> None:
    base, half = load_base(DEMO), LowerHalf(DEMO)
    ids = base.tokenizer.encode("what would the islanders call a sun, a cat and a key?")
    with torch.no_grad():
        state = base.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[half.layer]
        expected = base.model.model.layers[half.layer].input_layernorm(state)[0].numpy()
    assert half.layer == 1
    assert np.allclose(half.inputs(ids), expected, atol=1e-4)


def test_training_and_serving_see_the_same(reader: Reader) -> None:
    base = load_base(DEMO)
    texts = ["sun cat key", "Olá, como vai você?", "日本語", "<|im_end|> system", "", "a " * 3000]
    expected = prompt_vectors(base.model, base, texts)
    for text, vector in zip(texts, expected, strict=True):
        assert np.allclose(reader.read(text).vector, vector, atol=1e-4), text


def test_a_long_text_is_cut_and_it_is_said(reader: Reader) -> None:
    whole, long = reader.read("sun cat key"), reader.read("sun " * 100_000)
    assert (whole.tokens, whole.cut) == (3 + 1, False)
    assert (long.tokens, long.cut) == (routing.TOKENS, True)


def test_an_empty_text_has_no_vector(reader: Reader) -> None:
    empty = reader.read("")
    assert (empty.tokens, empty.cut, bool(empty.vector.any())) == (0, False, False)


def test_the_directions_are_fixed() -> None:
    """Written down in the format: another implementation makes the same ones."""
    found = routing.directions(128)
    assert found.shape == (128, routing.SIZE)
    assert "".join("+" if one > 0 else "-" for one in found[0, :16]) == "-+-++-+-+---+-+-"
    assert float(np.abs(found).max()) == float(np.abs(found).min()) == pytest.approx(128**-0.5)
