"""HF base + PEFT adapter → one complete GGUF file, the adapter folded in, quantised once.

One tensor is in memory at a time. The same inputs give the same bytes, so a GGUF can be named by its digest.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from orchd.errors import AdapterNotMergeable, BaseNotSupported, DiskFull, QuantizeRefused
from orchd.serve import ggml
from orchd.serve.families import EMBEDDINGS, HEAD, Slot, permute_rows
from orchd.serve.hf import Config, read_config, rope_factors, slots
from orchd.serve.lora import Lora
from orchd.serve.specs import QUANTIZE_NAMES
from orchd.serve.vocabulary import Vocabulary, read_vocabulary
from orchd.serve.weights import FloatArray, Weights

Q8_BLOCK = 32  # weights that share one scale in Q8_0
K_BLOCK = 256  # weights of one K-quant super-block: rows must be a multiple
ROWS_AT_ONCE = 4096  # rows that are quantised together; bounds temporary memory

TYPES = {"F32": ggml.F32, "F16": ggml.F16, "Q8_0": ggml.Q8_0, "Q4_K_M": ggml.Q4_K}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}

logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells the file's endianness each time


class Plan(NamedTuple):
    """One tensor as it will be written: where it comes from, its shape (rows, columns or size), its type."""

    slot: Slot
    shape: tuple[int, ...]
    type: int

    @property
    def size(self) -> int:
        """Bytes."""
        return ggml.size_of(self.type, int(np.prod(self.shape)))


def write_gguf(
    base: Path,
    adapter: Path | None,
    target: Path,
    *,
    name: str,
    quantize: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `target`: the base (Hugging Face folder) with `adapter` (PEFT folder) folded in, in `quantize`.

    `progress` is called with (tensors done, tensors in all). Nothing is left at `target` when it fails.
    Raises QuantizeRefused, BaseNotSupported, AdapterNotMergeable, WeightsUnreadable, DiskFull.
    """
    require_known(quantize)
    config = read_config(base)
    vocabulary = read_vocabulary(base, config.vocab_size)
    weights = Weights.of_base(base)
    lora = Lora(adapter) if adapter else None
    plans = [_plan(slot, weights, quantize, config) for slot in slots(config, weights)]
    if lora:
        _require_places(lora, plans, config)
    _require_room(target.parent, plans)
    part = target.with_name(target.name + ".part")
    try:
        writer = gguf.GGUFWriter(part, config.family.architecture)
        _add_metadata(writer, config, name, quantize)
        _add_vocabulary(writer, vocabulary)
        _write_tensors(writer, plans, rope_factors(config), weights, lora, progress)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def require_known(quantize: str) -> None:
    """Raises QuantizeRefused unless orchd writes `quantize`."""
    if quantize not in TYPES:
        raise QuantizeRefused(
            f"no quantisation {quantize!r}; orchd writes {', '.join(QUANTIZE_NAMES)}", field="quantize"
        )


def _plan(slot: Slot, weights: Weights, quantize: str, config: Config) -> Plan:
    shape = weights[slot.source].shape
    return Plan(slot, shape, _type_for(slot, shape, quantize, config))


def _type_for(slot: Slot, shape: tuple[int, ...], quantize: str, config: Config) -> int:
    if len(shape) == 1:
        return ggml.F32  # norms, biases: llama.cpp computes with them in float32 and they weigh nothing
    if quantize == "Q4_K_M":
        if shape[1] % K_BLOCK:
            why = f"{slot.module} has rows of {shape[1]}, no multiple of {K_BLOCK}"
            raise QuantizeRefused(f"{quantize} can't be written: {why}", hint="Choose Q8_0.", field="quantize")
        return ggml.Q6_K if _wants_more_bits(slot, config) else ggml.Q4_K
    if quantize == "Q8_0" and shape[1] % Q8_BLOCK:
        raise QuantizeRefused(
            f"Q8_0 can't be written: {slot.module} has rows of {shape[1]}, no multiple of {Q8_BLOCK}",
            hint="Choose F16.",
            field="quantize",
        )
    return TYPES[quantize]


