"""The jobs ``dataset.preview`` and ``dataset.stats``: a data set as one base sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from orchd.jobs.context import JobContext
from orchd.lm.base import context_length, load_tokenizer
from orchd.lm.chat import Encoded
from orchd.train.datasets.encode import encode_fitting, encode_row
from orchd.train.datasets.language import language_of
from orchd.train.datasets.specs import Bar, Cut, Piece, Preview, PreviewRow, PreviewSpec, Stats, StatsSpec
from orchd.train.datasets.store import PARTS, ChatRow, CompletionRow, Row, read_info, read_part, texts_of_row

LENGTHS: Final = (128, 256, 512, 1024, 2048, 4096, 8192)
PERCENTILES: Final = (5, 25, 50, 75, 95, 99, 100)


def run_preview(spec: PreviewSpec, job: JobContext) -> Preview:
    """What training would make of the first rows. Raises `BaseUnusable`, `TemplateUnusable`, `DatasetUnusable`."""
    tokenizer = load_tokenizer(spec.base)
    context = context_length(spec.base)
    rows = tuple(
        _seen(tokenizer, row, part, context)
        for part in PARTS
        for row in islice(_checked(Path(spec.dataset), part, job), spec.limit)
    )
    return Preview(context=context, rows=rows, learns=read_info(Path(spec.dataset)).learns)


def run_stats(spec: StatsSpec, job: JobContext) -> Stats:
    """Lengths, languages and repetitions. Raises `BaseUnusable`, `TemplateUnusable`, `DatasetUnusable`."""
    tokenizer = load_tokenizer(spec.base)
    context = context_length(spec.base)
    folder = Path(spec.dataset)
    info = read_info(folder)
    lengths: list[int] = []
    languages = Counter[str]()
    answers = Counter[str]()
    counted = characters = 0
    for row in (row for part in PARTS for row in _checked(folder, part, job)):
        encoded = encode_row(tokenizer, row)
        lengths.append(len(encoded.ids))
        counted += encoded.counted_tokens
        text = "\n".join(text for _, text in texts_of_row(row))
        characters += len(text)
        languages[language_of(text)] += 1
        answers[_answer(row)] += 1
        job.progress(len(lengths), info.rows, "rows")
    array = np.array(lengths, dtype=np.int64)
    return Stats(
        rows=info.rows,
        train=info.train,
        validation=info.validation,
        test=info.test,
        tokens=int(array.sum()),
        counted=counted,
        characters=characters,
        percentiles={f"p{one}": int(np.percentile(array, one, method="higher")) for one in PERCENTILES},
        languages=dict(languages.most_common()),
        repeated_answers=sum(times - 1 for answer, times in answers.items() if answer),
        duplicates=info.duplicates,
        near_duplicates=info.near_duplicates,
        context=context,
        cut=tuple(
            Cut(length=length, rows=int((array > length).sum()))
            for length in sorted({*LENGTHS, *([context] if context else [])})
        ),
        histogram=tuple(_histogram(lengths)),
    )


def _checked(folder: Path, part: str, job: JobContext) -> Iterator[Row]:
    for row in read_part(folder, part):
        job.check()
        yield row


def _seen(tokenizer: Any, row: Row, part: str, context: int) -> PreviewRow:
    encoded = encode_row(tokenizer, row)
    return PreviewRow(
        split=part,
        id=row.id,
        title=row.title,
        tokens=len(encoded.ids),
        counted=encoded.counted_tokens,
        stretches=len(encode_fitting(tokenizer, row, context)),
        pieces=tuple(_pieces(tokenizer, encoded)),
    )


def _pieces(tokenizer: Any, encoded: Encoded) -> Iterator[Piece]:
    for counts, stretch in groupby(zip(encoded.ids, encoded.counted, strict=True), key=lambda one: one[1]):
        ids = [id for id, _ in stretch]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield Piece(text=text, counts=counts)


def _answer(row: Row) -> str:
    """What is learnt last; plain text has no answer."""
    if isinstance(row, ChatRow):
        return next((one.content for one in reversed(row.messages) if one.role == "assistant"), "")
    return row.completion if isinstance(row, CompletionRow) else ""


def _histogram(lengths: list[int]) -> Iterator[Bar]:
    """Bars from a power of two to the next, halved in the middle, from the shortest row to the longest."""
    edges = sorted({edge for power in range(2, 26) for edge in (1 << power, 3 << (power - 1))} | {1})
    first = max((edge for edge in edges if edge <= min(lengths)), default=1)
    used = [edge for edge in edges if first <= edge <= max(lengths)]
    for low, high in zip(used, [*used[1:], edges[edges.index(used[-1]) + 1]], strict=True):
        yield Bar(low=low, high=high - 1, rows=sum(low <= length < high for length in lengths))
