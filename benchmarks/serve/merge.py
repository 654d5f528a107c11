"""Rows `merge-time` and `merge-rss`: an adapter for every matrix is folded into a GGUF file of 490 million weights.

`merge-time` is against copying the same file and reading the adapter, in turn; both are synced to the disk. The row is
the worst of three types of file; `f16`, `q8_0` and `q4_k` are each one's median of the paired ratios. `merge-rss` is
what a process that does nothing else holds at most (Linux's VmHWM), beyond twice the largest tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

from benchmarks.report import Row
from orchd.registry.gguf_layout import read
from orchd.serve import ggml
from orchd.serve.surgery import graft
from tests.serve import tiny

SMALL = os.environ.get("ORCHD_BENCH_SMALL") == "1"
LAYERS, HIDDEN, MLP, HEADS, KEY_HEADS, VOCABULARY, RANK = (1 if SMALL else 9), 2048, 5632, 32, 8, 32_000, 16
MATRICES = {
    "attn_q": ("self_attn.q_proj", HIDDEN, HIDDEN),
    "attn_k": ("self_attn.k_proj", HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "attn_v": ("self_attn.v_proj", HIDDEN // HEADS * KEY_HEADS, HIDDEN),
    "attn_output": ("self_attn.o_proj", HIDDEN, HIDDEN),
    "ffn_gate": ("mlp.gate_proj", MLP, HIDDEN),
    "ffn_up": ("mlp.up_proj", MLP, HIDDEN),
    "ffn_down": ("mlp.down_proj", HIDDEN, MLP),
}
TYPES = {"f16": ggml.F16, "q8_0": ggml.Q8_0, "q4_k": ggml.Q4_K}
PAIRS, WARM = 5, 1
TIMES, ROOM_MB = 2.0, 200.0
ALONE = """
import sys
from pathlib import Path
from orchd.serve.surgery import graft
graft(*map(Path, sys.argv[1:4]), threads=int(sys.argv[4]))
told = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(told.split()[1]) * 1024 / 1e6)
"""


def rows() -> list[Row]:
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="orchd-merge-", dir=Path.cwd()) as folder:
        place = Path(folder)
        adapter = write_adapter(place / "adapter")
        timed, held = dict[str, tuple[float, float, float]](), dict[str, float]()
        for name, kind in TYPES.items():
            base = place / f"{name}.gguf"
            write_base(base, kind)
            timed[name] = _timed(base, adapter, place, threads)
            held[name] = _held(base, adapter, place / "out", threads)
            base.unlink()
    return [_time_row(timed), _memory_row(held)]


def _timed(base: Path, adapter: Path, place: Path, threads: int) -> tuple[float, float, float]:
    """Seconds to merge, to copy and read, and the median of (merging - reading the adapter) / copying."""
    found = []
    for number in range(WARM + PAIRS):
        start = time.perf_counter()
        shutil.copyfile(base, place / "out")
        _sync(place / "out")
        copied = time.perf_counter()
        for file in adapter.iterdir():
            file.read_bytes()
        was_read = time.perf_counter()
        (place / "out").unlink()
        begun = time.perf_counter()
        graft(base, adapter, place / "out", threads=threads)
        _sync(place / "out")
        merged = time.perf_counter() - begun
        (place / "out").unlink()
        copying, reading = copied - start, was_read - copied
        if number >= WARM:
            found.append((merged, copying + reading, (merged - reading) / copying))
    return (
        statistics.median(one[0] for one in found),
        statistics.median(one[1] for one in found),
        statistics.median(one[2] for one in found),
    )


def _held(base: Path, adapter: Path, out: Path, threads: int) -> float:
    """MB beyond twice the largest tensor."""
    command = [sys.executable, "-c", ALONE, base, adapter, out, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out.unlink()
    largest = max(max(tensor.size for tensor in read(base).tensors) / 1e6, 0)
    return float(done.stdout) - 2 * largest


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _time_row(timed: dict[str, tuple[float, float, float]]) -> Row:
    worst = max(timed, key=lambda name: timed[name][2])
    merging, copying, times = timed[worst]
    return Row(
        work="merge-time",
        unit="s",
        orchd=float(f"{merging:.4g}"),
        peer=f"copying ({worst})",
        peer_value=float(f"{copying:.4g}"),
        ratio=float(f"{1 / times:.4g}"),
        goal=f"at most {TIMES:g} × copying the file, and reading the adapter",
        met=times <= TIMES,
        figures={name: float(f"{one[2]:.4g}") for name, one in timed.items()},
    )


def _memory_row(held: dict[str, float]) -> Row:
    worst = max(held.values())
    return Row(
        work="merge-rss",
        unit="MB",
        orchd=float(f"{worst:.4g}"),
        peer="twice the largest tensor",
        peer_value=None,
        ratio=None,
        goal=f"at most {ROOM_MB:g} MB beyond it",
        met=worst <= ROOM_MB,
        figures={name: float(f"{one:.4g}") for name, one in held.items()},
    )


def write_base(path: Path, kind: int) -> None:
    """A Llama's matrices of random numbers in one type (1 MB of them again and again), and no vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{stem}.weight": (rows, columns) for stem, (_, rows, columns) in MATRICES.items()}
    form = gguf.GGMLQuantizationType(kind)
    for name, shape in shapes.items():
        size = ggml.size_of(kind, shape[0] * shape[1])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    some = ggml.quantize(np.random.default_rng(0).standard_normal((128, 5632), np.float32) * 0.02, kind)
    for shape in shapes.values():
        size = ggml.size_of(kind, shape[0] * shape[1])
        writer.write_tensor_data(np.resize(some, size))
    writer.close()


def write_adapter(folder: Path) -> Path:
    folder.mkdir()
    random, tensors = np.random.default_rng(1), {}
    for layer in range(LAYERS):
        for module, rows, columns in MATRICES.values():
            place = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{place}.lora_A.weight"] = random.standard_normal((RANK, columns), np.float32) * np.float32(0.01)
            tensors[f"{place}.lora_B.weight"] = random.standard_normal((rows, RANK), np.float32) * np.float32(0.01)
    tiny.write_safetensors(folder / "adapter_model.safetensors", tensors, "BF16")
    targets = sorted(module.partition(".")[2] for module, _, _ in MATRICES.values())
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
