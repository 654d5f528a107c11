"""What a prompt looks like to a router: one vector of `SIZE` numbers, the same in training and in serving. numpy only.

Each token's input of the base's middle layer, as that layer sees it (after its norm), brought to length √width, goes
through `SIZE` fixed random directions; what a direction has above `THRESHOLD` counts, and the mean over the user's
tokens is the vector. So few numbers are above zero for one token that the mean tells which tokens there were nearly as
a count of them would, and a diagonal spread says most of how prompts vary: on free text the mean of the states
themselves, 128 numbers on the demo base, finds the right one of eight adapters in 63-75 % under any covariance that a
receiver has, this one in 90 % (benchmarks/route). `docs/SPEC-manifest.md` is the format.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

SIZE: Final = 1024
"""Numbers, whatever the base: half of them find 3 % fewer."""

THRESHOLD: Final = 1.5
"""Of a number with mean 0 and variance 1: one in fifteen is above."""

TOKENS: Final = 512
"""So much of a text is looked at."""

LETTERS: Final = 16 * TOKENS
"""So much of a text is made into tokens."""

EPSILON: Final = 1e-12
Vector = npt.NDArray[np.float32]


class Said(Protocol):
    """What a message must have here."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


def last_asked(messages: Iterable[Said]) -> str:
    """The user's last message: neither the system's, which may be anybody's, nor what was said before."""
    return next((one.content for one in reversed(tuple(messages)) if one.role == "user"), "")


def prompt_vector(inputs: Vector) -> Vector:
    """The vector of a text, float32 (`SIZE`,), of the normed inputs of the middle layer, float32 (tokens, width), of
    its tokens. Zeros without a token."""
    if not len(inputs):
        return np.zeros(SIZE, np.float32)
    even = inputs / np.sqrt((inputs * inputs).mean(-1, keepdims=True) + np.float32(EPSILON))
    above: Vector = np.maximum(even @ directions(inputs.shape[1]) - np.float32(THRESHOLD), 0).mean(0)
    return above


@functools.lru_cache(maxsize=2)
def directions(width: int) -> Vector:
    """float32 (width, `SIZE`), all ±1/√width: the bits of SHAKE-256 over a fixed text, most significant first."""
    bytes = hashlib.shake_256(f"orchd routing 1: {width}".encode()).digest(width * SIZE // 8)
    signs = np.unpackbits(np.frombuffer(bytes, np.uint8)).astype(np.float32) * 2 - 1
    return (signs / np.float32(width**0.5)).reshape(width, SIZE)
