"""Rows `admission-64MB` (BF16), `admission-64MB-f32` and `admission-64MB-f16`: all checks, after receipt.

The bytes lie in the blob store and in the page cache. The peer is one SHA-256 pass over the weights.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.registry import large
from benchmarks.report import Row, lower_is_better
from orchd.identity import Identity
from orchd.records import BaseRef, Manifest, sign, text_id, verify
from orchd.records.ids import BASE
from orchd.registry import bounds
from orchd.registry.admission import CHECKS, WEIGHTS, Candidate, Known, judge
from orchd.registry.bases import Base
from orchd.registry.blobs import BlobStore
from orchd.registry.describe import adapter_info, file_entries
from orchd.registry.local_rows import Bound
from tests.helpers import bare_manifest

RUNS, TIMES_SHA256 = 25, 1.3
AUTHOR = Identity.from_seed(b"\x01" * 32)
NOW_MS = 1_800_000_000_000
FINGERPRINT = bytes(range(32))


def rows() -> list[Row]:
    return [
        row("admission-64MB", "BF16", goal=True),
        row("admission-64MB-f32", "F32", goal=True),
        row("admission-64MB-f16", "F16", goal=False),
    ]


def row(work: str, dtype: str, *, goal: bool) -> Row:
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as place:
        folder = large.write_adapter(Path(place) / "adapter", dtype)
        signed = sign(_manifest(folder), AUTHOR)
        store = BlobStore(Path(place) / "blobs")
        files = {entry.path: store.path(store.put_file(folder / entry.path)) for entry in signed.record.files}
        base, known = _base(dtype), _known(dtype)

        def admit() -> None:
            candidate = Candidate(verify(signed.envelope, Manifest), files, base, NOW_MS, known)
            assert judge(candidate, CHECKS) == []

        times = large.in_turn(admit, lambda: large.sha256_of(files[WEIGHTS]), RUNS)
        cpu = _cpu_ms(admit) / _cpu_ms(lambda: large.sha256_of(files[WEIGHTS]))
    orchd, peer = times.medians
    words, limit = (f"≤ {TIMES_SHA256} × peer", TIMES_SHA256 * peer) if goal else ("printed", float("inf"))
    return lower_is_better(
        work,
        "ms",
        orchd,
        ("one SHA-256 pass", peer),
        (words, limit),
        times=orchd / peer,
        paired=times.ratio,
        best=times.best,
        cpu=cpu,
    )


def _cpu_ms(work: object) -> float:
    assert callable(work)
    taken = []
    for _ in range(5):
        begun = time.process_time()
        work()
        taken.append((time.process_time() - begun) * 1e3)
    return statistics.median(taken)


def _manifest(folder: Path) -> Manifest:
    return bare_manifest(
        name="large",
        created_ms=NOW_MS,
        author=AUTHOR.public_key,
        base=BaseRef(fingerprint=FINGERPRINT, hint="7B", architecture="LlamaForCausalLM"),
        adapter=adapter_info(folder),
        files=file_entries(folder),
    )


def _base(dtype: str) -> Base:
    return Base(
        name="7B",
        digest=FINGERPRINT,
        path=Path("7B"),
        architecture="LlamaForCausalLM",
        parameters=0,
        size=0,
        licence="unknown",
        shapes={f"{module}.weight": (large.HIDDEN, large.HIDDEN) for module in large.modules(dtype)},
    )


def _known(dtype: str) -> Known:
    """Bounds for every module, wide enough."""
    base = text_id(BASE, FINGERPRINT)
    keys = [bounds.key(base, module) for module in large.modules(dtype)]
    return Known(bounds={key: Bound(key=key, count=10, mean_log=10.0, m2_log=1.0) for key in keys})
