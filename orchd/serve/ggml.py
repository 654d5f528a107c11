"""Numbers to and from the types of GGUF, by llama.cpp's own code: functions of ggml that xllamacpp's library exports.

Calls let go of Python's lock, so that several threads compute at once. Imported in workers only.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import xllamacpp  # type: ignore[import-untyped]
from numpy.typing import NDArray

from orchd.errors import QuantizeRefused
from orchd.registry.gguf_layout import BLOCKS
from orchd.serve.weights import FloatArray

F32, F16, Q4_0, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 8, 12, 13, 14, 30
NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_READERS = {
    F16: "ggml_cpu_fp16_to_fp32",
    BF16: "ggml_cpu_bf16_to_fp32",
} | {
    kind: f"dequantize_row_{name.lower().replace('_k', '_K') if name[0] == 'Q' else name.lower()}"
    for kind, name in NAMES.items()
    if kind not in (F32, F16, BF16)
}
_WRITERS = {F16: "ggml_cpu_fp32_to_fp16", BF16: "ggml_cpu_fp32_to_bf16", Q8_0: "quantize_row_q8_0"}
LARGEST_F16 = float(np.finfo(np.float16).max)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_cpu_init()  # fills the table of F16 numbers, on processors that have no instruction for them
    return library


@functools.cache
def _function(name: str) -> Any:
    """A function over one row: (from, to, how many numbers). Raises QuantizeRefused where xllamacpp lacks it."""
    try:
        found = getattr(_library(), name)
    except AttributeError:
        raise QuantizeRefused(f"this build of xllamacpp has no {name}", hint="Choose F16.") from None
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    found.restype = None
    return found


def readable(kind: int) -> bool:
    """Whether the numbers of this type can be read."""
    return kind == F32 or kind in _READERS


def size_of(kind: int, numbers: int) -> int:
    """Bytes of that many numbers; whole blocks."""
    block, length = BLOCKS[kind]
    return numbers // block * length


def dequantize(data: NDArray[np.uint8], kind: int, out: FloatArray) -> None:
    """Fill `out` (C-contiguous) with the numbers that `data` holds, whole blocks of type `kind`."""
    if data.size != size_of(kind, out.size):
        raise ValueError(f"{data.size} bytes are not {out.size} numbers of type {kind}")
    if kind == F32:
        out.reshape(-1).view(np.uint8)[:] = data
    else:
        _function(_READERS[kind])(data.ctypes.data, out.ctypes.data, out.size)


def quantize(rows: FloatArray, kind: int) -> NDArray[np.uint8]:
    """The bytes of `rows`, float32 (rows, columns), in type `kind`. Columns are a multiple of the type's block.

    Raises QuantizeRefused for numbers that the type can't hold: not finite ones, and in F16 those beyond 65,504.
    """
    rows = np.ascontiguousarray(rows)
    low, high = float(rows.min()), float(rows.max())
    limit = LARGEST_F16 if kind == F16 else float(np.finfo(np.float32).max)
    if not -limit <= low <= high <= limit:
        worst = max((low, high), key=abs)
        hint = "Choose F32; if that fails too, the weights are damaged."
        raise QuantizeRefused(f"{worst:g} is no number that {NAMES[kind]} can hold", hint=hint, field="quantize")
    if kind == F32:
        return rows.view(np.uint8).reshape(-1)
    out = np.empty(size_of(kind, rows.size), np.uint8)
    if kind in _WRITERS:
        _function(_WRITERS[kind])(rows.ctypes.data, out.ctypes.data, rows.size)
    else:
        _quantize_chunk(rows, kind, out)
    return out


def _quantize_chunk(rows: FloatArray, kind: int, out: NDArray[np.uint8]) -> None:
    function: Any = getattr(_library(), "ggml_quantize_chunk", None)
    if function is None:
        raise QuantizeRefused("this build of xllamacpp has no ggml_quantize_chunk", hint="Choose Q8_0.")
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    written = function(kind, rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], None)
    if written != out.size:
        raise QuantizeRefused(f"llama.cpp wrote {written} bytes of {NAMES[kind]} where {out.size} were due")
