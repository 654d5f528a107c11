"""Does a GGUF answer as transformers + PEFT do? The comparison and its tolerances. Imported in workers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from orchd.registry.gguf_layout import read
from orchd.serve import ggml
from orchd.serve.engine import Engine
from orchd.serve.reference import Expected
from orchd.serve.specs import KEEP, Golden, Parity

REPLACEMENT = "\ufffd"  # what both sides write for bytes that are no character, but not equally often

TOLERANCES = {
    "F32": 1e-3,  # the order of adding floats; 3.0e-5 measured on the demo base with a trained adapter
    "F16": 5e-2,  # weights and activations rounded to 11 bits; measured 1.3e-2
    "Q8_0": 1.0,  # weights and activations rounded to 8 bits in blocks of 32; measured 4.5e-1
    "Q4_K_M": 2.5,  # weights rounded to 4 bits; measured 9.5e-1 on random models, 4 without their adapter
}
"""Largest difference (nats) of a next token's log-probability that a file of this dtype may show."""

GELU_TOLERANCE = 4e-3
"""Instead of F32's for Gemma: llama.cpp looks its GELU up in a table of F16 numbers. Measured up to 1.5e-3 on random
models; 3e-4 of it is left when transformers is given the same table."""

QUANTISED_BASE = "Q8_0"
"""As which a file counts that an adapter was folded into: of a quantised base the reference has the very numbers (the
folder was made from the file), what is rounded besides are touched weights and all activations, to 8 bits."""

TIE_SHARE = 0.5
"""Two tokens tie when the measure tells them apart by less than this share of the tolerance: then either may win."""

TOP_TOKENS = 64
"""Tokens whose log-probabilities are compared at each position: llama.cpp's most likely ones."""


class _Compared(NamedTuple):
    """One prompt. `parted` is the position where the greedy answers part, None if they don't; `text` is what
    the chat itself answered."""

    ids_equal: bool
    text_equal: bool
    parted: int | None
    near_tie: bool
    positions: int
    difference: float


def tolerance_of(gguf: Path, quantize: str) -> float:
    """What a file may show, by its dtype, or by its tensors where an adapter was folded into a base's own file."""
    layout = read(gguf)
    matrices = {tensor.type for tensor in layout.tensors if len(tensor.shape) > 1}
    if quantize == KEEP:
        floats = matrices <= {ggml.F32, ggml.F16, ggml.BF16}
        quantize = QUANTISED_BASE if not floats else "F32" if matrices == {ggml.F32} else "F16"
    gelu = str(layout.keys.get("general.architecture")).startswith("gemma")
    return GELU_TOLERANCE if gelu and quantize == "F32" else TOLERANCES[quantize]


def compare(
    engine: Engine,
    expected: Sequence[Expected],
    *,
    quantize: str,
    max_new_tokens: int,
    tolerance: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Parity, tuple[Golden, ...]]:
    """Ask `engine` (opened with keep_socket) every prompt and weigh its answers against `expected`.

    `tolerance` is that of the file's dtype where it is left out.
    Returns the verdict, and the answers of the chat itself for a target to be compared with after the upload.
    """
    tolerance = TOLERANCES[quantize] if tolerance is None else tolerance
    compared, golden = [], []
    for done, one in enumerate(expected):
        progress(done, len(expected))
        rendered, ids = engine.prompt_ids(one.prompt)
        text = _chat(engine, one, max_new_tokens)
        compared.append(_compare_one(engine, one, ids, text, tolerance, max_new_tokens))
        golden.append(Golden(messages=one.prompt, rendered=rendered, answer=text, max_new_tokens=max_new_tokens))
    progress(len(expected), len(expected))
    return _verdict(compared, quantize, tolerance), tuple(golden)


def _chat(engine: Engine, expected: Expected, max_new_tokens: int) -> str:
    pieces: list[str] = []

    def take(text: str) -> bool:
        pieces.append(text)
        return True

    engine.chat(expected.prompt, max_tokens=max_new_tokens, temperature=0.0, on_text=take)
    return "".join(pieces)


def _compare_one(
    engine: Engine,
    expected: Expected,
    ids: list[int],
    text: str,
    tolerance: float,
    max_new_tokens: int,
) -> _Compared:
    if ids != expected.prompt_ids:
        return _Compared(False, False, 0, False, 0, 0.0)
    parted = _first_difference(engine.greedy(ids, max_new_tokens), expected.answer)
    tie = parted is not None and _is_near_tie(engine, expected, parted, tolerance)
    text_equal = text == expected.text or REPLACEMENT in expected.text
    positions, difference = 0, 0.0
    for position, measure in enumerate(expected.logprobs):
        step = engine.next_token(ids + expected.answer[:position], TOP_TOKENS)
        if step.logprobs:
            positions += 1
            differences = [abs(measure[token] - value) for token, value in step.logprobs.items()]
            difference = max(difference, *(float(one) for one in differences))
    return _Compared(True, text_equal, parted, tie, positions, difference)


def _first_difference(found: list[int], wanted: list[int]) -> int | None:
    if found == wanted:
        return None
    pairs = enumerate(zip(found, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))


def _is_near_tie(engine: Engine, expected: Expected, position: int, tolerance: float) -> bool:
    """Whether the token that llama.cpp chose ties with the measure's own."""
    measure = expected.logprobs[position]
    ids = expected.prompt_ids + expected.answer[:position]
    chosen = engine.next_token(ids, 1).token
    return bool(measure.max() - measure[chosen] <= TIE_SHARE * tolerance)


def _verdict(compared: list[_Compared], quantize: str, tolerance: float) -> Parity:
    prompts = len(compared)
    ids_equal = sum(one.ids_equal for one in compared)
    greedy_equal = sum(one.parted is None and one.text_equal for one in compared)
    near_ties = sum(one.near_tie for one in compared)
    difference = max((one.difference for one in compared), default=0.0)
    positions = sum(one.positions for one in compared)
    held = (
        prompts > 0
        and positions > 0
        and ids_equal == prompts
        and greedy_equal + near_ties == prompts
        and difference <= tolerance
    )
    ties = f" ({near_ties} more part at a tie)" if near_ties else ""
    detail = (
        f"{quantize}: prompt tokens equal in {ids_equal} of {prompts}, "
        f"greedy answers equal in {greedy_equal} of {prompts}{ties}, "
        f"largest log-probability difference {difference:.1e} over {positions} positions "
        f"(at most {tolerance:g})"
    )
    return Parity(
        held=held,
        prompts=prompts,
        token_ids_equal=ids_equal,
        greedy_equal=greedy_equal,
        near_ties=near_ties,
        positions=positions,
        max_logprob_diff=difference,
        tolerance=tolerance,
        detail=detail,
    )
