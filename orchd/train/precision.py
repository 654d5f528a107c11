"""In which dtype a base is computed, by a short look at this machine; and what memory is free here.

bf16 is 4-6 times faster than float32 on CPUs with units for it and 9-50 times slower on others (facts on training,
section 3), so it is tried and not looked up. The adapter itself, its moments and the loss are always float32.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from orchd.jobs.sandbox.limits import room
from orchd.lm.losses import scorer_of

SMALL_BASE_BYTES: Final = 40_000_000
"""The files of a base below this are computed in float32 without a trial: its products are too small to gain."""

TRIAL_SHAPE: Final = (256, 1024, 1024)
"""Rows, columns and inner length of the trial's product."""

TRIALS: Final = 3
FASTER: Final = 1.2
"""So many times as fast as float32 bf16 has to be, for what it rounds away."""

MEMORY_FILE: Final = Path("/proc/meminfo")
LIMIT_FILES: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


def choose(base: Path, device: str, seconds: Callable[[torch.dtype, str], float] | None = None) -> torch.dtype:
    """bfloat16 where a product and its gradients are faster in it, else float32. Takes some 50 ms.

    ``seconds`` measures one trial in a dtype on a device.
    """
    if sum(file.stat().st_size for file in base.glob("*.safetensors")) < SMALL_BASE_BYTES:
        return torch.float32
    measure = seconds or trial
    plain = min(measure(torch.float32, device) for _ in range(TRIALS))
    first = measure(torch.bfloat16, device)
    if first > 5 * plain:  # on a CPU without units for it the other trials would take long
        return torch.float32
    short = min(first, *(measure(torch.bfloat16, device) for _ in range(TRIALS)))
    return torch.bfloat16 if short * FASTER < plain else torch.float32


def trial(dtype: torch.dtype, device: str) -> float:
    """Seconds of one matrix product forward and backward."""
    rows, columns, inner = TRIAL_SHAPE
    left = torch.ones(rows, inner, dtype=dtype, device=device, requires_grad=True)
    right = torch.ones(inner, columns, dtype=dtype, device=device, requires_grad=True)
    _wait(device)
    begun = time.perf_counter()
    (left @ right).sum().backward()  # type: ignore[no-untyped-call]
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: str) -> None:
    """A GPU answers before it has computed."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def free_bytes(memory: Path = MEMORY_FILE, limits: tuple[Path, Path] = LIMIT_FILES) -> int | None:
    """Main memory that this process may still take: what the system has free, or its control group or its own limit has
    left (Linux).

    None where none of these can be read.
    """
    found = [own] if (own := room()) is not None else []
    with contextlib.suppress(OSError, KeyError, ValueError):
        rows = dict(line.split(":", 1) for line in memory.read_text().splitlines() if ":" in line)
        found.append(int(rows["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # no group, or "max"
        found.append(int(limits[0].read_text()) - int(limits[1].read_text()))
    return max(0, min(found)) if found else None


def free_memory(device: str) -> int | None:
    """Bytes that are free where the ``device`` computes; a GPU has its own. None where nobody knows."""
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else free_bytes()


def recompute(model: Any) -> None:
    """Have the layers keep their inputs only; each is computed again for its gradients. The gradients are the same."""
    if (scorer := scorer_of(model)) is not None:
        scorer.recompute()
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def most_memory(model: Any) -> int:
    """The most bytes that this process has had: on the GPU where it trains there, else in main memory."""
    if model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(model.device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = most if sys.platform == "darwin" else most * 1024
    scorer = scorer_of(model)
    return most if scorer is None else max(most, scorer.peak_bytes)
