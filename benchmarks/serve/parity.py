"""Rows `parity-llama|mistral|qwen2|qwen3|gemma2|gemma3`: do llama.cpp and transformers + PEFT answer the same?

The largest difference of a next token's log-probability (nats), float32 on both sides, of a tiny random model with an
adapter folded into its GGUF file; null where a greedy token or a prompt's ids differ. `without` is that of the base
alone, which has to differ; `merged` that of the file made from base and adapter in one step.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.report import Row
from orchd.serve.engine import Engine
from orchd.serve.gguf import write_gguf
from orchd.serve.parity import TOLERANCES, compare
from orchd.serve.reference import Reference, answer_all
from orchd.serve.specs import Parity
from orchd.serve.surgery import graft
from tests.serve import families
from tests.serve.test_families import PROMPTS, TOKENS


def rows() -> list[Row]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="orchd-parity-") as folder:
        os.chdir(folder)  # llama.cpp's socket lies in the current folder
        try:
            return [_row(family, Path(folder)) for family in families.FAMILIES]
        finally:
            os.chdir(before)


def _row(family: str, place: Path) -> Row:
    base = families.make_base(place / f"{family}-base", family)
    adapter = families.make_adapter(place / f"{family}-adapter", base)
    reference = answer_all(base, adapter, PROMPTS, TOKENS, os.cpu_count() or 1)
    plain, merged, grafted = (place / f"{family}-{name}" for name in ("plain", "merged", "grafted"))
    write_gguf(base, None, plain, name="plain", quantize="F32")
    write_gguf(base, adapter, merged, name="merged", quantize="F32")
    graft(plain, adapter, grafted)
    found, once, without = (_compared(file, reference) for file in (grafted, merged, plain))
    equal = found.greedy_equal == found.token_ids_equal == found.prompts
    limit = TOLERANCES["F32"]
    return Row(
        work=f"parity-{family}",
        unit="nats",
        orchd=float(f"{found.max_logprob_diff:.4g}") if equal else None,
        peer="transformers + PEFT",
        peer_value=None,
        ratio=None,
        goal=f"at most {limit:g}, greedy tokens equal, and the base alone differs",
        met=equal and found.max_logprob_diff <= limit < without.max_logprob_diff,
        figures={
            "merged": once.max_logprob_diff,
            "without": without.max_logprob_diff,
            "prompts": float(found.prompts),
            "greedy_equal": float(found.greedy_equal),
            "positions": float(found.positions),
        },
    )


def _compared(file: Path, reference: Reference) -> Parity:
    engine = Engine(file, threads=os.cpu_count() or 1, keep_socket=True)
    try:
        return compare(engine, reference.expected, quantize="F32", max_new_tokens=TOKENS)[0]
    finally:
        engine.close()
