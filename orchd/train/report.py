"""One page about a training: how it ended, and its curves. Plain HTML and SVG, nothing is fetched. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from orchd.train.curves import Point, StepPoint, mean, validations
from orchd.train.specs import TrainSpec

WIDTH, HEIGHT, LEFT, ABOVE, BELOW = 640, 234, 60, 28, 28
DRAWN_POINTS: Final = 300
"""A longer curve is drawn by the means of as many stretches."""

SHOWN: Final = (
    *("method", "extract_rank", "rank", "alpha", "rslora", "modules", "layers", "objective", "dpo_beta", "dpo_sft"),
    *("learning_rate", "batch_size", "gradient_accumulation_steps", "weight_decay", "lora_dropout"),
    *("steps", "schedule_total", "schedule_offset", "seed", "quantization"),
)
OF_ADAPTERS: Final = frozenset({"rank", "alpha", "rslora", "lora_dropout"})
LOSS: Final = "Loss, nats a token", "Loss, nats a pair"
RIGHT: Final = "Tokens that it would have chosen, %", "Pairs that it has learnt to prefer, %"
"""Of supervised fine-tuning, and of preferences."""

COLOURS: Final = ("#1f6feb", "#d1242f")
STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:700px;margin:2em auto;padding:0 1em;color:#1f2328;background:#fff}
h1{font-size:1.4em}h2{font-size:1.05em;margin:1.6em 0 .3em}table{border-collapse:collapse}
td{padding:.1em 1.2em .1em 0;vertical-align:top}code{overflow-wrap:anywhere}
td:first-child{color:#59636e;white-space:nowrap}
svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#59636e}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}}"""

UNTESTED: Final = "not measured: no rows were put aside to test on, and nothing says how good it is on unseen ones"

Curve = list[tuple[float, float]]


class Head(NamedTuple):
    """Of the job: `error` says what it failed of, else it is empty; `sandbox` what it was confined by; `dataset` and
    `base` are names; `computed` is the dtype and what computed, empty before that was chosen."""

    id: str
    title: str
    state: str
    started_ms: int | None
    error: str
    sandbox: str = ""
    dataset: str = ""
    base: str = ""
    computed: str = ""


