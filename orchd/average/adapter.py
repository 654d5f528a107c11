"""PEFT folders: read plain LoRA into typed modules, write one back with the same bytes for the same numbers.

What can't be averaged as a product Σ wᵢ sᵢ Bᵢ Aᵢ (DoRA, trained biases, whole modules, …) is refused by the readers of
`orchd.registry`, with its name. Scales: α/r, or α/√r with rsLoRA, per module after `rank_pattern` and `alpha_pattern`
(PEFT 0.21, `peft/tuners/lora/layer.py`).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from orchd.average.gram import Factors, Single
from orchd.average.specs import Dtype
from orchd.average.tensors import TensorWriter
from orchd.errors import OrchdError, TensorsRefused
from orchd.registry import peft_config, weights

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TENSOR = re.compile(
    re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<half>[AB])(?P<weight>\.weight)?"
)


@dataclass(frozen=True)
class Module:
    """One adapted module of the base: B is (`rows`, `rank`), A is (`rank`, `columns`), ΔW = `scale` · B A.

    `name` is the base's own module name. For an embedding PEFT applies the transpose, which changes nothing here.
    """

    name: str
    rank: int
    rows: int
    columns: int
    scale: float
    embedding: bool

    @property
    def tensor_names(self) -> tuple[str, str]:
        """The names of A and B in the weights file."""
        if self.embedding:
            return f"{_PREFIX}{self.name}.lora_embedding_A", f"{_PREFIX}{self.name}.lora_embedding_B"
        return f"{_PREFIX}{self.name}.lora_A.weight", f"{_PREFIX}{self.name}.lora_B.weight"


class Adapter:
    """An opened PEFT folder. Raises `AdapterConfigRefused` or `TensorsRefused` with the reason.

    `called` is what people call it. Factors are read with `pread`, not mapped, so that memory stays at the modules in
    hand however many adapters are open.
    """

    def __init__(self, folder: Path, called: str = "") -> None:
        self.called = called
        config = peft_config.read_plain(folder / CONFIG_NAME)
        path = folder / WEIGHTS_NAME
        self._tensors = weights.read_header(path)
        self.modules = _modules(self._tensors, config)
        self.target_modules = config.target_modules
        self._file = path.open("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def factors(self, name: str) -> Factors:
        """A and B of one module, read now. Raises `TensorsRefused` for NaN, infinity or a file that has shrunk."""
        module = self.modules[name]
        a, b = module.tensor_names
        return Factors(self._read(a), self._read(b), module.scale)

    def size_of(self, name: str) -> int:
        """Bytes of one module's factors in the file."""
        return sum(self._tensors[half].end - self._tensors[half].start for half in self.modules[name].tensor_names)

    def _read(self, name: str) -> Single:
        tensor = self._tensors[name]
        size = tensor.end - tensor.start
        data = os.pread(self._file.fileno(), size, tensor.start)
        if len(data) != size:
            raise TensorsRefused(f"the file ends inside tensor {name}")
        values = weights.values(memoryview(data), tensor._replace(start=0, end=size))
        if not np.isfinite(values).all():
            raise TensorsRefused(f"tensor {name} holds NaN or infinity")
        return values


@contextmanager
def naming(called: str) -> Iterator[None]:
    """What is refused inside, is refused with the adapter's name."""
    try:
        yield
    except OrchdError as error:
        error.message = f"{called}: {error.message}" if called else error.message
        raise


class AdapterWriter:
    """Writes an average as a PEFT folder, module by module, without rsLoRA.

    `lora_alpha` is the rank that may come, the same for all: PEFT and llama.cpp then scale a module of rank r by
    alpha/r, so √(r/alpha) is folded into both its factors. `rank_pattern` names modules below the largest rank; an
    `alpha_pattern`, which a GGUF file has no place for, is not needed. Call `add` in the order of the modules' names,
    then `finish`; or `abort`.
    """

    def __init__(self, folder: Path, dtype: Dtype, rank: int, modules: Sequence[Module]) -> None:
        """`rank` is the largest that may come, `modules` all modules that may come (their own rank is not used)."""
        folder.mkdir()
        self._folder = folder
        self.alpha = rank
        limits: dict[str, tuple[int, ...]] = {}
        for module in modules:
            name_a, name_b = module.tensor_names
            limits |= {name_a: (rank, module.columns), name_b: (module.rows, rank)}
        self._writer = TensorWriter(folder / WEIGHTS_NAME, dtype, limits)
        self._ranks: dict[str, int] = {}
        self.parameters = 0

    def add(self, module: Module, factors: Factors) -> None:
        """Write one module of the result: `factors.a` (r, columns), `factors.b` (rows, r), `factors.scale` 1."""
        name_a, name_b = module.tensor_names
        fold = np.float32(math.sqrt(factors.rank / self.alpha))
        self._writer.write(name_a, factors.a * fold)
        self._writer.write(name_b, factors.b * fold)
        self._ranks[module.name] = factors.rank
        self.parameters += factors.a.size + factors.b.size

    def finish(self, targets: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """Write the settings and make the folder valid. `targets` are the leaves' target modules, all of them.

        Returns the largest rank and the target modules.
        """
        self._writer.close()
        used = tuple(sorted({t for t in targets if any(_ends_with(name, t) for name in self._ranks)}))
        text = json.dumps(_config(self._ranks, self.alpha, used), indent=2, sort_keys=True) + "\n"
        (self._folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        return max(self._ranks.values()), used

    def abort(self) -> None:
        self._writer.abort()


def _config(ranks: Mapping[str, int], alpha: int, targets: Sequence[str]) -> dict[str, object]:
    rank = max(ranks.values())
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _modules(tensors: Mapping[str, weights.Tensor], config: peft_config.PeftConfig) -> dict[str, Module]:
    """The modules by name, sorted."""
    halves: dict[tuple[str, bool], dict[str, tuple[int, ...]]] = {}
    for tensor in tensors.values():
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or bool(match["embedding"]) == bool(match["weight"]) or len(tensor.shape) != 2:
            raise TensorsRefused(f"tensor {tensor.name[:120]!r} is no factor of a plain LoRA")
        halves.setdefault((match["module"], bool(match["embedding"])), {})[match["half"]] = tensor.shape
    if len({name for name, _ in halves}) < len(halves):
        raise TensorsRefused("a module has factors of a linear layer and of an embedding")
    return {name: _module(name, embedding, halves[name, embedding], config) for name, embedding in sorted(halves)}


def _module(
    name: str, embedding: bool, halves: Mapping[str, tuple[int, ...]], config: peft_config.PeftConfig
) -> Module:
    if halves.keys() != {"A", "B"}:
        raise TensorsRefused(f"module {name[:120]} has only one of its two factors")
    (rank, columns), (rows, again) = halves["A"], halves["B"]
    if not rank == again == config.rank_of(name):
        raise TensorsRefused(
            f"module {name[:120]} has factors of rank {rank} and {again}, its settings say {config.rank_of(name)}"
        )
    scale = config.scale_of(name)
    return Module(name, rank, rows, columns, scale, embedding)


def _ends_with(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")
