"""How long the rows of a data set are, as a picture: in characters, and as SVG in a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

COLUMNS: Final = 40
"""Characters of the longest bar."""

WIDTH, ROW, LEFT, RIGHT = 640, 22, 110, 70
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px system-ui, sans-serif; max-width: 680px; margin: 2em auto; padding: 0 1em; }}
svg {{ width: 100%; height: auto; }} rect {{ fill: #3b6ea5; }} text {{ font-size: 12px; fill: #333; }}
pre {{ white-space: pre-wrap; }}
@media (prefers-color-scheme: dark) {{
 body {{ background: #16181c; color: #ddd; }} rect {{ fill: #7fb0e0; }} text {{ fill: #ddd; }}
}}
</style>
<h1>{title}</h1>
{svg}
<pre>{told}</pre>
</html>
"""


def in_characters(bars: Sequence[dict[str, Any]]) -> str:
    """One line a bar: its bounds in tokens, the bar, its number of rows."""
    most = max((bar["rows"] for bar in bars), default=0)
    if not most:
        return ""
    names = [name_of(bar) for bar in bars]
    width = max(map(len, names))
    return "\n".join(
        f"{name:>{width}}  {drawn(bar['rows'], most)} {bar['rows']}" for name, bar in zip(names, bars, strict=True)
    )


def drawn(rows: int, most: int) -> str:
    """A bar in proportion; where there is anything, there is something to see."""
    return "█" * round(COLUMNS * rows / most) or ("▏" if rows else "")


def name_of(bar: dict[str, Any]) -> str:
    return f"{bar['low']}-{bar['high']}" if bar["high"] > bar["low"] else str(bar["low"])


def page(bars: Sequence[dict[str, Any]], *, title: str, told: str) -> str:
    """An HTML page that needs nothing from elsewhere: the histogram as SVG, and ``told`` below it."""
    return _PAGE.format(title=escape(title), svg=svg(bars), told=escape(told))


def svg(bars: Sequence[dict[str, Any]]) -> str:
    """Bars from left to right, one below the other; for people who hear it, the same in words."""
    most = max((bar["rows"] for bar in bars), default=1)
    height = ROW * (len(bars) + 1)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(in_words(bars))}">']
    parts.append(f'<text x="{LEFT - 8}" y="15" text-anchor="end">tokens</text><text x="{LEFT}" y="15">rows</text>')
    for at, bar in enumerate(bars, 1):
        length = (WIDTH - LEFT - RIGHT) * bar["rows"] / most
        y = at * ROW
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{name_of(bar)}</text>'
            f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}"/>'
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{bar["rows"]}</text>'
        )
    return "".join([*parts, "</svg>"])


def in_words(bars: Sequence[dict[str, Any]]) -> str:
    return "Rows by length in tokens: " + ", ".join(f"{name_of(bar)}: {bar['rows']}" for bar in bars)
