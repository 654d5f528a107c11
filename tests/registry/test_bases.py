"""Is a base known by what it computes, however it was saved?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchd.errors import BaseUnknown, OrchdError, TensorsRefused
from orchd.registry.bases import SAMPLE, load
from tests.helpers import (
    BASE_CONFIG,
    HIDDEN,
    TEMPLATE,
    TOKENIZER,
    Safetensors,
    Values,
    base_tensors,
    write_base,
    write_json,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def _print_of(folder: Path) -> str:
    return load("tiny", folder).fingerprint


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    changed = change(tree)
    write_json(path, tree if changed is None else changed)


def test_what_is_told_about_a_base(folder: Path) -> None:
    base = load("tiny", folder)
    assert base.fingerprint.startswith("base_")
    assert len(base.fingerprint) == 5 + 52
    assert base.architecture == "LlamaForCausalLM"
    assert base.parameters == sum(values.size for values in base_tensors().values())
    assert base.shapes["model.layers.0.self_attn.q_proj.weight"] == (HIDDEN, HIDDEN)
    assert base.size == (folder / "model.safetensors").stat().st_size
    assert base.licence == "unknown"


# ---- the same ------------------------------------------------------------------------------------------------


def test_its_name_and_place_do_not_matter(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load("other", tmp_path / "elsewhere").fingerprint == _print_of(folder)


def test_the_order_of_keys_and_tensors_does_not_matter(folder: Path) -> None:
    before = _print_of(folder)
    for name in ("config.json", "tokenizer.json"):
        _rewrite(folder / name, lambda tree: dict(reversed(tree.items())))
    backwards = dict(reversed(base_tensors().items()))
    (folder / "model.safetensors").write_bytes(Safetensors.of(backwards).file())
    assert _print_of(folder) == before


@pytest.mark.parametrize("shards", [2, 3])
def test_the_sharding_does_not_matter(folder: Path, shards: int) -> None:
    before = _print_of(folder)
    _shard(folder, shards)
    assert _print_of(folder) == before


def _shard(folder: Path, shards: int) -> None:
    (folder / "model.safetensors").unlink()
    tensors = base_tensors()
    places: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        (folder / name).write_bytes(Safetensors.of(part).file())
        places |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def test_the_same_numbers_in_another_dtype_are_the_same(tmp_path: Path) -> None:
    """The helper's numbers fit BF16 exactly."""
    assert _print_of(write_base(tmp_path / "a", dtype="F32")) == _print_of(write_base(tmp_path / "b", dtype="BF16"))


