"""What a base got on one part of a data set, kept in the data set's folder, with which it goes: the next evaluation
there scores the adapter alone."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import msgspec
import numpy as np

from orchd.lm.base import Base, device_of
from orchd.lm.significance import Sums
from orchd.train.prepare import software
from orchd.train.score import Exam, Mark

Numbers = tuple[tuple[float, ...], tuple[float, ...]]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A `Mark`, and the ``digest`` of what it was given for."""

    digest: str
    losses: Numbers
    hits: Numbers
    answers: tuple[str, ...]
    examples: int
    preferred: Numbers | None


def digest_of(exam: Exam, base: Base, fingerprint: str, *, answers: bool) -> str:
    """SHA-256 (hexadecimal) of all that a mark of the base alone follows from: the base, every token that it is shown
    and which of them count, the device, the dtype and the software."""
    about = (fingerprint, device_of(base), str(base.model.dtype), software(), exam.units, exam.pair_units, answers)
    digest = hashlib.sha256(msgspec.json.encode(about))
    pairs = [one for pair in exam.pairs for one in (pair.chosen, pair.rejected)]
    for one in (*exam.conversations, *pairs):
        digest.update(array("q", one.ids).tobytes() + bytes(one.counted) + b"|")
    for question in exam.questions:
        digest.update(msgspec.json.encode(question))
    return digest.hexdigest()


def read(path: Path, digest: str) -> Mark | None:
    """None where nothing is kept, or it is of something else."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None
    if kept.digest != digest:
        return None
    preferred = kept.preferred and _sums(kept.preferred)
    return Mark(_sums(kept.losses), _sums(kept.hits), kept.answers, kept.examples, preferred)


def write(path: Path, digest: str, mark: Mark) -> None:
    """Raises OSError."""
    kept = _Kept(
        digest=digest,
        losses=_numbers(mark.losses),
        hits=_numbers(mark.hits),
        answers=mark.answers,
        examples=mark.examples,
        preferred=None if mark.preferred is None else _numbers(mark.preferred),
    )
    path.write_bytes(msgspec.json.encode(kept))


def _sums(numbers: Numbers) -> Sums:
    values, weights = (np.array(one, np.float64) for one in numbers)
    return Sums(values, weights)


def _numbers(sums: Sums) -> Numbers:
    return tuple(sums.values.tolist()), tuple(sums.weights.tolist())