def _wants_more_bits(slot: Slot, config: Config) -> bool:
    """Which matrices of a Q4_K_M file are Q6_K: the head, and values and second MLP matrices of some layers.

    Source: llama.cpp `src/llama-quant.cpp`, llama_tensor_get_type and its use_more_bits.
    """
    if slot.module == (EMBEDDINGS if config.tie_word_embeddings else HEAD):
        return True
    if not slot.gguf.endswith((".attn_v.weight", ".ffn_down.weight")):
        return False
    layer, layers = int(slot.gguf.split(".")[1]), config.num_hidden_layers
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _require_places(lora: Lora, plans: list[Plan], config: Config) -> None:
    """Every matrix of the adapter has a matrix of the base to be added to, that is used for nothing else."""
    places = {plan.slot.module for plan in plans if len(plan.shape) == 2} - {EMBEDDINGS}
    homeless = sorted(lora.modules - places)
    if homeless:
        shared = " (it is the embeddings too)" if homeless[0] == HEAD and config.tie_word_embeddings else ""
        raise AdapterNotMergeable(f"the adapter changes {homeless[0]}{shared}, which can't be folded in")


def _require_room(folder: Path, plans: list[Plan]) -> None:
    needed, free = sum(plan.size for plan in plans), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(f"the GGUF needs {needed} bytes, {free} are free")


def _write_tensors(
    writer: gguf.GGUFWriter,
    plans: list[Plan],
    factors: FloatArray | None,
    weights: Weights,
    lora: Lora | None,
    progress: Callable[[int, int], None],
) -> None:
    for plan in plans:
        kind = gguf.GGMLQuantizationType(plan.type)
        writer.add_tensor_info(plan.slot.gguf, plan.shape, np.dtype(np.float32), plan.size, raw_dtype=kind)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for done, plan in enumerate(plans):
            progress(done, len(plans))
            writer.write_tensor_data(_tensor(plan, weights, lora))
        if factors is not None:
            writer.write_tensor_data(factors)
        progress(len(plans), len(plans))
    finally:
        writer.close()


def _tensor(plan: Plan, weights: Weights, lora: Lora | None) -> NDArray[np.uint8]:
    slot = plan.slot
    weight = weights.read(slot.source)
    if lora and slot.kind == "weight":
        lora.fold(slot.module, weight)
    if slot.permute_heads:
        weight = permute_rows(weight, slot.permute_heads)
    return _quantized(plan, weight + np.float32(slot.offset) if slot.offset else weight)


def _quantized(plan: Plan, weight: FloatArray) -> NDArray[np.uint8]:
    """`weight` in the plan's type. Raises BaseNotSupported when a value doesn't fit (not finite, or beyond F16)."""
    rows = weight.reshape(-1, plan.shape[-1])
    try:
        parts = [
            ggml.quantize(rows[start : start + ROWS_AT_ONCE], plan.type) for start in range(0, len(rows), ROWS_AT_ONCE)
        ]
    except QuantizeRefused as error:
        raise BaseNotSupported(f"{plan.slot.module}: {error}", hint=error.hint) from error
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _add_metadata(writer: gguf.GGUFWriter, config: Config, name: str, quantize: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantize])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope.rope_theta)
    if config.rope.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    if config.family.windows:
        _add_windows(writer, config)


def _add_windows(writer: gguf.GGUFWriter, config: Config) -> None:
    """What Gemma has besides."""
    writer.add_sliding_window(config.sliding_window or 0)
    if config.window_rope is not None:
        writer.add_rope_freq_base_swa(config.window_rope.rope_theta)
    if config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    add_special = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for kind, index in vocabulary.special.items():
        add_special[kind](index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.chat_template)
