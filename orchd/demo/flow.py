"""Who sends what to whom, drawn: A ↔ DHT ↔ B → C, and D who is refused. One drawing for wide, one for narrow pages."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from orchd.demo.results import Results

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node: where it stands, its name, what is written in it. `heads` is for arrows."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str
    lines: tuple[str, ...]
    dashed: bool = False

    def svg(self, heads: str) -> str:
        dash = ' stroke-dasharray="5 5"' if self.dashed else ""
        texts = [
            f'<text class="box-line" x="{self.x + 18}" y="{self.y + 58 + 20 * number}">{escape(line)}</text>'
            for number, line in enumerate(self.lines)
        ]
        return (
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="12" '
            f'stroke="var(--{self.colour})"{dash}/>'
            f'<text class="box-title" x="{self.x + 18}" y="{self.y + 32}" fill="var(--{self.colour})">'
            f"{escape(self.title)}</text>" + "".join(texts)
        )


@dataclass(frozen=True, kw_only=True)
class Arrow:
    """A straight arrow with a word beside it."""

    start: Point
    end: Point
    colour: str
    label: str = ""
    at: Point = (0, 0)
    anchor: str = "middle"
    broken: bool = False

    def svg(self, heads: str) -> str:
        (x1, y1), (x2, y2) = self.start, self.end
        head = "" if self.broken else f' marker-end="url(#{heads}-{self.colour})"'
        dash = ' stroke-dasharray="5 5"' if self.broken else ""
        cross = _cross((x1 + x2) / 2, (y1 + y2) / 2, self.colour) if self.broken else ""
        text = (
            f'<text class="flow-label" x="{self.at[0]}" y="{self.at[1]}" text-anchor="{self.anchor}">'
            f"{escape(self.label)}</text>"
        )
        return (
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{self.colour})" stroke-width="2"'
            f"{dash}{head}/>{cross}{text if self.label else ''}"
        )


def flow(results: Results) -> str:
    """Both drawings; the page's style shows the one that fits."""
    return f'<div class="flow wide">{_wide(results)}</div>\n<div class="flow narrow">{_narrow(results)}</div>'


@dataclass(frozen=True)
class _Words:
    """What is written in the drawing, the same in both shapes."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    c: tuple[str, ...]
    d: tuple[str, ...]
    size: str
    recipe: str

    @classmethod
    def of(cls, results: Results) -> _Words:
        first, second = results.knowledge[:2]
        contribution = results.last.contributions[0]
        refusal = results.refused[0] if results.refused else None
        return cls(
            a=(f"{first.train} sentences, {len(first.words)} words", "they stay here", "averages by itself"),
            b=(f"{second.train} sentences, {len(second.words)} others", "they stay here", "averages by itself"),
            c=("no sentences, only the exam", f"average: {100 * results.last.average.exam.exact_match:.0f} % right"),
            d=("a changed copy", f"refused: {refusal.name}" if refusal else "NOT refused"),
            size=f"{contribution.size / 1000:.0f} kB, signed",
            recipe="the same recipe" if results.last.average.agreed else "recipes DIFFER",
        )


def _wide(results: Results) -> str:
    words = _Words.of(results)
    shapes: list[Box | Arrow] = [
        Box(x=10, y=40, width=244, height=128, colour="a", title="A", lines=words.a),
        Box(x=646, y=40, width=244, height=128, colour="b", title="B", lines=words.b),
        Box(x=315, y=272, width=270, height=104, colour="average", title="C", lines=words.c),
        Box(x=646, y=272, width=244, height=104, colour="bad", title="D", lines=words.d, dashed=True),
        Arrow(start=(254, 84), end=(374, 90), colour="a", label=words.size, at=(316, 74)),
        Arrow(start=(374, 120), end=(260, 126), colour="b", label="B's adapter", at=(316, 146)),
        Arrow(start=(646, 84), end=(526, 90), colour="b", label=words.size, at=(584, 74)),
        Arrow(start=(526, 120), end=(640, 126), colour="a", label="A's adapter", at=(584, 146)),
        Arrow(start=(450, 184), end=(450, 264), colour="average", label="the average", at=(462, 232), anchor="start"),
        Arrow(start=(646, 324), end=(585, 324), colour="bad", broken=True),
    ]
    return _svg("wide", 900, 388, [*_ring(450, 104, 76, words.recipe), *(shape.svg("wide") for shape in shapes)])


def _narrow(results: Results) -> str:
    words = _Words.of(results)
    shapes: list[Box | Arrow] = [
        Box(x=10, y=8, width=340, height=124, colour="a", title="A", lines=words.a),
        Box(x=10, y=408, width=340, height=124, colour="b", title="B", lines=words.b),
        Box(x=10, y=600, width=340, height=104, colour="average", title="C", lines=words.c),
        Box(x=10, y=762, width=340, height=104, colour="bad", title="D", lines=words.d, dashed=True),
        Arrow(start=(150, 132), end=(160, 190), colour="a", label=words.size, at=(142, 166), anchor="end"),
        Arrow(start=(200, 190), end=(210, 140), colour="b", label="B's adapter", at=(218, 166), anchor="start"),
        Arrow(start=(150, 408), end=(160, 350), colour="b", label=words.size, at=(142, 384), anchor="end"),
        Arrow(start=(200, 350), end=(210, 400), colour="a", label="A's adapter", at=(218, 384), anchor="start"),
        Arrow(start=(180, 532), end=(180, 590), colour="average", label="the average", at=(192, 568), anchor="start"),
        Arrow(start=(180, 762), end=(180, 704), colour="bad", broken=True),
    ]
    return _svg("narrow", 360, 876, [*_ring(180, 270, 76, words.recipe), *(shape.svg("narrow") for shape in shapes)])


def _ring(x: float, y: float, radius: float, recipe: str) -> list[str]:
    return [
        f'<circle class="ring" cx="{x}" cy="{y}" r="{radius}"/>',
        f'<text class="ring-title" x="{x}" y="{y - 12}" text-anchor="middle">DHT</text>',
        f'<text class="flow-label" x="{x}" y="{y + 10}" text-anchor="middle">demo/translate</text>',
        f'<text class="flow-label" x="{x}" y="{y + 30}" text-anchor="middle">{escape(recipe)}</text>',
    ]


def _cross(x: float, y: float, colour: str) -> str:
    lines = ((x - 8, y - 8, x + 8, y + 8), (x - 8, y + 8, x + 8, y - 8))
    return f'<circle class="box" cx="{x}" cy="{y}" r="14" stroke="none"/>' + "".join(
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})" stroke-width="3" '
        'stroke-linecap="round"/>'
        for x1, y1, x2, y2 in lines
    )


def _svg(heads: str, width: int, height: int, parts: list[str]) -> str:
    markers = "".join(
        f'<marker id="{heads}-{colour}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="var(--{colour})"/></marker>'
        for colour in ("a", "b", "average")
    )
    label = "A and B exchange adapters over the DHT, C fetches the average, D is refused"
    drawing = f"<defs>{markers}</defs>{''.join(parts)}"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{drawing}</svg>'
