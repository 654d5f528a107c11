"""Line charts as inline SVG. Colours are CSS variables of the page, so one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 122, 18, 34
#: Two labels at the right edge are at least this far apart.
LABEL_GAP = 15.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series over the rounds; `None` where nothing was measured."""

    label: str
    colour: str
    values: tuple[float | None, ...]
    dashed: bool = False
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The vertical scale: its ticks from bottom to top, and whether equal ratios are equally far apart."""

    ticks: tuple[float, ...]
    logarithmic: bool = False
    suffix: str = ""

    def position(self, value: float) -> float:
        """Where `value` lies, 0 at the lowest tick, 1 at the highest."""
        low, high = self.ticks[0], self.ticks[-1]
        clipped = min(max(value, low), high)
        if self.logarithmic:
            return math.log(clipped / low) / math.log(high / low)
        return (clipped - low) / (high - low)

    def name(self, tick: float) -> str:
        return f"{tick:g}{self.suffix}"


def loss_axis(values: Sequence[float]) -> Axis:
    """A logarithmic scale whose ticks enclose the values."""
    ladder = [mantissa * 10.0**power for power in range(-4, 2) for mantissa in (1, 3)]
    low = max((tick for tick in ladder if tick <= min(values)), default=ladder[0])
    high = min((tick for tick in ladder if tick >= max(values) and tick > low), default=ladder[-1])
    return Axis(ticks=tuple(round(tick, 6) for tick in ladder if low <= tick <= high), logarithmic=True)


PERCENT = Axis(ticks=(0, 20, 40, 60, 80, 100), suffix=" %")


def line_chart(lines: Sequence[Line], axis: Axis, stops: Sequence[str], *, title: str) -> str:
    """A chart of `lines` over `stops` (base, round 1, …), each line named at its end."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_grid(axis, stops),
        *(_line(line, axis, len(stops)) for line in lines),
        *_end_labels(lines, axis, len(stops)),
        "</svg>",
    ]
    return "\n".join(parts)


def _x(stop: int, stops: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * stop / max(stops - 1, 1)


def _y(value: float, axis: Axis) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.position(value)


def _grid(axis: Axis, stops: Sequence[str]) -> list[str]:
    parts = []
    for tick in axis.ticks:
        y = _y(tick, axis)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{axis.name(tick)}</text>')
    for number, stop in enumerate(stops):
        x = _x(number, len(stops))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(stop)}</text>')
    return parts


def _line(line: Line, axis: Axis, stops: int) -> str:
    points = [(_x(i, stops), _y(value, axis)) for i, value in enumerate(line.values) if value is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    width = 3 if line.strong else 1.8
    dash = ' stroke-dasharray="2 5" stroke-linecap="round"' if line.dashed else ""
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if line.strong else 3}" fill="var(--{line.colour})"/>'
        for x, y in points
    )
    stroke = f'stroke="var(--{line.colour})" stroke-width="{width}"{dash}'
    return f'<polyline points="{path}" fill="none" stroke-linejoin="round" {stroke}/>{dots}'


def _end_labels(lines: Sequence[Line], axis: Axis, stops: int) -> list[str]:
    """The labels beside the last points, pushed apart where they would touch."""
    ends = [(line, last) for line in lines if (last := line.values[-1]) is not None]
    ends.sort(key=lambda end: _y(end[1], axis))
    placed: list[float] = []
    for _, last in ends:
        y = _y(last, axis)
        placed.append(max(y, placed[-1] + LABEL_GAP) if placed else y)
    overflow = max(0.0, (placed[-1] if placed else 0.0) - (HEIGHT - BOTTOM + 4))
    x = _x(stops - 1, stops) + 10
    return [
        f'<text class="end{" strong" if line.strong else ""}" x="{x:.1f}" y="{y - overflow + 4:.1f}" '
        f'fill="var(--{line.colour})">{escape(line.label)}</text>'
        for (line, _), y in zip(ends, placed, strict=True)
    ]
