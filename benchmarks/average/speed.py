"""Rows `speed-7B-k8` and `speed-7B-sha`: the average of eight adapters of a 7B base, from files to a file.

The peers: PEFT's merge by SVD, measured on one layer without its files and multiplied by the layers; and SHA-256 over
the same bytes. Files are in the page cache for all three. Best of three, but for PEFT.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.average import contender, ours
from benchmarks.average.shapes import LAYERS, adapters, workplace
from benchmarks.report import Row, lower_is_better

COUNT = 8
TIMES_FASTER = 1_000.0
TIMES_SHA = 3.0


def rows() -> Iterator[Row]:
    with workplace() as root:
        folders = adapters(root, COUNT)
        hashed = min(_hash(folders) for _ in range(3))
        runs = [ours.average(root / f"out-{n}", folders) for n in range(3)]
        best = min(runs, key=lambda run: run["seconds"])
        peft, peft_cpu = _peft(folders)
    yield lower_is_better(
        "speed-7B-k8",
        "s",
        best["seconds"],
        (f"PEFT svd, one layer x {LAYERS}", peft),
        (f"at most a {TIMES_FASTER:g}th", peft / TIMES_FASTER),
        cpu=best["cpu"],
        peft_cpu=peft_cpu,
    )
    yield lower_is_better(
        "speed-7B-sha",
        "s",
        best["seconds"],
        ("SHA-256 of the same bytes", hashed),
        (f"at most {TIMES_SHA:g} times", TIMES_SHA * hashed),
    )


def _hash(folders: list[Path]) -> float:
    begun = time.perf_counter()
    for folder in folders:
        with (folder / "adapter_model.safetensors").open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - begun


def _peft(folders: list[Path]) -> tuple[float, float]:
    """Seconds for all layers, on the clock and of the processor."""
    model = contender.layer(folders)
    clock, processor = time.perf_counter(), time.process_time()
    contender.merge(model, len(folders))
    return LAYERS * (time.perf_counter() - clock), LAYERS * (time.process_time() - processor)
