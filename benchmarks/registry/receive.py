"""Row `put-64MB`: receiving (hash, write, fsync) against plain write, fsync and SHA-256 of the same bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.registry import large
from benchmarks.report import Row, lower_is_better
from orchd.registry.blobs import BlobStore

RUNS, TIMES_PLAIN = 15, 1.3


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="orchd-bench-", dir=Path.cwd()) as name:
        place = Path(name)
        source = large.write_adapter(place / "adapter", "BF16") / "adapter_model.safetensors"
        store = BlobStore(place / "blobs")
        plain = place / "plain"

        def receive() -> None:
            store.remove(store.put_file(source))

        def write() -> None:
            with source.open("rb", buffering=0) as origin, plain.open("wb", buffering=0) as file:
                while block := origin.read(large.READ_SIZE):
                    file.write(block)
                os.fsync(file.fileno())
            large.sha256_of(plain)
            plain.unlink()

        times = large.in_turn(receive, write, RUNS)
    orchd, peer = times.medians
    goal = (f"≤ {TIMES_PLAIN} × peer", TIMES_PLAIN * peer)
    peer_name = "write + fsync + SHA-256"
    return [
        lower_is_better(
            "put-64MB", "ms", orchd, (peer_name, peer), goal, times=orchd / peer, paired=times.ratio, best=times.best
        )
    ]
