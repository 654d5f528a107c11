"""HF Llama base + PEFT adapter → one complete GGUF file, an adapter folded in, quantised once.

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
from orchd.serve.llama import (
    LlamaConfig,
    Slot,
    Vocabulary,
    permute_rows,
    read_config,
    read_vocabulary,
    slots,
)
from orchd.serve.lora import Lora
from orchd.serve.specs import QUANTIZE_NAMES
from orchd.serve.weights import FloatArray, Weights

Q8_BLOCK = 32  # weights that share one scale in Q8_0
K_BLOCK = 256  # weights of one K-quant super-block: rows must be a multiple
ROWS_AT_ONCE = 4096  # rows that are quantised together; bounds temporary memory

Type = gguf.GGMLQuantizationType
TYPES = {"F32": Type.F32, "F16": Type.F16, "Q8_0": Type.Q8_0}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}

logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells the file's endianness each time


class Plan(NamedTuple):
    """One tensor as it will be written: where it comes from, its shape (rows, columns or size), its type."""

    slot: Slot
    shape: tuple[int, ...]
    type: Type


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
    vocabulary = read_vocabulary(base, config)
    weights = Weights.of_base(base)
    lora = Lora(adapter) if adapter else None
    plans = [_plan(slot, weights, quantize) for slot in slots(config, weights)]
    if lora:
        _require_places(lora, plans)
    _require_room(target.parent, plans)
    part = target.with_name(target.name + ".part")
    try:
        writer = gguf.GGUFWriter(part, "llama")
        _add_metadata(writer, config, vocabulary, name, quantize)
        _write_tensors(writer, plans, weights, lora, progress)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def require_known(quantize: str) -> None:
    """Raises QuantizeRefused unless orchd writes `quantize` (K-quants of a narrow base are told at `_type_for`)."""
    if quantize not in TYPES and not _is_k_quant(quantize):
        raise QuantizeRefused(
            f"no quantisation {quantize!r}; orchd writes {', '.join(QUANTIZE_NAMES)}", field="quantize"
        )


def _is_k_quant(quantize: str) -> bool:
    return quantize.startswith("Q") and "_K" in quantize


def _plan(slot: Slot, weights: Weights, quantize: str) -> Plan:
    shape = weights[slot.source].shape
    return Plan(slot, shape, _type_for(slot, shape, quantize))


def _type_for(slot: Slot, shape: tuple[int, ...], quantize: str) -> Type:
    if len(shape) == 1:
        return Type.F32  # norms: llama.cpp computes with them in float32 and they weigh nothing
    if _is_k_quant(quantize):
        why = (
            f"{slot.module} has rows of {shape[1]}, no multiple of {K_BLOCK}"
            if shape[1] % K_BLOCK
            else f"orchd writes {', '.join(QUANTIZE_NAMES)}"
        )
        raise QuantizeRefused(f"{quantize} can't be written: {why}", hint="Choose Q8_0.", field="quantize")
    if quantize == "Q8_0" and shape[1] % Q8_BLOCK:
        raise QuantizeRefused(
            f"Q8_0 can't be written: {slot.module} has rows of {shape[1]}, no multiple of {Q8_BLOCK}",
            hint="Choose F16.",
            field="quantize",
        )
    return TYPES[quantize]


def _require_places(lora: Lora, plans: list[Plan]) -> None:
    """Every matrix of the adapter has a matrix of the base inside the layers to be added to."""
    places = {plan.slot.module for plan in plans if len(plan.shape) == 2}
    places -= {"model.embed_tokens", "lm_head"}
    homeless = sorted(lora.modules - places)
    if homeless:
        raise AdapterNotMergeable(f"the adapter changes {homeless[0]}, which can't be folded in")


def _size(plan: Plan) -> int:
    """Bytes of the tensor in the file."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[plan.type]
    return int(np.prod(plan.shape)) // block * block_bytes


def _require_room(folder: Path, plans: list[Plan]) -> None:
    needed, free = sum(map(_size, plans)), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(f"the GGUF needs {needed} bytes, {free} are free")


def _write_tensors(
    writer: gguf.GGUFWriter,
    plans: list[Plan],
    weights: Weights,
    lora: Lora | None,
    progress: Callable[[int, int], None],
) -> None:
    for plan in plans:
        writer.add_tensor_info(plan.slot.gguf, plan.shape, np.dtype(np.float32), _size(plan), raw_dtype=plan.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for done, plan in enumerate(plans):
            progress(done, len(plans))
            writer.write_tensor_data(_tensor(plan, weights, lora))
        progress(len(plans), len(plans))
    finally:
        writer.close()


def _tensor(plan: Plan, weights: Weights, lora: Lora | None) -> NDArray[np.generic]:
    weight = weights.read(plan.slot.source)
    if lora:
        lora.fold(plan.slot.module, weight)
    if plan.slot.permute_heads:
        weight = permute_rows(weight, plan.slot.permute_heads)
    return _quantized(plan, weight)


def _quantized(plan: Plan, weight: FloatArray) -> NDArray[np.generic]:
    """`weight` in the plan's type. Raises BaseNotSupported when a value doesn't fit (not finite, or beyond F16)."""
    parts = []
    with np.errstate(over="ignore"):
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = weight[start : start + ROWS_AT_ONCE]
            half = rows.astype(np.float16) if plan.type is Type.F16 else rows
            if not np.isfinite(half).all():
                raise BaseNotSupported(
                    f"{plan.slot.module} holds values that {plan.type.name} can't hold",
                    hint="Choose F32; if that fails too, the weights are damaged.",
                )
            parts.append(half if half is not rows else gguf.quants.quantize(rows, plan.type))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _add_metadata(
    writer: gguf.GGUFWriter, config: LlamaConfig, vocabulary: Vocabulary, name: str, quantize: str
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantize])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.key_value_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_vocabulary(writer, vocabulary)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
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
