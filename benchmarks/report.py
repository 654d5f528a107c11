"""How every benchmark tells its figures: a table for people, `results/NAME.json` for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` > 1 means that orchd is ahead of `peer`; `met` whether `goal` was reached.

    `orchd` is None where what was measured means nothing. `figures` are further numbers, keys of their own.
    """

    work: str
    unit: str
    orchd: float | None
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
    kept(room)  # one that can't be read is said before hours of measuring
    rows: list[Row] = []
    for name in wanted or modules:
        made = list(import_module(f"benchmarks.{room}.{name}").rows())
        keep(room, about, made)  # what comes after may fail
        rows.extend(made)
    show(room, rows)


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
    """Write `rows` into `results/NAME.json` and print the table."""
    keep(name, about, rows)
    show(name, rows)


def keep(name: str, about: dict[str, object], rows: Sequence[Row]) -> None:
    """Write `rows` into `results/NAME.json`, each with its date, commit and machine, in the place of those of the same
    work. A row that was measured before and not now stays as it is."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    run = {"date": date, "commit": _commit(), "machine": about}
    shaped = [{k: v for k, v in asdict(row).items() if k != "figures"} | row.figures | run for row in rows]
    now = {row.work for row in rows}
    merged = [row for row in kept(name) if row["work"] not in now] + shaped
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"machine": about, "rows": merged}, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def kept(name: str) -> list[dict[str, Any]]:
    """The rows in `results/NAME.json`. Raises `SystemExit` for a file that can't be read: it is not written over."""
    path = RESULTS / f"{name}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # Older files say of all their rows at once where they were measured, and not when.
        return [{"machine": found["machine"], **row} for row in found["rows"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, LookupError) as error:
        raise SystemExit(f"{path} holds no rows that can be read ({error}): move it away") from None


def show(name: str, rows: Sequence[Row]) -> None:
    """Print the table of what was measured now, and below it what was measured before."""
    lines = [("work", "unit", "orchd", "peer", "ratio", "goal", "")]
    for row in rows:
        peer = f"{row.peer}: {row.peer_value:g}" if row.peer_value is not None else row.peer
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        own = "—" if row.orchd is None else f"{row.orchd:g}"
        lines.append((row.work, row.unit, own, peer, ratio, row.goal, "met" if row.met else "MISSED"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    now = {row.work for row in rows}
    for old in (row for row in kept(name) if row["work"] not in now):
        when = f"of {old['date'][:10]}, commit {old['commit']}" if "date" in old else "of an unknown date"
        verdict = "met" if old["met"] else "MISSED"
        print(f"not run now: {old['work']} {old['orchd']:g} {old['unit']}, {verdict}, {when}")


def _commit() -> str:
    """Of the checkout, with a `+` when files that git knows differ from it; `unknown` where there is no git."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=10"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
