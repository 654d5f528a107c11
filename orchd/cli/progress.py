"""A progress bar on one line of a terminal, with a sparkline of the loss where there is one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TextIO

from orchd.cli.text import duration, size

REDRAW_SECONDS = 0.1
WIDTH = 24
SPARKS = 12
"""Columns of the sparkline; it holds the whole job up to now."""

FIGURES = ("step", "package", "waits", "loss", "validation")
"""What is shown of a training's figures beside its phase; `job report` and --json have all."""

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
        plain = "utf" not in (stream.encoding or "").lower()
        self._signs = "#-" if plain else "█░"
        self._losses = Sparkline(".:-=+*#@" if plain else "▁▂▃▄▅▆▇█")
        self._draw(f"{label} ...")

    def update(self, progress: dict[str, Any]) -> None:
        """`{done, total, unit, eta_s, figures}`, as the daemon tells it."""
        loss = progress.get("figures", {}).get("loss")
        if isinstance(loss, float | int):
            self._losses.add(float(loss))
        now = self._monotonic()
        complete = progress["done"] >= progress["total"]
        if not complete and self._drawn_at is not None and now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._draw(self.line(progress))

    def line(self, progress: dict[str, Any]) -> str:
        if waits := waiting(progress):
            return f"{self._label}  {waits}"
        done, total = progress["done"], progress["total"]
        share = min(1.0, max(0.0, done / total)) if total else 0.0
        filled = round(WIDTH * share)
        parts = [
            self._label,
            self._signs[0] * filled + self._signs[1] * (WIDTH - filled),
            amount(done, total, progress["unit"]),
            *self._figures(progress.get("figures", {}), progress["unit"]),
        ]
        if progress.get("eta_s"):
            parts.append(f"{duration(progress['eta_s'])} left")
        return "  ".join(parts)

    def _figures(self, figures: dict[str, Any], unit: str) -> list[str]:
        phase = figures.get("phase")
        if phase is not None:
            figures = {name: figures[name] for name in FIGURES if name in figures}
        shown = [_figure(name, value, unit) for name, value in figures.items()]
        return [*filter(None, [self._losses.text(), "" if phase == "training" else phase]), *shown]

    def clear(self) -> None:
        """Leave the line as if nothing had been there."""
        self._stream.write(CLEAR)
        self._stream.flush()

    def _draw(self, line: str) -> None:
        self._stream.write(CLEAR + line[: max(10, self._columns() - 1)])
        self._stream.flush()


class Sparkline:
    """A curve of any length as a few characters. `signs` go from low to high."""

    def __init__(self, signs: str) -> None:
        self._signs = signs
        self._values: list[float] = []
        self._each = 1  # values that were folded into one
        self._open: list[float] = []

    def add(self, value: float) -> None:
        self._open.append(value)
        if len(self._open) < self._each:
            return
        self._values.append(sum(self._open) / len(self._open))
        self._open.clear()
        if len(self._values) == 2 * SPARKS:
            self._values = [(a + b) / 2 for a, b in zip(self._values[::2], self._values[1::2], strict=True)]
            self._each *= 2

    def text(self) -> str:
        """Empty until there are two values."""
        if len(self._values) < 2:
            return ""
        shown = self._values[-SPARKS:] if len(self._values) <= SPARKS else self._evenly()
        low, high = min(shown), max(shown)
        top = len(self._signs) - 1
        return "".join(self._signs[round(top * (v - low) / (high - low)) if high > low else 0] for v in shown)

    def _evenly(self) -> list[float]:
        """As many as there are columns, from the first to the newest."""
        last = len(self._values) - 1
        return [self._values[round(at * last / (SPARKS - 1))] for at in range(SPARKS)]


def waiting(progress: dict[str, Any] | None) -> str:
    """What a job that does nothing yet waits for: ``waits for train my-style, 2 min 45 s left``; else empty."""
    if not progress or progress["total"] or "waits" not in progress.get("figures", {}):
        return ""
    left = f", {duration(progress['eta_s'])} left" if progress.get("eta_s") else ""
    return f"waits {progress['figures']['waits']}{left}"


def amount(done: float, total: float, unit: str) -> str:
    """12/100 steps, 1.0 MB of 3.9 MB."""
    if unit == "bytes":
        return f"{size(done)} of {size(total)}"
    return f"{done:g}/{total:g} {unit}"


def _figure(name: str, value: object, unit: str) -> str:
    if name in ("waits", "step", "package"):  # why nothing moves, or what does
        return str(value)
    if name == "bytes" and isinstance(value, int | float):
        return f"{size(value)} read"
    if name == "rate" and unit == "bytes" and isinstance(value, int | float):
        return f"{size(value)}/s"
    return f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
