"""How every benchmark tells its figures: a table for people, `results/NAME.json` for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` > 1 means that orchd is ahead of `peer`; `met` whether `goal` was reached.

    `figures` are further numbers, which become keys of their own.
    """

    work: str
    unit: str
    orchd: float
    peer: str
    peer_value: float | None
    ratio: float | None
    goal: str
    met: bool
    figures: dict[str, float] = field(default_factory=dict)


def lower_is_better(
    work: str, unit: str, orchd: float, peer: tuple[str, float], goal: tuple[str, float], **figures: float
) -> Row:
    """A row for times and sizes. `goal` is its words and the largest value that meets it."""
    name, value = peer
    words, limit = goal
    return Row(
        work, unit, _rounded(orchd), name, _rounded(value), _rounded(value / orchd), words, orchd <= limit, figures
    )


def run_modules(room: str, modules: Sequence[str], wanted: Sequence[str]) -> None:
    """Run modules of `benchmarks.ROOM` (all when none is wanted) for their rows, from the checkout's folder, and
    publish these. Raises `SystemExit` for one that is none."""
    if strange := set(wanted) - set(modules):
        raise SystemExit(f"no rows {', '.join(sorted(strange))}; there are {', '.join(modules)}")
    os.chdir(RESULTS.parent.parent)
    about = machine()
    rows: list[Row] = []
    for name in wanted or modules:
        rows.extend(import_module(f"benchmarks.{room}.{name}").rows())
    publish(room, about, rows)


def machine() -> dict[str, object]:
    """What the figures depend on. No host or user name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def publish(name: str, about: dict[str, object], rows: Sequence[Row]) -> None:
    """Print the table and write `results/NAME.json`. A row that could not run is not among `rows`."""
    lines = [("work", "unit", "orchd", "peer", "ratio", "goal", "")]
    for row in rows:
        peer = f"{row.peer}: {row.peer_value:g}" if row.peer_value is not None else row.peer
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append((row.work, row.unit, f"{row.orchd:g}", peer, ratio, row.goal, "met" if row.met else "MISSED"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    RESULTS.mkdir(exist_ok=True)
    shaped = [{k: v for k, v in asdict(row).items() if k != "figures"} | row.figures for row in rows]
    text = json.dumps({"machine": about, "rows": shaped}, indent=2) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
