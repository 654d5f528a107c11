"""A 64 MB adapter of the shapes that one for a 7B base has, and the things that are measured beside it."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchd.registry.weights import ITEM_SIZE

SIZE = 64 << 20  # bytes of numbers
HIDDEN, RANK = 4096, 16
TARGETS = ("k_proj", "o_proj", "q_proj", "v_proj")
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(TARGETS)}
READ_SIZE = 1 << 20


@dataclass(frozen=True)
class Times:
    """Milliseconds of the wall clock, orchd's and its peer's in turn."""

    orchd: list[float]
    peer: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.orchd), statistics.median(self.peer)

    @property
    def ratio(self) -> float:
        """The median of the ratios of neighbouring runs: the machine was busy alike for both of a pair."""
        return statistics.median(a / b for a, b in zip(self.orchd, self.peer, strict=True))

    @property
    def best(self) -> float:
        """The ratio of the quickest runs: what it is when nobody else wants the cores."""
        return min(self.orchd) / min(self.peer)


def in_turn(orchd: Callable[[], object], peer: Callable[[], object], runs: int) -> Times:
    """Both once to warm up, then in turn."""
    orchd(), peer()
    pairs = [(_ms(orchd), _ms(peer)) for _ in range(runs)]
    return Times([a for a, _ in pairs], [b for _, b in pairs])


def _ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def modules(dtype: str, size: int | None = None) -> Iterator[str]:
    """As many modules as make `size` bytes (`SIZE`)."""
    for number in range((size or SIZE) // (2 * RANK * HIDDEN * ITEM_SIZE[dtype])):
        yield f"model.layers.{number // len(TARGETS)}.self_attn.{TARGETS[number % len(TARGETS)]}"


def write_adapter(folder: Path, dtype: str, size: int | None = None) -> Path:
    """A PEFT folder with random numbers; the weights file in the order that PEFT writes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries: dict[str, dict[str, object]] = {}
    end = 0
    with (folder / "numbers").open("wb") as numbers:
        for module in sorted(modules(dtype, size)):
            for half, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK))):
                data = _encoded(rng.normal(0, 0.02, shape).astype(np.float32), dtype)
                name = f"base_model.model.{module}.lora_{half}.weight"
                entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
                end += numbers.write(data)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + (folder / "numbers").read_bytes())
    (folder / "numbers").unlink()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def _encoded(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def sha256_of(path: Path) -> bytes:
    """One pass, as `sha256sum` does it."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_SIZE):
            digest.update(block)
    return digest.digest()
