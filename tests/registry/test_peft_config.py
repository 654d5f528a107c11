"""Is `adapter_config.json` read as PEFT reads it, and is whatever PEFT would do differently refused?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import AdapterConfigRefused
from orchd.registry import peft_config
from orchd.registry.peft_config import PeftConfig, suffixes
from tests.helpers import lora_config

#: Written by `LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")`, PEFT 0.21.2.
PEFT_0_21: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "peft_type": "LORA",
    "auto_mapping": None,
    "peft_version": "0.21.2",
    "base_model_name_or_path": None,
    "revision": None,
    "inference_mode": True,
    "r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": None,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "fan_in_fan_out": False,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "trainable_token_indices": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "use_dora": False,
    "velora_config": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "qalora_group_size": 16,
    "monteclora_config": None,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "ensure_weight_tying": False,
}


def _read(folder: Path, text: str | bytes | dict[str, Any]) -> PeftConfig:
    path = folder / "adapter_config.json"
    if isinstance(text, dict):
        text = json.dumps(text)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return peft_config.read(path)


# ---- honest settings -----------------------------------------------------------------------------------------


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    assert _read(tmp_path, PEFT_0_21) == PeftConfig(
        rank=8, alpha=16.0, rslora=False, target_modules=("q_proj", "v_proj"), rank_pattern={}, alpha_pattern={}
    )


@pytest.mark.parametrize("base", [None, "", "gpt2", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c.d"])
def test_the_name_of_a_base_on_a_hub_is_taken(tmp_path: Path, base: str | None) -> None:
    assert _read(tmp_path, PEFT_0_21 | {"base_model_name_or_path": base})


def test_patterns_beat_the_general_values(tmp_path: Path) -> None:
    config = _read(
        tmp_path,
        lora_config(
            r=8, lora_alpha=16, rank_pattern={"layers.1.q_proj": 4, "q_proj": 2}, alpha_pattern={"q_proj": 1.5}
        ),
    )
    assert config.rank_of("model.layers.1.q_proj") == 4
    assert config.rank_of("model.layers.0.q_proj") == 2
    assert config.rank_of("model.layers.0.v_proj") == 8
    assert config.rank_of("xq_proj") == 8
    assert config.alpha_of("q_proj") == 1.5
    assert config.alpha_of("model.v_proj") == 16


@pytest.mark.parametrize(("rslora", "scale"), [(False, 5.0), (True, 10.0)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(tmp_path: Path, rslora: bool, scale: float) -> None:
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 20}}
    config = _read(tmp_path, lora_config(r=16, lora_alpha=32, use_rslora=rslora, **patterns))
    assert config.scale_of("model.q_proj") == scale
    assert config.scale_of("model.v_proj") == (8.0 if rslora else 2.0)


@pytest.mark.parametrize("rank", [1, 1024])
@pytest.mark.parametrize("alpha", [0, 0.5, 10**9])
def test_the_bounds_themselves_are_taken(tmp_path: Path, rank: int, alpha: float) -> None:
    patterns = {"rank_pattern": {"q_proj": rank}, "alpha_pattern": {"q_proj": alpha}}
    config = _read(tmp_path, lora_config(r=rank, lora_alpha=alpha, **patterns))
    assert (config.rank, config.alpha) == (config.rank_of("q_proj"), config.alpha_of("q_proj")) == (rank, alpha)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a_b"]), min_size=1, max_size=3).map(".".join), max_size=4, unique=True
    ),
    st.lists(st.sampled_from(["a", "b", "a_b"]), min_size=1, max_size=4).map(".".join),
)
def test_the_first_fitting_key_counts_as_in_peft(keys: list[str], module: str) -> None:
    """PEFT 0.21, `get_pattern_key`; with its keys escaped, as ours are names."""
    wanted = next((n for n, key in enumerate(keys, 1) if re.match(rf"(.*\.)?({re.escape(key)})$", module)), 99)
    config = PeftConfig(99, 1.0, False, (), {key: n for n, key in enumerate(keys, 1)}, {})
    assert config.rank_of(module) == wanted


def test_the_ends_of_a_name() -> None:
    assert suffixes("model.layers.0") == ["model.layers.0", "layers.0", "0"]


# ---- settings that would make it another adapter, or run something -------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
        ("auto_mapping", {"base_model_class": "X", "parent_library": "os"}),
        ("megatron_config", {}),
        ("megatron_core", "os"),
        ("use_dora", 0),
        ("use_dora", "yes"),
        ("bias", "lora"),
        ("bias", True),
        ("bias", ["all"]),
        ("lora_bias", 1),
        ("modules_to_save", "lm_head"),
        ("modules_to_save", {"lm_head": 1}),
        ("modules_to_save", False),
        ("modules_to_save", ["../lm_head"]),
        ("modules_to_save", [5]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", False),
        ("init_lora_weights", 1),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("target_parameters", ["mlp.experts"]),
        ("trainable_token_indices", [1]),
        ("loftq_config", {"loftq_bits": 4}),
        ("exclude_modules", ["q_proj"]),
        ("task_type", "SEQ_CLS"),
        ("runtime_config", {"ephemeral_gpu_offload": True}),
        ("trust_remote_code", True),
        ("custom", 1),
        ("", 1),
        ("use_rslora", 1),
        ("use_rslora", "no"),
        ("use_rslora", []),
        ("lora_dropout", "0"),
        ("inference_mode", 1),
        ("peft_version", 21),
        ("r", 0),
        ("r", -1),
        ("r", 1025),
        ("r", 8.0),
        ("r", True),
        ("r", "8"),
        ("r", None),
        ("r", 10**4000),
        ("lora_alpha", None),
        ("lora_alpha", True),
        ("lora_alpha", -1),
        ("lora_alpha", "16"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e306),
        ("target_modules", "all-linear"),
        ("target_modules", ".*"),
        ("target_modules", "q_proj"),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", []),
        ("target_modules", None),
        ("target_modules", ["q_proj", 5]),
        ("target_modules", ["q_proj|v_proj"]),
        ("target_modules", ["../x"]),
        ("target_modules", [""]),
        ("target_modules", ["a" * 121]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": True}),
        ("rank_pattern", {"q_proj": 10**4000}),
        ("rank_pattern", {".*": 4}),
        ("rank_pattern", {"(a+)+$": 4}),
        ("rank_pattern", []),
        ("rank_pattern", False),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"^q_proj": 4}),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_setting_that_is_not_plain_lora_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(AdapterConfigRefused) as caught:
        _read(tmp_path, PEFT_0_21 | {key: value})
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("key", "value", "field", "read"),
    [
        ("use_dora", True, "dora", True),
        ("bias", "all", "bias", "all"),
        ("bias", "lora_only", "bias", "lora_only"),
        ("lora_bias", True, "factor_bias", True),
        ("modules_to_save", ["lm_head", "embed_tokens"], "saved", ("embed_tokens", "lm_head")),
    ],
)
def test_what_is_more_than_a_product_is_read_and_said(
    tmp_path: Path, key: str, value: Any, field: str, read: Any
) -> None:
    found = _read(tmp_path, PEFT_0_21 | {key: value})
    assert getattr(found, field) == read
    assert key in found.beyond_product
    assert found.capabilities == ()
    with pytest.raises(AdapterConfigRefused, match=key):
        peft_config.read_plain(tmp_path / "adapter_config.json")


def test_a_plain_lora_can_be_averaged_and_served(tmp_path: Path) -> None:
    found = _read(tmp_path, PEFT_0_21)
    assert found.beyond_product == ""
    assert found.capabilities == ("averageable", "servable_as_lora")
    assert peft_config.read_plain(tmp_path / "adapter_config.json") == found


@pytest.mark.parametrize(
    "path",
    [
        "/home/ada/models/llama",
        "~/models",
        "./out",
        "../x",
        "C:\\Users\\ada",
        "C:/Users/ada",
        "file:///home/ada",
        "https://example.com/x",
        "home/ada/models",
        "models/../../x",
        "a/b/c",
        " gpt2",
        "gpt2\n",
        5,
        ["gpt2"],
    ],
    ids=str,
)
def test_a_path_of_somebodys_machine_is_refused_and_not_repeated(tmp_path: Path, path: Any) -> None:
    with pytest.raises(AdapterConfigRefused) as caught:
        _read(tmp_path, PEFT_0_21 | {"base_model_name_or_path": path})
    assert "ada" not in caught.value.message


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "target_modules"])
def test_what_matters_may_not_be_missing(tmp_path: Path, key: str) -> None:
    with pytest.raises(AdapterConfigRefused):
        _read(tmp_path, {k: v for k, v in PEFT_0_21.items() if k != key})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b"\xff",
        json.dumps(PEFT_0_21).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps(PEFT_0_21).encode(),
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"r": ' + b"9" * 5000 + b"}",
        json.dumps(PEFT_0_21).replace('"r": 8', '"r": 8, "r": 4').encode(),
        json.dumps(lora_config(rank_pattern={"a": 1})).replace('"a": 1', '"a": 1, "a": 2').encode(),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_single_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(AdapterConfigRefused):
        _read(tmp_path, text)


def test_a_config_longer_than_the_limit_is_not_read(tmp_path: Path) -> None:
    text = json.dumps(PEFT_0_21).ljust(peft_config.SIZE_LIMIT)
    assert _read(tmp_path, text)
    with pytest.raises(AdapterConfigRefused, match=str(peft_config.SIZE_LIMIT + 1)):
        _read(tmp_path, text + " ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(st.sampled_from(sorted(PEFT_0_21)) | st.text(max_size=8), _JSON, max_size=3), st.binary(max_size=50)
)
def test_nonsense_is_refused_with_a_number(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for text in (json.dumps(PEFT_0_21 | changes), data):
        try:
            config = _read(folder, text)
        except AdapterConfigRefused:
            continue
        assert 1 <= config.rank <= 1024
        assert 0 <= config.alpha <= peft_config.MAX_ALPHA
        assert config.target_modules
