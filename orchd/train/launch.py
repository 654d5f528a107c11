"""A training in several processes or on several machines, by torch's own launcher:

    torchrun --nproc-per-node 2 -m orchd.train.launch SPEC.json FOLDER

SPEC.json holds the settings of `TrainSpec`; `base` and `dataset` are folders. Every process reads them, the first one
writes to FOLDER: `run` (checkpoints and curves, from which the same command goes on) and `adapter` or `base`, and tells
how far it is, a line of JSON each. `orchctl adapter import FOLDER/adapter` takes it in.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from orchd.errors import TrainingRefused
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.peers import Launched
from orchd.train.specs import TrainSpec


class Lines:
    """A wire that prints."""

    def __init__(self, prints: bool) -> None:
        self._prints = prints

    def send(self, message: Mapping[str, object]) -> None:
        if self._prints:
            print(msgspec.json.encode(message).decode(), flush=True)

    def receive(self) -> dict[str, object] | None:
        return None


def main(arguments: list[str]) -> None:
    """Raises what `loop.run` raises."""
    spec = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=TrainSpec)
    folder = Path(arguments[1]).absolute()
    spec = msgspec.structs.replace(spec, run=str(folder / "run"))
    if spec.lora_dropout is None:  # each process would leave out others, and only one's draws are in a checkpoint
        spec = msgspec.structs.replace(spec, lora_dropout=0.0)
    if spec.replay:
        hint = "Leave it out here, or train in one process."
        raise TrainingRefused("what is replayed is made by one process", hint=hint, field="replay")
    peers = Launched()
    try:
        with tempfile.TemporaryDirectory() as apart:
            folder.mkdir(parents=True, exist_ok=True)
            job = JobContext(folder if peers.first else Path(apart), torch.get_num_threads(), Lines(peers.first))
            if not peers.first:
                loop.trained(spec, job, peers)
                return
            job.send({"event": "result", "result": msgspec.to_builtins(loop.run(spec, job, peers))})
    finally:
        peers.close()


if __name__ == "__main__":
    main(sys.argv[1:])