def page(head: Head, spec: TrainSpec, points: Sequence[Point], result: Any) -> str:
    """The whole page. ``result`` is the job's public result (`orchd.node.Trained` as plain JSON), None before that."""
    dpo = spec.objective == "dpo"
    parts = [
        f"<h1>{escape(head.title)}</h1>",
        _table(_about(head, points, result)),
        *(_charts(points, dpo) or ["<p>No step is done yet.</p>"]),
        "<h2>Settings</h2>",
        _table([(name.replace("_", " "), _shown(getattr(spec, name))) for name in SHOWN if _matters(name, spec)]),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(head.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _matters(name: str, spec: TrainSpec) -> bool:
    if (spec.method == "full" and name in OF_ADAPTERS) or getattr(spec, name) == "none":
        return False
    return spec.objective == "dpo" or "dpo" not in name


def _about(head: Head, points: Sequence[Point], result: Any) -> list[tuple[str, str]]:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(head.started_ms / 1000)) if head.started_ms else ""
    steps = [point for point in points if isinstance(point, StepPoint)]
    rows = [("job", head.id), ("state", head.state), ("began", began), ("error", head.error)]
    rows += [("data set", head.dataset), ("trained on", head.base), ("computed in", head.computed)]
    rows += [("sandbox", head.sandbox)]
    rows += [("steps done", str(steps[-1].step)), ("most memory", f"{steps[-1].memory / 1e6:,.0f} MB")] if steps else []
    if result is not None:
        diagnosis = result["diagnosis"]
        rows += [
            ("adapter", _named(result["adapter"], "id")),
            ("base", _named(result.get("base"), "fingerprint")),
            ("the adapter lacks", _lacks(result.get("residual_ppm"))),
            ("ended", f"{result['stopped']}, {result['epochs']:.1f} epochs; the best was step {result['best_step']}"),
            ("diagnosis", f"{diagnosis['verdict']}: {diagnosis['detail']}"),
            ("next", result["again"]),
        ]
        rows += [("not worth it", "; ".join(result.get("doubts", ())))]
        rows += [] if result["scores"] else [("loss on test", UNTESTED)]
        rows += [
            (f"loss on {one['split']}", f"{one['loss']:.3f} (base {one['base_loss']:.3f})") for one in result["scores"]
        ]
        rows += [("forgot", _forgot(result.get("forgetting"))), ("gives away", _leak(result.get("leak")))]
    return rows


def _forgot(told: Any) -> str:
    if not told:
        return "not measured"
    return (
        f"{told['loss'] - told['base_loss']:+.3f} nats a token on {told['examples']} answers that the base gave itself"
        f" (loss {told['loss']:.3f}, base {told['base_loss']:.3f})"
    )


def _leak(found: Any) -> str:
    if not found:
        return "not measured"
    holds = "; the data set is synthetic, so that nothing holds it back" if found["synthetic"] else ""
    return str(found["verdict"]) + ("; `publish` refuses it without --despite-leak" if found["stops"] else holds)


def _named(made: Any, id: str) -> str:
    return f"{made['name']} {made[id]}" if made else ""


def _lacks(residual_ppm: int | None) -> str:
    return "" if residual_ppm is None else f"{residual_ppm / 10_000:.1f} % of what the base learnt"


def _charts(points: Sequence[Point], dpo: bool) -> list[str]:
    steps = [point for point in points if isinstance(point, StepPoint)]
    if not steps:
        return []
    scored = validations(points)
    loss = [(float(point.step), point.loss) for point in steps if point.loss is not None]
    validation = [(float(point.step), point.loss) for point in scored if point.loss is not None]
    accuracy = [(float(point.step), 100 * point.accuracy) for point in steps]
    validated = [(float(point.step), 100 * point.accuracy) for point in scored]
    return [
        chart(LOSS[dpo], {"training": loss, "validation": validation}),
        chart(RIGHT[dpo], {"training": accuracy, "validation": validated}),
        chart("Learning rate", {"": [(float(point.step), point.rate) for point in steps]}),
        chart("Tokens a second", {"": [(float(point.step), point.tokens_s) for point in steps]}),
    ]


def chart(title: str, curves: dict[str, Curve]) -> str:
    """Curves of (step, value) below a heading, from 0 or their least value to their largest."""
    drawn = [(name, thinned(curve)) for name, curve in curves.items() if curve]
    if not drawn:
        return ""
    values = [value for _, curve in drawn for _, value in curve]
    last = max(x for _, curve in drawn for x, _ in curve)
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * x / max(1.0, last)
        return f"{across:.1f},{ABOVE + (HEIGHT - BELOW - ABOVE) * (high - y) / (high - low):.1f}"

    lines = []
    for number, (name, curve) in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in curve)
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
        at = LEFT + 8 + 90 * number
        lines.append(f'<text x="{at}" y="12" style="fill:{colour}">{escape(f"— {name}" if name else "")}</text>')
    bottom, floor = HEIGHT - 8, HEIGHT - BELOW
    return (
        f'<h2>{escape(title)}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<path d="M{LEFT} {ABOVE}V{floor}H{WIDTH - 10}" fill="none" stroke="#8c959f"/>'
        f'<text x="{LEFT - 6}" y="{ABOVE + 8}" text-anchor="end">{_figure(high)}</text>'
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">{_figure(low)}</text>'
        f'<text x="{LEFT}" y="{bottom}">0</text>'
        f'<text x="{WIDTH - 10}" y="{bottom}" text-anchor="end">step {last:,.0f}</text>'
        f"{''.join(lines)}</svg>"
    )


def _figure(value: float) -> str:
    """Three digits, as people write them: 2,970 and 0.005."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def thinned(curve: Curve) -> Curve:
    """At most `DRAWN_POINTS` points: the means of equal stretches of a longer curve."""
    if len(curve) <= DRAWN_POINTS:
        return curve
    edges = [round(at * len(curve) / DRAWN_POINTS) for at in range(DRAWN_POINTS + 1)]
    parts = [curve[start:end] for start, end in pairwise(edges)]
    return [(mean([x for x, _ in part]), mean([y for _, y in part])) for part in parts]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return f"<table>{''.join(_row(name, value) for name, value in rows if value)}</table>"


def _row(name: str, value: str) -> str:
    shown = f"<code>{escape(value)}</code>" if name == "next" else escape(value)
    return f"<tr><td>{escape(name)}</td><td>{shown}</td></tr>"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value in (None, 0) else str(msgspec.to_builtins(value))
