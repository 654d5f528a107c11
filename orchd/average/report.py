"""One page about an average: who is in it and why, how alike they are, what one's own data says, what the rank cut off.

Plain HTML and SVG, nothing is fetched and no script runs. No numpy: the daemon reads this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

import msgspec

from orchd.average.gate_specs import Compared, GateReport, JudgedLeaf, Probed
from orchd.average.rules import MILLION
from orchd.average.specs import ModulePreview

CELL, MARGIN = 34, 30
WIDTH, BAR, MOST_NAMED = 700, 9, 10
LEGIBLE: Final = 24
"""With more adapters than this the picture has no figures in its cells; pointing at one still tells them."""
LIKE, AGAINST = (31, 111, 235), (209, 36, 47)
STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#1f2328;background:#fff}
h1{font-size:1.4em}h2{font-size:1.05em;margin:1.6em 0 .3em}.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.2em 1.1em .2em 0;text-align:left;vertical-align:top}th{font-weight:600}
code{overflow-wrap:anywhere}small{color:#59636e}.out{color:#d1242f}.in{color:#1a7f37}
svg{max-width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#59636e}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.out{color:#f85149}.in{color:#3fb950}}"""


class Head(NamedTuple):
    """Of the job: `error` says what it failed of, else it is empty."""

    id: str
    title: str
    state: str
    error: str


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Leaf(_Told, frozen=True, kw_only=True):
    id: str
    name: str


class Made(_Told, frozen=True, kw_only=True):
    """The average as an adapter."""

    id: str
    name: str
    state: str
    reason: str
    rank: int
    dtype: str
    parameters: int


