"""CSV (also with semicolons or tabs) → records under the names of the first line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any, Final

from orchd.importers.stream import BadRecord

MAX_CELL_CHARACTERS: Final = 64 << 20
_DELIMITERS: Final = ",;\t|"


def rows(source: IO[bytes], encoding: str) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Each row as a record, with the line where it begins (the header is line 1).

    Empty rows are passed over. A row with more cells than the header has names is a `BadRecord`, and so are lines that
    a quotation mark which is not closed makes one row of.
    """
    text = io.TextIOWrapper(source, encoding=encoding, errors="replace", newline="")
    header_line = text.readline(1 << 20)
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    delimiter = max(_DELIMITERS, key=header_line.count)
    taken: list[str] = []
    reader = csv.reader(_with(header_line, text, taken), delimiter=delimiter)
    header = [name.strip().removeprefix("\ufeff") for name in next(reader, [])]
    while True:
        line = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadRecord(f"no valid CSV: {error}")
            continue
        if len(taken) > 1 and not _closed(taken, delimiter):
            last = line + len(taken) - 1
            yield line, BadRecord(f"a quotation mark is not closed, and takes in all up to line {last}")
        elif len(cells) > len(header):
            yield line, BadRecord(f"{len(cells)} cells under {len(header)} names; is a quotation mark missing?")
        elif any(cell.strip() for cell in cells):
            yield line, dict(zip(header, cells, strict=False))


def _with(first: str, rest: io.TextIOWrapper, taken: list[str]) -> Iterator[str]:
    """All lines; each is put into ``taken`` on its way."""
    for lines in ((first,), rest):
        for one in lines:
            taken.append(one)
            yield one


def _closed(lines: list[str], delimiter: str) -> bool:
    """Whether the lines of one row end where its last quotation mark does, with nothing behind it."""
    try:
        next(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return False
    return True
