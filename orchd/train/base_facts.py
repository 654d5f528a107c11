"""What is known of a base from its files, without loading it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from orchd.errors import BaseUnusable
from orchd.lm.adapter import DTYPES
from orchd.lm.files import places
from orchd.train.plan_specs import BaseFacts


class _Config(msgspec.Struct):
    """Of a base's `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int = 0
    max_position_embeddings: int = 0


def base_facts(folder: Path, dtype: torch.dtype = torch.float32) -> BaseFacts:
    """Of a base that is computed in ``dtype``, from `config.json` and the headers of the weights; nothing is loaded.

    Raises `BaseUnusable`.
    """
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
    except (OSError, msgspec.DecodeError) as error:
        raise BaseUnusable(f"{folder.name}: config.json: {error}", field="base") from error
    tensors = [place for _, place in places(folder).values()]
    layers = [one for one in tensors if ".layers." in one.name]
    return BaseFacts(
        width=config.hidden_size,
        inner=config.intermediate_size or 4 * config.hidden_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        parameters=sum(one.parameters for one in tensors),
        adapter_parameters=sum(sum(one.shape) for one in layers if len(one.shape) == 2),
        context=config.max_position_embeddings,
        itemsize=dtype.itemsize,
        layer_parameters=sum(one.parameters for one in layers),
        file_bytes=sum(one.end - one.start for one in tensors),
        is_mapped=all(DTYPES[one.dtype] == dtype for one in tensors),
    )
