"""Base + adapter → an ONNX model that answers token ids with logits, tried in onnxruntime. Imported in workers only.

Needs the extra `onnx`. The model has no cache: each call is given the whole text. Batch and length are free.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter needs it; told here where it is missing
import torch
from torch import Tensor

from orchd.jobs.context import JobContext
from orchd.lm.adapter import load_adapter
from orchd.lm.base import load_base
from orchd.lm.whole import KEPT

FILE = "model.onnx"
TRIED = ((1, 3), (2, 17), (1, 64))
"""(batch, tokens) of what both are asked."""


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def write_onnx(base: Path, adapter: Path, target: Path, job: JobContext) -> float:
    """Write `model.onnx` (weights beside it) and the tokenizer's files into `target`, a folder that is there.

    Float32. Returns the largest difference of a logit between onnxruntime and torch. Raises what `orchd.lm` raises.
    """
    torch.set_num_threads(job.threads)
    job.progress(0, 3, "parts")
    loaded = load_base(base)
    merged = load_adapter(loaded, adapter).merge_and_unload()
    merged.set_attn_implementation("eager")
    model = _Logits(merged.eval())
    job.progress(1, 3, "parts")
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (_ids(loaded, (2, 7)),),
            str(target / FILE),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": free},
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    job.progress(2, 3, "parts")
    for name in KEPT:
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    difference = _difference(loaded, model, target / FILE, job.threads)
    job.progress(3, 3, "parts")
    return difference


def _ids(loaded: Any, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    return torch.randint(0, loaded.model.config.vocab_size, shape, generator=generator)


@torch.inference_mode()
def _difference(loaded: Any, model: _Logits, file: Path, threads: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for shape in TRIED:
        ids = _ids(loaded, shape)
        (found,) = session.run(None, {"input_ids": ids.numpy()})
        worst = max(worst, float(np.abs(found - model(ids).numpy()).max()))
    return worst
