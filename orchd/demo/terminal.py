"""Writing to a terminal or to a plain stream: colours, wrapped text, one line of progress at the bottom."""

from __future__ import annotations

import os
import shutil
import textwrap
import threading
from collections.abc import Mapping
from typing import TextIO

from orchd.demo.node import Progress

#: Text is never wider than this, however wide the terminal.
WIDEST = 100
COLOURS: Mapping[str, str] = {
    "bold": "1",
    "dim": "2",
    "a": "38;5;173",
    "b": "38;5;37",
    "average": "38;5;141",
    "good": "32",
    "bad": "31",
}
_CLEAR_LINE = "\r\x1b[2K"


class Terminal:
    """Lines of text, and on a terminal one line of progress under them. Safe to use from several threads."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.stream = stream
        self.is_terminal = stream.isatty() and environ.get("TERM") != "dumb"
        self.has_colours = self.is_terminal and not environ.get("NO_COLOR")
        self.is_unicode = (getattr(stream, "encoding", "") or "").lower().startswith("utf")
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, float, str]] = {}
        self._shown = ""

    @property
    def width(self) -> int:
        return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)

    def line(self, text: str = "") -> None:
        """One line, above the progress."""
        with self._lock:
            self._hide()
            self._write(text + "\n")
            self._show()

    def text(self, paragraph: str, *, indent: str = "  ", colour: str = "") -> None:
        """A paragraph, wrapped."""
        width = max(self.width - 1, 40)
        for line in textwrap.wrap(paragraph, width, initial_indent=indent, subsequent_indent=indent):
            self.line(self.paint(line, colour))

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour of `COLOURS`, several separated by spaces; bare where there are no colours."""
        if not (self.has_colours and colour):
            return text
        codes = ";".join(COLOURS[name] for name in colour.split())
        return f"\x1b[{codes}m{text}\x1b[0m"

    def bar(self, share: float, width: int) -> str:
        """A bar of `share` (0 to 1) of `width` characters."""
        share = min(max(share, 0.0), 1.0)
        if not self.is_unicode:
            return "#" * round(share * width)
        eighths = round(share * width * 8)
        return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()

    def progress(self, label: str) -> Progress:
        """What a job reports into; `finished(label)` takes it from the line."""

        def report(done: float, total: float, unit: str) -> None:
            with self._lock:
                self._running[label] = (done, total, unit)
                self._hide()
                self._show()

        return report

    def finished(self, *labels: str) -> None:
        with self._lock:
            for label in labels:
                self._running.pop(label, None)
            self._hide()
            self._show()

    def close(self) -> None:
        """Leave no half-drawn line behind."""
        with self._lock:
            self._hide()
            self._running.clear()

    def _hide(self) -> None:
        if self._shown:
            self._write(_CLEAR_LINE)
            self._shown = ""

    def _show(self) -> None:
        if not (self.is_terminal and self._running):
            return
        parts = [self._part(label, *state) for label, state in self._running.items()]
        self._shown = ("  " + "   ".join(parts))[: self.width - 1]
        self._write(self.paint(self._shown, "dim"))

    def _part(self, label: str, done: float, total: float, unit: str) -> str:
        if total <= 0:
            return label
        return f"{label} {self.bar(done / total, 10):<10} {done:.0f}/{total:.0f} {unit}"

    def _write(self, text: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()
