"""The proof for each family: llama.cpp gives the log-probabilities of transformers + PEFT, and the same tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xllamacpp  # type: ignore[import-untyped]

from orchd.importers.conversation import Message
from orchd.serve import engine
from orchd.serve.engine import Engine
from orchd.serve.gguf import write_gguf
from orchd.serve.gguf_lora import write_gguf_lora
from orchd.serve.parity import compare
from orchd.serve.reference import Reference, answer_all
from orchd.serve.specs import Parity, Prompt
from orchd.serve.surgery import graft
from tests.serve import families

TEXTS = ("Hello!", "It's 1234567 o'clock, isn't it?", "naïve café: " + "the quick brown fox " * 8)
PROMPTS: tuple[Prompt, ...] = tuple((Message("user", text),) for text in TEXTS)
TOKENS = 12


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path) -> Iterator[None]:
    """The engine's socket lies in the current folder."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def proven(gguf: Path, reference: Reference, quantize: str = "F32") -> Parity:
    loaded = Engine(gguf, threads=1, keep_socket=True)
    try:
        return compare(loaded, reference.expected, quantize=quantize, max_new_tokens=TOKENS)[0]
    finally:
        loaded.close()


def with_lora(monkeypatch: pytest.MonkeyPatch, lora: Path) -> None:
    """Have llama.cpp add this file to every base that it loads from now on."""
    plain = engine._params

    def params(*args: Any) -> Any:
        found = plain(*args)
        found.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        return found

    monkeypatch.setattr(engine, "_params", params)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_answers_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged from the folder, folded into the base's file, and added by llama.cpp as a LoRA; the base alone differs."""
    base = families.make_base(tmp_path / "base", family)
    adapter = families.make_adapter(tmp_path / "adapter", base)
    reference = answer_all(base, adapter, PROMPTS, TOKENS, 1)
    plain, merged, grafted = (tmp_path / f"{name}.gguf" for name in ("plain", "merged", "grafted"))
    write_gguf(base, None, plain, name="plain", quantize="F32")
    write_gguf(base, adapter, merged, name="merged", quantize="F32")
    graft(plain, adapter, grafted)
    for made in (merged, grafted):
        parity = proven(made, reference)
        assert parity.held, parity.detail
    control = proven(plain, reference)
    assert not control.held
    assert control.max_logprob_diff > 0.1
    write_gguf_lora(base, adapter, tmp_path / "lora.gguf", name="lora")
    with_lora(monkeypatch, tmp_path / "lora.gguf")
    added = proven(plain, reference)
    assert added.held, added.detail
