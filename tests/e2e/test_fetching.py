"""A daemon that is killed while it fetches: what had come is not fetched again."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from orchd.daemon import embedded_base
from orchd.demo.cast import Cast
from orchd.demo.node import Node
from orchd.errors import OrchdError
from orchd.net.partial import JOURNAL, NOTE
from orchd.registry.bases import load
from tests.helpers import Values, lora_config, write_adapter

TOPIC, CHUNK = "e2e/fetching", 65_536
TARGETS, RANK = ("down_proj", "gate_proj", "up_proj"), 512
#: No capture, which keeps the bulk channel shut; and so slow that there is time to be killed (kilobytes a second).
SETTINGS = {"ORCHD_NET__CAPTURE": "", "ORCHD_NET__UPLOAD_LIMIT": "3000"}


def large_adapter(folder: Path) -> Path:
    """A PEFT folder of 9 MB for the shipped base."""
    rng, tensors = np.random.default_rng(0), dict[str, Values]()
    for name, shape in load("demo", embedded_base()).shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            for half, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                values = (rng.normal(size=size) / 1000).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = values
    return write_adapter(folder, tensors=tensors, config=lora_config(r=RANK, target_modules=list(TARGETS)))


def counters(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.call("net.stats")["stats"]["counters"]
    return found


def kept(node: Node, adapter: str) -> int:
    """Bytes of the chunks that are noted in its folder: all but the last chunks of files are whole ones."""
    journal = (node.home / "data" / "fetching" / adapter / JOURNAL).read_bytes()
    return len(set(NOTE.iter_unpack(journal))) * CHUNK


@pytest.mark.parametrize("bulk", ["true", pytest.param("false", marks=pytest.mark.long)])
def test_killed_while_fetching_it_goes_on_with_at_most_one_chunk_twice(cast: Cast, tmp_path: Path, bulk: str) -> None:
    settings = SETTINGS | {"ORCHD_NET__BULK": bulk}
    a = cast.start("A", settings=settings)
    b = cast.start("B", bootstrap=a.address, settings=settings)
    for node in (a, b):
        node.join(TOPIC)
    (made,) = a.job("adapter.import", path=str(large_adapter(tmp_path / "made")), name="large")["adapters"]
    a.publish(made["id"], TOPIC)
    b.find(made["id"])
    shown, enough = list[float](), threading.Event()

    def progress(done: float, total: float, unit: str) -> None:
        shown.append(done)
        if done > 0.3 * total:
            enough.set()

    def fetch() -> None:
        with pytest.raises(OrchdError):
            b.fetch(made["id"], progress=progress)

    fetching = threading.Thread(target=fetch)
    fetching.start()
    assert enough.wait(120)
    os.kill(cast.pids()["B"], signal.SIGKILL)
    fetching.join()
    told, had, size = max(shown), kept(b, made["id"]), made["size"]
    assert 0.3 * size < had < size, "it was killed on the way"
    assert had > told - CHUNK, "what is told is kept"
    b = cast.start("B", bootstrap=a.address, settings=settings)
    b.join(TOPIC)
    b.fetch(made["id"], peers=[a.peer_id])
    assert counters(b)["bytes_fetched"] <= size - had + CHUNK
    assert counters(a)["bulk_channels"] == (2 if bulk == "true" else 0)
    assert b.call("adapter.show", adapter=made["id"])["state"] == "admitted"
    assert list((b.home / "data" / "fetching").iterdir()) == []
