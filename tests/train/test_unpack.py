"""A GGUF file becomes a folder that computes the same, and that can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchd.daemon import embedded_base
from orchd.errors import BaseUnusable
from orchd.jobs.context import JobContext
from orchd.lm.base import Base, load_base
from orchd.registry.known_bases import read
from orchd.serve.gguf import write_gguf
from orchd.train import unpack
from orchd.train.specs import UnpackSpec
from tests.jobs.test_worker import ListWire


@torch.inference_mode()
def logits(base: Base, text: str) -> torch.Tensor:
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
    found: torch.Tensor = base.model(ids).logits
    return found


def test_a_gguf_file_computes_the_same_as_a_folder(tmp_path: Path) -> None:
    demo_base = embedded_base()
    gguf, work = tmp_path / "demo.gguf", tmp_path / "work"
    write_gguf(demo_base, None, gguf, name="demo", quantize="F16")
    work.mkdir()
    spec = UnpackSpec(gguf=str(gguf), licence="MIT", source="base_x")
    made = unpack.run(spec, JobContext(work, 1, ListWire()))
    assert made.has_template
    before, after = load_base(demo_base), load_base(work / made.folder)
    text = "reverse: cat sun"
    assert torch.allclose(logits(before, text), logits(after, text), atol=0.02)
    messages = [{"role": "user", "content": text}]
    rendered = [
        one.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for one in (before, after)
    ]
    assert rendered[0] == rendered[1]
    assert read("folder", work / made.folder).licence == "MIT"


def test_what_transformers_can_not_read_is_a_numbered_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    spec = UnpackSpec(gguf=str(tmp_path / "x.gguf"), licence="", source="")
    with pytest.raises(BaseUnusable, match=r"x\.gguf"):
        unpack.run(spec, JobContext(tmp_path, 1, ListWire()))
