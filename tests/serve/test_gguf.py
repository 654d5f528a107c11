"""Writing GGUF: the bytes, the numbers, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from orchd.errors import AdapterNotMergeable, BaseNotSupported, DiskFull, QuantizeRefused, WeightsUnreadable
from orchd.serve.gguf import write_gguf
from orchd.serve.weights import Weights
from tests.serve import tiny


def written(base: Path, adapter: Path | None, target: Path, quantize: str = "F32") -> dict[str, Any]:
    """The tensors of the file that is written, de-quantised, by name."""
    write_gguf(base, adapter, target, name="test", quantize=quantize)
    reader = gguf.GGUFReader(target)
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def test_every_tensor_has_its_place(base: Path, tmp_path: Path) -> None:
    found = written(base, None, tmp_path / "a.gguf")
    weights = Weights.of_base(base)
    assert len(found) == len(weights) == 2 + 9 * tiny.LAYERS
    for name, source in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
    }.items():
        np.testing.assert_array_equal(found[name], weights.read(source))


def test_rows_of_queries_are_interleaved(base: Path, tmp_path: Path) -> None:
    """Row 1 of a head in GGUF is the first row of the second half of that head in Hugging Face's order."""
    found = written(base, None, tmp_path / "a.gguf")["blk.0.attn_q.weight"]
    source = Weights.of_base(base).read("model.layers.0.self_attn.q_proj.weight")
    size = tiny.HIDDEN // tiny.HEADS
    np.testing.assert_array_equal(found[1], source[size // 2])
    np.testing.assert_array_equal(found[size + 2], source[size + 1])


@pytest.mark.parametrize(("quantize", "error"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 1e-2)])
def test_quantisation_keeps_the_values(base: Path, tmp_path: Path, quantize: str, error: float) -> None:
    found = written(base, None, tmp_path / "a.gguf", quantize)["blk.0.ffn_up.weight"]
    source = Weights.of_base(base).read("model.layers.0.mlp.up_proj.weight")
    assert np.abs(found - source).max() <= error


def test_the_same_input_gives_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        write_gguf(base, adapter, tmp_path / name, name="test", quantize="Q8_0")
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("config", "ranks", "scale"),
    [
        ({}, {}, 8 / 4),
        ({"use_rslora": True}, {}, 8 / 4**0.5),
        ({"alpha_pattern": {"mlp.up_proj": 3}}, {}, 3 / 4),
        ({"rank_pattern": {"up_proj": 2}}, {"up_proj": 2}, 8 / 2),
        ({"rank_pattern": {"up_proj": 2}, "use_rslora": True}, {"up_proj": 2}, 8 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 3}, "use_rslora": True}, {}, 3 / 4**0.5),
    ],
)
def test_the_scale_of_an_adapter(
    base: Path, tmp_path: Path, config: dict[str, Any], ranks: dict[str, int], scale: float
) -> None:
    adapter = tiny.make_adapter(tmp_path / "adapter", ranks=ranks, **config)
    weights = Weights([adapter / "adapter_model.safetensors"])
    module = "model.layers.1.mlp.up_proj"
    a, b = (weights.read(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
    wanted = Weights.of_base(base).read(f"{module}.weight") + scale * (b @ a)
    found = written(base, adapter, tmp_path / "a.gguf")["blk.1.ffn_up.weight"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "IA3"},
        {"target_parameters": ["x"]},
        {"r": 5},
    ],
)
def test_adapters_that_are_no_plain_product(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    adapter = tiny.make_adapter(tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(AdapterNotMergeable):
        write_gguf(base, adapter, tmp_path / "a.gguf", name="test", quantize="F16")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 320), "lora_embedding_A"),
        ("base_model.model.model.embed_tokens.lora_A.weight", (4, tiny.HIDDEN), "only one"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", (96,), "magnitude"),
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", (4, tiny.HIDDEN), "layers.7"),
    ],
)
def test_matrices_without_a_place(base: Path, tmp_path: Path, name: str, shape: tuple[int, ...], word: str) -> None:
    adapter = tiny.make_adapter(tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = Weights([path])
    tensors = {one: weights.read(one) for one in weights} | {name: np.ones(shape, np.float32)}
    tiny.write_safetensors(path, tensors, "F32")
    with pytest.raises(AdapterNotMergeable, match=word):
        write_gguf(base, adapter, tmp_path / "a.gguf", name="test", quantize="F16")


def test_an_adapter_of_embeddings_or_another_shape(base: Path, tmp_path: Path) -> None:
    for module, rows in (("model.embed_tokens", 320), ("model.layers.0.mlp.up_proj", 97)):
        adapter = tiny.make_adapter(tmp_path / module)
        place = f"base_model.model.{module}"
        tensors = {
            f"{place}.lora_A.weight": np.ones((4, tiny.HIDDEN), np.float32),
            f"{place}.lora_B.weight": np.ones((rows, 4), np.float32),
        }
        tiny.write_safetensors(adapter / "adapter_model.safetensors", tensors, "F32")
        with pytest.raises(AdapterNotMergeable, match=module):
            write_gguf(base, adapter, tmp_path / "a.gguf", name="test", quantize="F16")


@pytest.mark.parametrize("quantize", ["Q4_K_M"])
def test_k_quants_of_narrow_rows(base: Path, tmp_path: Path, quantize: str) -> None:
    with pytest.raises(QuantizeRefused, match="multiple of 256") as caught:
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize=quantize)
    assert "Q8_0" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_unknown_quantisations(base: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeRefused, match="F32, F16, Q8_0"):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="INT8")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma"},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
    ],
)
def test_bases_that_are_not_written(tmp_path: Path, config: dict[str, Any]) -> None:
    base = tiny.make_base(tmp_path / "base", **config)
    with pytest.raises(BaseNotSupported):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"model": {"type": "Unigram", "vocab": {}, "merges": []}},
        {"post_processor": {"type": "BertProcessing"}},
    ],
)
def test_tokenizers_that_are_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    base = tiny.make_base(tmp_path / "base")
    path = base / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BaseNotSupported, match=r"tokenizer\.json"):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")


def test_damaged_weights(tmp_path: Path) -> None:
    base = tiny.make_base(tmp_path / "base")
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsUnreadable):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")
    path.unlink()
    with pytest.raises(WeightsUnreadable):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")


def test_a_full_disk(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
    with pytest.raises(DiskFull, match="5 are free"):
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    base = tiny.make_base(tmp_path / "base")
    weights = Weights.of_base(base)
    tensors = {name: weights.read(name) for name in weights}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = 1e6
    tiny.write_safetensors(base / "model.safetensors", tensors, "BF16")
    with pytest.raises(BaseNotSupported, match="F16") as caught:
        write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F16")
    assert "F32" in caught.value.hint
    write_gguf(base, None, tmp_path / "a.gguf", name="test", quantize="F32")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.gguf", "base"]
