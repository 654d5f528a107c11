"""The job `base.unpack`: a GGUF file becomes a folder that can be trained on, once, instead of at every load.

transformers writes out each quantised block as the numbers that it stands for; they are kept in float16, in which the
scales of the blocks are written too. What was rounded away when the file was made is not there again.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from orchd.errors import BaseUnusable
from orchd.jobs.context import JobContext
from orchd.train.specs import UnpackResult, UnpackSpec

FOLDER, FILE = "base", "model.gguf"


def run(spec: UnpackSpec, job: JobContext) -> UnpackResult:
    """Write the folder `base` in the working folder. Raises `BaseUnusable` for what transformers can't read."""
    link = job.workdir / "gguf"
    link.mkdir()
    (link / FILE).symlink_to(spec.gguf)
    folder = job.workdir / FOLDER
    job.progress(0, 3, "parts")
    try:
        tokenizer = AutoTokenizer.from_pretrained(link, gguf_file=FILE, local_files_only=True, trust_remote_code=False)
        job.progress(1, 3, "parts")
        model = AutoModelForCausalLM.from_pretrained(
            link,
            gguf_file=FILE,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float16,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseUnusable(f"transformers can't read {Path(spec.gguf).name}: {said}", field="path") from error
    job.progress(2, 3, "parts")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "RECORD.json").write_bytes(msgspec.json.encode({"licence": spec.licence, "source": spec.source}))
    job.progress(3, 3, "parts")
    return UnpackResult(folder=FOLDER, has_template=tokenizer.chat_template is not None)
