"""Text for people: tables, sizes, times, short ids."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from orchd.units import size as size  # beside the others, for those who print

ID_CHARACTERS = 10
"""Of an id's own part, in tables; enough to be unique among thousands."""

TIMES = frozenset({"created_ms", "received_ms"})
"""Fields of results that hold a time, in milliseconds since 1970."""

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What moves the cursor, changes colours or the title, or turns the direction of text. Peers write texts, too."""

COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2"}


def printable(text: str) -> str:
    """With control characters shown as what they are, `\\x1b`; ends of lines and tabs stay."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "nothing yet") -> str:
    """Columns under headers, numbers to the right. `empty` stands there when there are no rows."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        return empty
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [all(not row[at] or _is_number(row[at]) for row in cells) for at in range(len(headers))]
    lines = [_line([header.upper() for header in headers], widths, numeric)]
    lines += [_line(row, widths, numeric) for row in cells]
    return "\n".join(lines)


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values below each other; what is None or empty is left out."""
    shown = [(name, str(value)) for name, value in pairs if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in shown), default=0) + 2
    gap = "\n" + " " * width
    return "\n".join(f"{name:<{width}}{value.replace(chr(10), gap)}" for name, value in shown)


def outline(value: Any) -> str:
    """Any JSON value for people: names and values below each other, what is inside another indented under its name."""
    if isinstance(value, dict):
        return _outline_of_names(value)
    if isinstance(value, list):
        return "\n".join(_item(inner) for inner in value) if _holds_more(value) else ", ".join(map(outline, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _outline_of_names(value: Mapping[str, Any]) -> str:
    """What is empty is left out."""
    width = max((len(name) for name, inner in value.items() if not _holds_more(inner)), default=0) + 2
    lines = []
    for name, inner in value.items():
        text = when(inner) if name in TIMES else outline(inner)
        if text and _holds_more(inner):
            lines.append(f"{name}\n  {_indented(text, 2)}")
        elif text:
            lines.append(f"{name:<{width}}{_indented(text, width)}")
    return "\n".join(lines)


def _item(value: Any) -> str:
    return f"- {_indented(outline(value), 2)}"


def _indented(text: str, columns: int) -> str:
    """All lines but the first."""
    return text.replace("\n", "\n" + " " * columns)


def _holds_more(value: Any) -> bool:
    """Whether it takes lines of its own: a dict, or a list that holds dicts or lists."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict | list) for v in value))


def short(identifier: str | None) -> str:
    """An id as tables show it: its kind and the beginning."""
    if not identifier:
        return ""
    prefix, underline, own = identifier.partition("_")
    return f"{prefix}_{own[:ID_CHARACTERS]}" if underline else identifier[:ID_CHARACTERS]


def word(text: str) -> str:
    """As it is typed in a shell."""
    import shlex

    return shlex.quote(text)


def duration(seconds: float | None) -> str:
    """8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def when(milliseconds: int | None) -> str:
    """A time on this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000)) if milliseconds else ""


def counted(count: int, word: str) -> str:
    """1 blob, 2 blobs."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def painted(text: str, colour: str, stream: TextIO, environ: Mapping[str, str]) -> str:
    """`text` in a colour, on a terminal whose owner hasn't said NO_COLOR."""
    if not stream.isatty() or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() and cell[-1:] not in "sn" and all(c in "0123456789.,% kMGB" for c in cell)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    aligned = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(aligned).rstrip()


def lines(value: Any) -> str:
    """A list of lines as text."""
    return "\n".join(value)
