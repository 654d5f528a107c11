"""Does each tensor of an adapter that is more than plain LoRA have its place, and its shape the base's?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchd.errors import TensorsRefused
from orchd.registry import ADMITTED
from tests.helpers import HIDDEN, HONEST_INFO, MODULES, RANK, Lab, Values, lora_config, lora_tensors, write_base

PREFIX = "base_model.model."
VOCABULARY = 11
EMBEDDING = f"{PREFIX}model.embed_tokens.weight"
HEAD = f"{PREFIX}lm_head.weight"
NORM = f"{PREFIX}model.norm.weight"


def _each(end: str, shape: tuple[int, ...] = (HIDDEN,)) -> dict[str, Values]:
    """One more tensor for each module."""
    return {f"{PREFIX}{module}{end}": np.ones(shape, np.float32) for module in MODULES}


MAGNITUDES, FACTOR_BIASES, BIASES = _each(".lora_magnitude_vector"), _each(".lora_B.bias"), _each(".base_layer.bias")
SAVED = {EMBEDDING: np.ones((VOCABULARY, HIDDEN), np.float32)}


@pytest.fixture
def lab(tmp_path: Any) -> Any:
    """A base whose modules have biases."""
    made = Lab(tmp_path)
    from tests.helpers import base_tensors

    biases = {f"{module}.bias": np.zeros(HIDDEN, np.float32) for module in MODULES}
    write_base(tmp_path / "base", base_tensors() | biases)
    made.registry.close()
    made.open()
    yield made
    made.registry.close()


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"use_dora": True}, MAGNITUDES),
        ({"lora_bias": True}, FACTOR_BIASES),
        ({"bias": "lora_only"}, BIASES),
        ({"bias": "all"}, BIASES),
        ({"bias": "all"}, _each(".bias")),
        ({"bias": "lora_only"}, {}),  # a base without biases has none to train
        ({"modules_to_save": ["embed_tokens"]}, SAVED),
        ({"modules_to_save": ["model.embed_tokens", "norm"]}, SAVED | {NORM: np.ones(HIDDEN, np.float32)}),
        ({"modules_to_save": ["lm_head"]}, {HEAD: SAVED[EMBEDDING]}),  # tied: the base's files hold only the embedding
        ({"use_dora": True, "bias": "lora_only"}, MAGNITUDES | BIASES),
    ],
    ids=lambda part: "-".join(sorted({name.rpartition(".")[2] for name in part})) if isinstance(part, dict) else "",
)
def test_more_than_plain_lora_is_admitted_and_said_to_be_so(
    lab: Lab, config: dict[str, Any], more: dict[str, Values]
) -> None:
    folder = lab.folder(tensors=lora_tensors() | more, config=lora_config(**config))
    found = lab.admit(folder)
    assert (found.verdict, found.reason) == (ADMITTED, "")
    assert found.row.capabilities == ()


def _without(more: dict[str, Values]) -> dict[str, Values]:
    return dict(list(more.items())[1:])


def _odd(more: dict[str, Values]) -> dict[str, Values]:
    """The first one has a row more."""
    name = next(iter(more))
    return more | {name: np.ones((more[name].shape[0] + 1, *more[name].shape[1:]), np.float32)}


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        ({}, MAGNITUDES, "no part of a LoRA"),
        ({}, FACTOR_BIASES, "no part of a LoRA"),
        ({}, BIASES, "no part of a LoRA"),
        ({}, SAVED, "no part of a LoRA"),
        ({"use_dora": True}, {}, "magnitude"),
        ({"use_dora": True}, _without(MAGNITUDES), "magnitude"),
        (
            {"use_dora": True},
            MAGNITUDES | {f"{PREFIX}model.norm.lora_magnitude_vector": np.ones(2, "<f4")},
            "magnitude",
        ),
        ({"use_dora": True}, _odd(MAGNITUDES), "rows"),
        ({"use_dora": True}, _each(".lora_magnitude_vector", (HIDDEN, 1)), "rows"),
        ({"lora_bias": True}, _without(FACTOR_BIASES), "bias on B"),
        ({"lora_bias": True}, _odd(FACTOR_BIASES), "rows"),
        ({"bias": "lora_only"}, _odd(BIASES), "the base is"),
        ({"bias": "lora_only"}, {f"{PREFIX}model.norm.bias": np.ones(HIDDEN, np.float32)}, "no part of a LoRA"),
        ({"bias": "all"}, {f"{PREFIX}model.norm.bias": np.ones(HIDDEN, np.float32)}, "no such module"),
        ({"bias": "all"}, BIASES | _each(".bias"), "no part of a LoRA"),
        ({"bias": "all"}, FACTOR_BIASES, "no part of a LoRA"),
        ({"modules_to_save": ["embed_tokens"]}, {}, "saved module"),
        ({"modules_to_save": ["embed_tokens"]}, _odd(SAVED), "the base is"),
        ({"modules_to_save": ["lm_head"]}, _odd({HEAD: SAVED[EMBEDDING]}), "the base is"),
        ({"modules_to_save": ["score"]}, {f"{PREFIX}score.weight": np.ones((2, HIDDEN), "<f4")}, "no such module"),
        ({"modules_to_save": ["tokens"]}, SAVED, "no part of a LoRA"),
        (
            {"modules_to_save": ["embed_tokens"]},
            {f"{PREFIX}a/b.embed_tokens.weight": SAVED[EMBEDDING]},
            "no part of a LoRA",
        ),
        ({"bias": "all"}, {f"{PREFIX}\x1b[2J.bias": np.ones(HIDDEN, np.float32)}, "no part of a LoRA"),
        ({"modules_to_save": ["weight"]}, SAVED, "no part of a LoRA"),
    ],
)
def test_a_tensor_without_its_place_or_shape_is_refused(
    lab: Lab, config: dict[str, Any], more: dict[str, Values], said: str
) -> None:
    folder = lab.folder(tensors=lora_tensors() | more, config=lora_config(**config))
    with pytest.raises(TensorsRefused, match=said):
        lab.admit(folder, lab.claim(folder, HONEST_INFO))
    assert lab.traces() == []


@pytest.mark.parametrize(
    ("config", "more"), [({"use_dora": True}, MAGNITUDES), ({"modules_to_save": ["embed_tokens"]}, SAVED)]
)
def test_every_number_of_every_part_is_one(lab: Lab, config: dict[str, Any], more: dict[str, Values]) -> None:
    name = list(more)[-1]
    bad = more | {name: np.full(more[name].shape, np.nan, np.float32)}
    folder = lab.folder(tensors=lora_tensors() | bad, config=lora_config(**config))
    with pytest.raises(TensorsRefused, match="NaN"):
        lab.admit(folder)


def test_ranks_of_modules_are_the_patterns_own(lab: Lab) -> None:
    tensors = lora_tensors() | lora_tensors(modules=MODULES[:1], rank=RANK + 1)
    good = lab.folder("good", tensors=tensors, config=lora_config(rank_pattern={MODULES[0]: RANK + 1}))
    assert lab.admit(good).verdict == ADMITTED
    bad = lab.folder("bad", tensors=tensors, config=lora_config(rank_pattern={MODULES[1]: RANK + 1}))
    with pytest.raises(TensorsRefused, match="rank"):
        lab.admit(bad)
