"""A progress bar on one line of a terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TextIO

from orchd.cli.text import duration, size

REDRAW_SECONDS = 0.1
WIDTH = 24
CLEAR = "\r\x1b[K"


class Bar:
    """Draws what `update` is told: label, bar, done of total, figures, time left."""

    def __init__(
        self,
        label: str,
        stream: TextIO,
        monotonic: Callable[[], float] = time.monotonic,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._label = label
        self._stream = stream
        self._monotonic = monotonic
        self._columns = columns
        self._drawn_at: float | None = None
        self._signs = "█░" if "utf" in (stream.encoding or "").lower() else "#-"
        self._draw(f"{label} ...")

    def update(self, progress: dict[str, Any]) -> None:
        """`{done, total, unit, eta_s, figures}`, as the daemon tells it."""
        now = self._monotonic()
        complete = progress["done"] >= progress["total"]
        if not complete and self._drawn_at is not None and now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._draw(self.line(progress))

    def line(self, progress: dict[str, Any]) -> str:
        done, total = progress["done"], progress["total"]
        share = min(1.0, max(0.0, done / total)) if total else 0.0
        filled = round(WIDTH * share)
        parts = [
            self._label,
            self._signs[0] * filled + self._signs[1] * (WIDTH - filled),
            _amount(done, total, progress["unit"]),
            *(_figure(name, value, progress["unit"]) for name, value in progress.get("figures", {}).items()),
        ]
        if progress.get("eta_s"):
            parts.append(f"{duration(progress['eta_s'])} left")
        return "  ".join(parts)

    def clear(self) -> None:
        """Leave the line as if nothing had been there."""
        self._stream.write(CLEAR)
        self._stream.flush()

    def _draw(self, line: str) -> None:
        self._stream.write(CLEAR + line[: max(10, self._columns() - 1)])
        self._stream.flush()


def _amount(done: float, total: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(done)} of {size(total)}"
    return f"{done:g}/{total:g} {unit}"


def _figure(name: str, value: object, unit: str) -> str:
    if name == "rate" and unit == "bytes" and isinstance(value, int | float):
        return f"{size(value)}/s"
    return f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
