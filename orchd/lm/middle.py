"""What stacked adapters are multiplied by between their factors. No torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Middle(NamedTuple):
    """M of one module over its stack's rows `first` to `first` + R′: `left` (R′, r) @ `right` (r, R′), float64.

    Where `left` is None, M is diagonal, and `right` (R′,) is its diagonal.
    """

    first: int
    right: NDArray[np.float64]
    left: NDArray[np.float64] | None = None
