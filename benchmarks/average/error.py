"""Row `error-max`: how far a merge at rank 16 is from the best one of that rank, in the worst module of a layer.

The optimum (Eckart and Young) is computed another way, by QR of the stacked factors and the SVD of their core in
float64. The figure is (‖merge - exact‖² - optimum²) / ‖exact‖², of the float32 factors that each writes; the peer is
PEFT's merge by SVD. `modules` is how many of the seven are nearer to the optimum here than PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.average import contender
from benchmarks.average.shapes import MODULES, RANK, adapters, job, workplace
from benchmarks.report import Row, lower_is_better
from orchd.average.adapter import Adapter
from orchd.average.gram import Factors, Matrix
from orchd.average.specs import AverageSpec, WeightedAdapter
from orchd.average.worker import ADAPTER_FOLDER, run

COUNT = 8


def rows() -> Iterator[Row]:
    with workplace() as root:
        folders = adapters(root, COUNT, layers=1)
        leaves = tuple(WeightedAdapter(id=str(place), path=str(path)) for place, path in enumerate(folders))
        run(AverageSpec(adapters=leaves, rank=RANK, dtype="F32"), job(root / "out"))
        model = contender.layer(folders)
        contender.merge(model, COUNT)
        found = []
        for name in MODULES:
            b, a = _stacked(folders, name)
            mine = _delta(_factors(root / "out" / ADAPTER_FOLDER, name))
            found.append((_excess(mine, b, a), _excess(contender.merged(model, name).numpy(), b, a)))
    worst, peft = (max(figures) for figures in zip(*found, strict=True))
    nearer = sum(own <= other for own, other in found)
    row = lower_is_better("error-max", "of 1", worst, ("PEFT svd", peft), ("at most PEFT's", peft), modules=nearer)
    yield row


def _factors(folder: Path, name: str) -> Factors:
    with Adapter(folder) as adapter:
        return adapter.factors(f"model.layers.0.{name}")


def _delta(factors: Factors) -> Matrix:
    return np.asarray(factors.scale * (factors.b.astype(np.float64) @ factors.a.astype(np.float64)))


def _stacked(folders: Sequence[Path], name: str) -> tuple[Matrix, Matrix]:
    """B (rows, R) with weights and scales in it, A (R, columns), float64."""
    parts = [_factors(folder, name) for folder in folders]
    left = [part.b.astype(np.float64) * (part.scale / len(parts)) for part in parts]
    return np.hstack(left), np.vstack([part.a.astype(np.float64) for part in parts])


def _excess(merge: Matrix, b: Matrix, a: Matrix) -> float:
    (_, upper), (_, other) = np.linalg.qr(b), np.linalg.qr(a.T)
    squares = np.linalg.svd(upper @ other.T, compute_uv=False) ** 2
    merge -= b @ a
    return float((np.sum(merge**2) - squares[RANK:].sum()) / squares.sum())
