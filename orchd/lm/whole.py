"""A whole base as a folder again, after its weights were trained."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchd.errors import BaseUnusable
from orchd.lm.adapter import DTYPES
from orchd.lm.base import Base
from orchd.lm.tensors import write_tensors

WEIGHTS_FILE: Final = "model.safetensors"
KEPT: Final = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"),
)
"""Of the folder that it was loaded from, what stays as it is: nothing else is copied, so no pickle and no code."""


def save_base(base: Base, folder: Path, dtype: str) -> None:
    """Write ``base`` with the weights that its model has now: a Hugging Face folder, one safetensors file.

    ``dtype`` is a key of `DTYPES`. A weight that the model has in two places (tied embeddings) is written once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (base.path / name).is_file():
            shutil.copyfile(base.path / name, folder / name)
    weights = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous() for name, tensor in base.model.named_parameters()
    }
    write_tensors(weights, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)


def read_base_weights(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some weights of a folder that `save_base` wrote, float32. Raises `BaseUnusable`."""
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            return {name: file.get_tensor(name).to(torch.float32) for name in names}
    except (OSError, SafetensorError) as error:
        raise BaseUnusable(f"{folder.name}: {WEIGHTS_FILE}: {error}", field="base") from error
