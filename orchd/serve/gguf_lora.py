"""PEFT adapter → GGUF LoRA: a small file that llama.cpp adds to its base while it runs.

The format is the whole of llama.cpp `src/llama-adapter.cpp`: `NAME.lora_a` (rank, in) and `NAME.lora_b` (out, rank) for
tensors NAME of the base. llama.cpp scales by alpha/rank of the whole file, or not at all where alpha is 0; so here
alpha is 0 and each module's own scale (rsLoRA, `alpha_pattern`, `rank_pattern`) is in its B. The converter that comes
with llama.cpp gets rsLoRA and `alpha_pattern` wrong. Rows of B of queries and keys stand in the base's order.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf

from orchd.errors import AdapterNotMergeable
from orchd.registry.blobs import full_disk_told
from orchd.serve.families import heads_of, matrix_of, permute_rows
from orchd.serve.hf import read_config
from orchd.serve.lora import Lora
from orchd.serve.surgery import Model, Progress, model_of, read_base
from orchd.serve.weights import Weights


def write_gguf_lora(
    base: Path, adapter: Path, target: Path, *, name: str, progress: Progress = lambda done, total: None
) -> None:
    """Write `target`: the adapter (PEFT folder) for `base`, a Hugging Face folder or a GGUF file. Tensors are F32.

    The same input gives the same bytes. `progress` is called with (modules done, modules in all). Nothing is left at
    `target` when it fails. Raises AdapterNotMergeable for what is no plain product, or does not fit this base;
    BaseNotSupported, GgufRefused, WeightsUnreadable, DiskFull.
    """
    lora = Lora(adapter)
    model, shapes = _of_folder(base) if base.is_dir() else _of_file(base)
    part = target.with_name(target.name + ".part")
    try:
        with full_disk_told(target.parent):
            writer = gguf.GGUFWriter(part, model.architecture)
            writer.add_type("adapter")
            writer.add_name(name)
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", 0.0)
            _add_tensors(writer, lora, model, shapes, progress)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _add_tensors(
    writer: gguf.GGUFWriter, lora: Lora, model: Model, shapes: dict[str, tuple[int, ...]], progress: Progress
) -> None:
    for done, module in enumerate(sorted(lora.modules)):
        progress(done, len(lora.modules))
        name = matrix_of(module)
        if name is None or name not in shapes:
            raise AdapterNotMergeable(f"the adapter changes {module}, which llama.cpp adds no LoRA to")
        factors = lora.factors(module, shapes[name])
        heads = heads_of(name, model.heads, model.key_heads) if model.architecture == "llama" else None
        writer.add_tensor(f"{name}.lora_a", factors.a)
        writer.add_tensor(f"{name}.lora_b", permute_rows(factors.b, heads) if heads else factors.b)
    progress(len(lora.modules), len(lora.modules))


def _of_folder(base: Path) -> tuple[Model, dict[str, tuple[int, ...]]]:
    config = read_config(base)
    shapes = {
        name: tensor.shape
        for source, tensor in Weights.of_base(base).items()
        if (name := matrix_of(source.removesuffix(".weight"))) is not None
    }
    return Model(config.family.architecture, config.num_attention_heads, config.key_value_heads), shapes


def _of_file(base: Path) -> tuple[Model, dict[str, tuple[int, ...]]]:
    layout = read_base(base)
    return model_of(layout), {tensor.name: tensor.shape for tensor in layout.tensors}