def test_a_weights_file_that_is_not_loaded_does_not_matter(folder: Path) -> None:
    before = _print_of(folder)
    (folder / "consolidated.safetensors").write_bytes(Safetensors.of(base_tensors(seed=9)).file())
    assert _print_of(folder) == before
    _shard(folder, 2)
    assert _print_of(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {
            "transformers_version": "5.23.0",
            "torch_dtype": "float32",
            "use_cache": False,
            "_name_or_path": "/home/ada/x",
        },
        {"head_dim": HIDDEN // 2, "num_key_value_heads": 2},
        {"attention_bias": False, "mlp_bias": False, "sliding_window": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_theta": 10000, "rope_scaling": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000, "type": "default"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_another_version_writes_out_or_leaves_out_does_not_matter(folder: Path, change: dict[str, Any]) -> None:
    before = _print_of(folder)
    _rewrite(folder / "config.json", lambda tree: tree.update(change))
    assert _print_of(folder) == before


def test_how_another_version_writes_the_tokenizer_does_not_matter(folder: Path) -> None:
    before = _print_of(folder)

    def older(tree: dict[str, Any]) -> None:
        tree["model"]["merges"] = ["a b"]
        tree["truncation"] = tree["padding"] = None

    def newer(tree: dict[str, Any]) -> None:
        tree["model"] |= {"merges": [["a", "b"]], "dropout": None, "ignore_merges": False, "byte_fallback": False}

    for change in (older, newer):
        _rewrite(folder / "tokenizer.json", change)
        assert _print_of(folder) == before


def test_the_template_may_lie_in_a_file_of_its_own(folder: Path) -> None:
    before = _print_of(folder)
    write_json(folder / "tokenizer_config.json", {})
    (folder / "chat_template.jinja").write_text(TEMPLATE + "\n")
    assert _print_of(folder) == before


# ---- another -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(base_tensors()))
@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_weight_in_the_sample_makes_another_base(folder: Path, name: str, place: int) -> None:
    before = _print_of(folder)
    tensors = base_tensors()
    tensors[name].flat[place] += 1
    (folder / "model.safetensors").write_bytes(Safetensors.of(tensors).file())
    assert _print_of(folder) != before


def test_outside_the_sample_a_changed_weight_is_not_seen(tmp_path: Path) -> None:
    """Said in the README; the first, the last and evenly spread numbers between are looked at."""
    values: Values = np.zeros(100 * SAMPLE, np.float32)
    before = _print_of(write_base(tmp_path / "base", {"w": values}))
    seen = 0
    for place in range(150):
        changed = values.copy()
        changed[place] = 1
        seen += _print_of(write_base(tmp_path / "base", {"w": changed})) != before
    assert seen == 2


def _drop(tensors: dict[str, Values]) -> None:
    del tensors["model.norm.weight"]


def _rename(tensors: dict[str, Values]) -> None:
    tensors["model.final.weight"] = tensors.pop("model.norm.weight")


def _reshape(tensors: dict[str, Values]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].reshape(2, -1)


def _add(tensors: dict[str, Values]) -> None:
    tensors["model.extra.weight"] = np.zeros(1, np.float32)


@pytest.mark.parametrize("change", [_drop, _rename, _reshape, _add])
def test_other_tensors_make_another_base(folder: Path, change: Callable[[dict[str, Values]], None]) -> None:
    before = _print_of(folder)
    tensors = base_tensors()
    change(tensors)
    (folder / "model.safetensors").write_bytes(Safetensors.of(tensors).file())
    assert _print_of(folder) != before


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 2},
        {"rms_norm_eps": 1e-6},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": False},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"attention_bias": True},
        {"sliding_window": 128},
        {"model_type": "mistral"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_architecture_makes_another_base(folder: Path, change: dict[str, Any]) -> None:
    before = _print_of(folder)
    _rewrite(folder / "config.json", lambda tree: tree.update(change))
    assert _print_of(folder) != before


def test_how_far_positions_are_stretched_makes_another_base(folder: Path) -> None:
    prints = set()
    for factor in (2.0, 4.0):
        scaling = {"rope_type": "linear", "factor": factor}
        _rewrite(folder / "config.json", lambda tree, s=scaling: tree.update({"rope_scaling": s}))  # type: ignore[misc]
        prints.add(_print_of(folder))
    _rewrite(folder / "config.json", lambda tree: tree.update({"rope_scaling": {"type": "linear", "factor": 4}}))
    assert _print_of(folder) in prints  # the older way to write it
    assert len(prints) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": TOKENIZER["model"] | {"vocab": {"a": 1, "b": 2, "ab": 4}}},
        {"model": TOKENIZER["model"] | {"vocab": {"a": 1, "b": 2, "ab": 3, "c": 4}}},
        {"model": TOKENIZER["model"] | {"merges": []}},
        {"model": TOKENIZER["model"] | {"byte_fallback": True}},
        {"added_tokens": [{"id": 0, "content": "<|stop|>", "special": True}]},
        {"added_tokens": []},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_token_makes_another_base(folder: Path, change: dict[str, Any]) -> None:
    before = _print_of(folder)
    _rewrite(folder / "tokenizer.json", lambda tree: tree.update(change))
    assert _print_of(folder) != before


def test_another_line_of_the_template_makes_another_base(folder: Path) -> None:
    before = _print_of(folder)
    write_json(folder / "tokenizer_config.json", {"chat_template": TEMPLATE.replace("\n", "\n\n", 1)})
    assert _print_of(folder) != before


# ---- no base at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_no_base(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BaseUnknown):
        load("tiny", folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    _shard(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BaseUnknown, match="00002"):
        load("tiny", folder)


def test_an_index_leads_to_no_other_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"w": "../other.safetensors"}})
    with pytest.raises(BaseUnknown):
        load("tiny", folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    _shard(folder, 2)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(TensorsRefused, match="two files"):
        load("tiny", folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_refused_with_a_number(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(OrchdError):
        load("tiny", folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises((TensorsRefused, BaseUnknown)):
        load("tiny", folder)


@pytest.mark.parametrize("weight_map", [5, None, [], "x"])
def test_a_senseless_list_of_shards_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises((TensorsRefused, BaseUnknown)):
        load("tiny", folder)


def test_a_tokenizer_without_a_model_is_refused_and_one_without_merges_is_not(folder: Path) -> None:
    write_json(folder / "tokenizer.json", TOKENIZER | {"model": {"type": "WordLevel", "vocab": {"a": 1}}})
    assert _print_of(folder)
    write_json(folder / "tokenizer.json", TOKENIZER | {"model": None})
    with pytest.raises(TensorsRefused, match="model"):
        load("tiny", folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": 5},
        {"num_attention_heads": "many"},
        {"hidden_size": [8]},
        {"architectures": 5},
        {"num_attention_heads": 0},
        {"hidden_size": None},
        {"architectures": []},
        {"architectures": None},
    ],
    ids=str,
)
def test_a_senseless_config_is_no_crash(folder: Path, change: dict[str, Any]) -> None:
    write_json(folder / "config.json", BASE_CONFIG | change)
    try:
        load("tiny", folder)
    except OrchdError:
        return