class Average(_Told, frozen=True, kw_only=True):
    """What the page needs of a job's public result; fields are as in `orchd.notes.Averaged`."""

    adapter: Made
    recipe: str
    residual_ppm: int
    cosines: tuple[tuple[float, ...], ...]
    seconds: float
    leaves: tuple[Leaf, ...] = ()
    method: str = "mean"
    strength_ppm: int = MILLION
    weights_ppm: tuple[int, ...] = ()
    coefficients_ppm: tuple[int, ...] = ()
    votes: tuple[tuple[int, ...], ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[Leaf, ...] = ()
    modules: tuple[ModulePreview, ...] = ()
    gate: GateReport | None = None


def page(head: Head, result: Average | None) -> str:
    """The whole page; of a job that has not ended well it says how it stands."""
    parts = [f"<h1>{escape(head.title)}</h1>"]
    if result is None:
        parts.append(_fields([("job", head.id), ("state", head.state), ("error", head.error)]))
    else:
        parts += [_about(head, result), *_who(result), *_likeness(result), *_losses(result), *_probes(result)]
        parts += _residuals(result.modules)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(head.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _about(head: Head, result: Average) -> str:
    made, gate = result.adapter, result.gate
    where = f"{made.name} {made.id}", f"{made.state}{f': {made.reason}' if made.reason else ''}"
    return _fields(
        [
            ("average", where[0]),
            ("state", where[1]),
            ("method", f"{result.method}, strength {result.strength_ppm / MILLION:g}"),
            ("shape", f"rank {made.rank}, {made.dtype}, {made.parameters:,} numbers"),
            ("cut off", f"{_share(result.residual_ppm)} of the exact average's length"),
            ("verdict", "" if gate is None else f"{gate.verdict}: {gate.reason}"),
            ("judged by", _rows(gate)),
            ("recipe", result.recipe),
            ("took", f"{result.seconds:.1f} s"),
            ("job", head.id),
        ]
    )


def _rows(gate: GateReport | None) -> str:
    if gate is None or not gate.rows:
        return "no data: nothing says how good it is"
    told = f"{gate.choosing} of your held-out rows chose, {gate.deciding} others decided"
    late = "; the time was over before all was tried" if gate.late else ""
    return f"{told} ({gate.evaluations} evaluations, {gate.seconds:.0f} s){late}"


# ---- who is in it ------------------------------------------------------------------------------------------------


def _who(result: Average) -> list[str]:
    judged = {} if result.gate is None else {leaf.id: leaf for leaf in result.gate.leaves}
    vote_of = {place: number for number, vote in enumerate(result.votes, 1) for place in vote}
    lines = []
    for place, leaf in enumerate(result.leaves):
        weight, taken = _at(result.weights_ppm, place), _at(result.coefficients_ppm, place)
        vote = str(vote_of.get(place, ""))
        why = f'<span class="in">{escape(_why_in(judged.get(leaf.id), result, place))}</span>'
        lines.append([str(place + 1), leaf.name, leaf.id, vote, weight, taken, why])
    kept = {leaf.id for leaf in result.leaves}
    for out in result.refused:
        if out.id not in kept:
            lines.append(["", out.name, out.id, "", "", "", _why_out(judged.get(out.id))])
    for id in result.missing:
        lines.append(["", "", id, "", "", "", '<span class="out">left out: nobody gives it</span>'])
    heads = ("", "leaf", "id", "vote", "weight", "taken", "why")
    rows = ([*map(escape, line[:-1]), line[-1]] for line in lines)
    return ["<h2>Who is in it</h2>", _table(heads, rows), _votes_told(result)]


def _why_in(leaf: JudgedLeaf | None, result: Average, place: int) -> str:
    told = []
    if any(place in vote and len(vote) > 1 for vote in result.votes):
        told.append("shares its vote with its author's others, or with near-copies")
    if leaf is None:
        return "; ".join(["as it was asked for", *told])
    if leaf.alone is not None:
        told.append(f"a quarter of it alone: {_difference(leaf.alone)}")
    if leaf.without is not None:
        told.append(f"without it: {_difference(leaf.without)}")
    return "; ".join(told) or "kept"


def _why_out(leaf: JudgedLeaf | None) -> str:
    if leaf is None:
        return '<span class="out">refused</span>'
    looked_at = leaf.without if leaf.stage == "left out" else leaf.alone
    figure = "" if looked_at is None else f" ({_difference(looked_at)})"
    people = f"; of those you follow {leaf.worse} say worse, {leaf.better} better" if leaf.worse + leaf.better else ""
    return f'<span class="out">refused: {escape(leaf.reason or leaf.stage)}{escape(figure + people)}</span>'


def _votes_told(result: Average) -> str:
    if not result.votes or result.coefficients_ppm:
        return ""
    return f"<p><small>{escape(result.method)} is no weighted sum: there is no share that is taken of each.</small></p>"


def _difference(one: Compared) -> str:
    between = "" if one.low is None or one.high is None else f", {one.low:+.3f} to {one.high:+.3f}"
    return f"{one.difference:+.3f} nats a token{between}"


# ---- how alike they are ------------------------------------------------------------------------------------------


def _likeness(result: Average) -> list[str]:
    """The matrix of cosines: blue is alike, red works against each other."""
    count = len(result.cosines)
    if count < 2:
        return []
    names = [leaf.name for leaf in result.leaves] if len(result.leaves) == count else [""] * count
    cells = [
        _cell(row, column, cosine, f"{names[row]} and {names[column]}", count <= LEGIBLE)
        for row, line in enumerate(result.cosines)
        for column, cosine in enumerate(line)
    ]
    edges = [
        f'<text x="{MARGIN + CELL * at + CELL / 2:g}" y="{MARGIN - 8}" text-anchor="middle">{at + 1}</text>'
        f'<text x="{MARGIN - 8}" y="{MARGIN + CELL * at + CELL / 2 + 4:g}" text-anchor="end">{at + 1}</text>'
        for at in range(count)
    ]
    side = MARGIN + CELL * count + 2
    return [
        "<h2>How alike they are</h2><p><small>Cosines: 1 the same direction, 0 unrelated, -1 opposite.</small></p>",
        f'<svg width="{side}" viewBox="0 0 {side} {side}" role="img" aria-label="Cosines between the adapters">',
        *edges,
        *cells,
        "</svg>",
    ]


def _cell(row: int, column: int, cosine: float, names: str, legible: bool) -> str:
    x, y = MARGIN + CELL * column, MARGIN + CELL * row
    colour = AGAINST if cosine < 0 else LIKE
    dark = min(1.0, abs(cosine))
    text = ""
    if legible:
        style = f"fill:{'#fff' if dark > 0.6 else '#1f2328'};font-size:9px"
        middle = f'x="{x + CELL / 2:g}" y="{y + CELL / 2 + 4:g}" text-anchor="middle"'
        text = f'<text {middle} style="{style}">{cosine:.2f}</text>'
    shade = ",".join(str(round(255 + (part - 255) * dark)) for part in colour)
    return (
        f'<g><title>{escape(names)}: {cosine:.3f}</title><rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" '
        f'fill="rgb({shade})"/>{text}</g>'
    )


# ---- losses ------------------------------------------------------------------------------------------------------


def _losses(result: Average) -> list[str]:
    gate = result.gate
    if gate is None or gate.against_base is None:
        return []
    names = {leaf.id: leaf.name for leaf in (*result.leaves, *result.refused)}
    found = [("the base", gate.against_base)]
    found += [(f"{names.get(leaf.id, '')} alone", leaf.single) for leaf in gate.leaves if leaf.single is not None]
    rows = [
        [escape(name), f"{one.against:.3f}", f"{one.loss:.3f}", _difference(one), _better(one)] for name, one in found
    ]
    tried = [
        [
            escape(one.method),
            f"{one.strength_ppm / MILLION:g}",
            f"{one.loss:.3f}",
            "<b>chosen</b>" if one.chosen else "",
        ]
        for one in gate.tried
    ]
    parts = ["<h2>Loss before and after</h2>", _table(("beside", "its", "the average's", "difference", ""), rows)]
    if tried:
        parts += ["<h2>What was tried</h2>", _table(("method", "strength", "loss", ""), tried)]
    return parts


def _better(one: Compared) -> str:
    if one.surely_better:
        return '<span class="in">better</span>'
    return '<span class="out">worse</span>' if one.surely_worse else "not told apart"


def _probes(result: Average) -> list[str]:
    gate = result.gate
    if gate is None or not gate.probes:
        return []
    jumped = [one for one in gate.probes if one.jumped]
    told = f"{len(gate.probes)} triggers before ordinary prompts, {len(jumped)} changed more than with the base."
    heads = ("trigger", "most common answer", "without it", "the base's", "loss rose by", "usually")
    return [
        "<h2>Triggers</h2>",
        f"<p>{told} That none was found does not make it safe: only these were tried.</p>",
        _table(heads, (_probe(one) for one in jumped or gate.probes)),
    ]


def _probe(one: Probed) -> list[str]:
    shares = [f"{100 * share:.0f} %" for share in (one.repeated, one.plain, one.base)]
    return [f"<code>{escape(one.trigger)}</code>", *shares, f"{one.jump:+.3f}", f"{one.usual:+.3f}"]


# ---- what the rank cut off ---------------------------------------------------------------------------------------


def _residuals(modules: Sequence[ModulePreview]) -> list[str]:
    """A bar a module, in their order, and the worst by name."""
    if not modules:
        return []
    worst = sorted(modules, key=lambda one: -one.residual_ppm)[:MOST_NAMED]
    most = max(1, worst[0].residual_ppm)
    wide = max(1.0, min(BAR, WIDTH / len(modules)))
    bars = [
        f'<rect x="{at * wide:.1f}" y="{100 - 100 * one.residual_ppm / most:.1f}" width="{max(0.5, wide - 1):.1f}" '
        f'height="{100 * one.residual_ppm / most:.1f}" fill="#1f6feb"><title>{escape(one.name)}: '
        f"{_share(one.residual_ppm)}, rank {one.rank}</title></rect>"
        for at, one in enumerate(modules)
    ]
    width = wide * len(modules)
    return [
        "<h2>What the rank cut off, by module</h2>",
        f"<p><small>Shares of each module's own length, in the order of their names; the highest bar is "
        f"{_share(worst[0].residual_ppm)}.</small></p>",
        f'<svg width="{width:.0f}" viewBox="0 0 {width:.0f} 100" role="img" aria-label="Residual by module">',
        *bars,
        "</svg>",
        _table(
            ("where most is cut off", "rank", "of it"),
            ([f"<code>{escape(one.name)}</code>", str(one.rank), _share(one.residual_ppm)] for one in worst),
        ),
    ]


# ---- small things ------------------------------------------------------------------------------------------------


def _share(ppm: int) -> str:
    return f"{100 * ppm / MILLION:.3g} %"


def _at(ppm: Sequence[int], place: int) -> str:
    return _share(ppm[place]) if place < len(ppm) else ""


def _fields(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows if value)
    return f"<table>{''.join(cells)}</table>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML, heads are text."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
