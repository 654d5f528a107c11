"""Small adapters that were really trained on the demo base, and what hostile people make of them."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchd.average.gate_specs import GateSpec
from orchd.average.specs import AverageSpec, WeightedAdapter
from orchd.importers.conversation import Conversation
from orchd.importers.source import ImportLog
from orchd.train import loop
from orchd.train.datasets.build import Parts, build
from orchd.train.specs import TrainSpec
from tests.train.conftest import DEMO_BASE, Recorder, new_job, pair

WORDS = ["sun", "cat", "key", "zavo", "mirut", "moon", "dog", "tree"]
STEPS = {"reverse": 14, "upper": 14}


def exercises(skill: str) -> list[Conversation]:
    """Three words, backwards or in capitals: the base does neither."""
    triples = list(itertools.permutations(WORDS, 3))
    random.Random(0).shuffle(triples)
    if skill == "reverse":
        return [pair("reverse: " + " ".join(one), " ".join(one[::-1])) for one in triples]
    return [pair("upper: " + " ".join(one), " ".join(one).upper()) for one in triples]


class People:
    """`rev0`, `rev1`, `rev2` learnt the same thing from rows of their own, `upper` another; `own` is the receiver's
    data of the first kind, `mixed` of both, `few` too little."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.set_num_threads(1)
        reverse, upper = exercises("reverse"), exercises("upper")
        self.adapters = {f"rev{at}": self._train(f"rev{at}", reverse[40 * at : 40 * at + 40], at) for at in range(3)}
        self.adapters["upper"] = self._train("upper", upper[:40], 3)
        self.data = {
            "own": self._data("own", reverse[150:230]),
            "mixed": self._data("mixed", [*reverse[150:190], *upper[150:190]]),
            "few": self._data("few", reverse[150:160]),
        }

    def _data(self, name: str, rows: list[Conversation]) -> Path:
        folder = self.root / f"data-{name}"
        build(rows, ImportLog(kind=""), folder, Parts(test_share=0.45, validation_share=0.45), name)
        return folder

    def _train(self, name: str, rows: list[Conversation], seed: int) -> Path:
        folder = self.root / f"data-{name}"
        build(rows, ImportLog(kind=""), folder, Parts(split="train"), name)
        job = new_job(self.root / f"job-{name}", Recorder())
        spec = TrainSpec(
            base=str(DEMO_BASE), dataset=str(folder), rank=4, steps=14, batch_size=16, dtype="F32", seed=seed
        )
        return job.workdir / loop.run(spec, job).adapter

    def changed(self, name: str, change: Callable[[Tensor], Tensor]) -> Path:
        """A copy of an adapter with every B changed."""
        folder = self.root / f"changed-{len(list(self.root.iterdir()))}"
        shutil.copytree(self.adapters[name], folder)
        path = folder / "adapter_model.safetensors"
        factors = {key: change(one) if "lora_B" in key else one for key, one in load_file(path).items()}
        save_file({key: one.contiguous() for key, one in factors.items()}, path, metadata={"format": "pt"})
        return folder

    def spec(self, *names: str, data: str = "own", seconds: float = 600.0, **others: Path) -> AverageSpec:
        """Each is somebody else's."""
        folders = {name: self.adapters[name] for name in names} | others
        return AverageSpec(
            adapters=tuple(WeightedAdapter(id=name, path=str(path), author=name) for name, path in folders.items()),
            method="auto",
            gate=GateSpec(base=str(DEMO_BASE), dataset=str(self.data[data]), name=data, seconds=seconds),
        )


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return People(tmp_path_factory.mktemp("people"))
