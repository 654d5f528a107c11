"""Which rows of a data set go into the one that is prepared from it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from orchd.errors import DatasetUnusable
from orchd.importers.conversation import Example, Part
from orchd.importers.source import ImportLog
from orchd.importers.turns import Learn, turned
from orchd.train.datasets.language import language_of
from orchd.train.datasets.specs import PrepareSpec
from orchd.train.datasets.store import PARTS, Row, digest_of_content, read_part, texts_of_row, to_example


def chosen(spec: PrepareSpec, folder: Path, log: ImportLog, check: Callable[[], None]) -> Iterator[Example]:
    """The rows that fit, each with its part (none where all are divided anew); with a cap or shuffled in an order that
    the seed decides. Those left out are counted as not picked. Raises `DatasetUnusable`, `ImportUnreadable`."""
    turn = _turn(spec, log)
    for part in PARTS:
        said: Part = "" if spec.reseed else part
        order = _drawn(spec, folder, part) if spec.cap or spec.shuffle else None
        rows: dict[int, Row] = {}
        for number, row in enumerate(read_part(folder, part)):
            check()
            if not (fits(row, spec) if order is None else number in order):
                log.not_picked += 1
            elif order is None:
                yield turned(to_example(row, log.kind, said), turn)
            else:
                rows[number] = row
        for number in order or ():
            yield turned(to_example(rows[number], log.kind, said), turn)


def _turn(spec: PrepareSpec, log: ImportLog) -> Learn:
    """What is still to be done so that the wanted turns are learnt. Raises `DatasetUnusable`."""
    before, wanted = log.learns, spec.learn or log.learns
    if before == "user" and wanted == "assistant":
        hint = "Import it again from where it came from."
        raise DatasetUnusable("the assistant's last words are not in it any more", hint=hint, field="learn")
    log.learns = wanted
    return "assistant" if wanted == before else wanted


def fits(row: Row, spec: PrepareSpec) -> bool:
    """Whether a row is within the lengths (characters of all its texts), in a wanted language, and says ``search``."""
    texts = [text for _, text in texts_of_row(row)]
    length = sum(map(len, texts))
    if length < spec.min_characters or (spec.max_characters and length > spec.max_characters):
        return False
    if spec.search and not any(spec.search.casefold() in text.casefold() for text in texts):
        return False
    return not spec.languages or language_of("\n".join(texts)) in spec.languages


def _drawn(spec: PrepareSpec, folder: Path, part: str) -> dict[int, None]:
    """The numbers of up to ``cap`` rows (0: all) that fit, shuffled: by a hash of the seed and their contents."""
    fitting = (
        (hashlib.sha256(f"{spec.seed}:{digest_of_content(row)}".encode()).digest(), number)
        for number, row in enumerate(read_part(folder, part))
        if fits(row, spec)
    )
    drawn = heapq.nsmallest(spec.cap, fitting) if spec.cap else sorted(fitting)
    return dict.fromkeys(number for _, number in drawn)
