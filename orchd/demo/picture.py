"""`demo.svg`: the result in one picture for a README, with its colours in it for light and dark."""

from __future__ import annotations

from html import escape

from orchd.demo.results import Results

WIDTH, HEIGHT = 880, 400
#: The chart's place: left, right, top, bottom.
CHART = (520.0, 752.0, 116.0, 310.0)

STYLE = """
  .paper { fill: #faf8f4; stroke: #e3ddd2 } .ink { fill: #1f1c18 } .muted { fill: #6e675d } .grid { stroke: #e3ddd2 }
  .track { fill: #ece6da } .a { fill: #bf4f26 } .b { fill: #16748a } .average { fill: #5a3ea6 }
  .line-a { stroke: #bf4f26 } .line-b { stroke: #16748a } .line-average { stroke: #5a3ea6 }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; font-size: 15px }
  .title { font: 600 27px ui-serif, Georgia, "Times New Roman", serif } .figure { font-weight: 700; font-size: 19px }
  .small { font-size: 13px } .sentence { font: 600 19px ui-serif, Georgia, "Times New Roman", serif }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #141210; stroke: #35302a } .ink { fill: #efeae2 } .muted { fill: #a39b8f } .grid { stroke: #35302a }
    .track { fill: #2a2621 } .a { fill: #f2946b } .b { fill: #63c3d6 } .average { fill: #b7a2f7 }
    .line-a { stroke: #f2946b } .line-b { stroke: #63c3d6 } .line-average { stroke: #b7a2f7 }
  }
"""


def picture(results: Results) -> str:
    """A standalone SVG document."""
    parts = [
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="14"/>',
        _text(36, 56, "Two halves of a language, one model, no shared sentence", "title ink"),
        *_bars(results),
        *_chart(results),
        *_sentence(results),
    ]
    label = "A alone and B alone translate almost nothing of the exam, their average nearly all of it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(results: Results) -> list[str]:
    """The exam in five bars."""
    shown = [
        ("A alone", "a", results.entrant("a-alone")),
        ("B alone", "b", results.entrant("b-alone")),
        ("merged once", "muted", results.entrant("oneshot")),
        (f"averaged, {len(results.rounds)} rounds", "average", results.entrant("average")),
        ("both on one machine", "muted", results.entrant("pooled")),
    ]
    examples = results.last.average.exam.examples
    parts = [_text(36, 92, f"right on {examples} sentences that mix both halves", "muted")]
    for number, (label, colour, entrant) in enumerate(shown):
        y = 116 + 42 * number
        share = entrant.exam.exact_match
        parts += [
            _text(36, y + 18, label, "ink"),
            f'<rect class="track" x="216" y="{y + 4}" width="150" height="18" rx="5"/>',
            f'<rect class="{colour}" x="216" y="{y + 4}" width="{max(150 * share, 3):.1f}" height="18" rx="5"/>',
            _text(378, y + 19, f"{100 * share:.0f} %", f"figure {colour}"),
        ]
    return parts


def _chart(results: Results) -> list[str]:
    """Exact match by round."""
    left, right, top, bottom = CHART
    base = results.entrant("base").exam.exact_match
    a, b = ([base, *(r.contributions[i].exam.exact_match for r in results.rounds)] for i in (0, 1))
    average = [base, *(r.average.exam.exact_match for r in results.rounds)]
    step = (right - left) / (len(average) - 1)
    parts = [_text(left - 26, 92, "round by round", "muted")]
    for share in (0, 0.5, 1):
        y = bottom - (bottom - top) * share
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(_text(left - 8, y + 4, f"{100 * share:.0f}", "muted small", "end"))
    for number in range(len(average)):
        label = "base" if number == 0 else str(number)
        parts.append(_text(left + step * number, bottom + 20, label, "muted small", "middle"))
    for name, values, width in (("a", a, 2.5), ("b", b, 2.5), ("average", average, 4)):
        points = [(left + step * i, bottom - (bottom - top) * share) for i, share in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line-{name}" points="{path}" fill="none" stroke-width="{width}"/>')
        parts += [f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{width + 1}"/>' for x, y in points]
    end = bottom - (bottom - top) * average[-1]
    parts.append(_text(right + 12, end + 6, "average", "figure average"))
    parts.append(_text(right + 12, bottom - (bottom - top) * max(a[-1], b[-1]) + 5, "A, B", "muted"))
    return parts


def _sentence(results: Results) -> list[str]:
    """One question with the average's answer."""
    if not results.deployment.answers:
        return []
    answer = results.deployment.answers[0]
    a_words = results.words_of("A")
    asked = " ".join(
        f'<tspan class="{"a" if word in a_words else "b"}">{escape(word)}</tspan>' for word in answer.prompt.split()
    )
    return [
        f'<text class="sentence" x="36" y="372">{asked}<tspan class="muted"> → </tspan>'
        f'<tspan class="average">{escape(answer.average)}</tspan></text>'
    ]


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
