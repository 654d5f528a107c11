"""The page of `demo --real`: its figures and what was asked and answered, as Markdown."""

from __future__ import annotations

from pathlib import Path

from orchd.demo.real_results import Asked, RealResults
from orchd.demo.screen import percent


def write_page(results: RealResults, folder: Path) -> Path:
    """`real.md` in `folder`."""
    path = folder / "real.md"
    path.write_text(page(results), encoding="utf-8")
    return path


def page(results: RealResults) -> str:
    rows = [f"| {m.label} | {m.steps or '–'} | {percent(m.a)} | {percent(m.b)} |" for m in results.marks]
    checks = [f"* {'held' if one.ok else '**did not hold**'}: {one.name} ({one.detail})" for one in results.checks()]
    rounds = ", ".join(f"{one:.0f}" for one in results.training)
    return "\n".join(
        [
            "# Two households, one real model",
            "",
            "What `orchctl demo --real` said in one run: SmolLM2-135M-Instruct, two daemons, "
            f"{results.taught} questions each to learn from, {results.seconds:.0f} s in all "
            f"(the rounds {rounds} s).",
            "",
            "| right, word for word | steps | A's exam | B's exam |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Served: the average, folded into the model's own GGUF file, {results.size / 1e6:.0f} MB.",
            "",
            *checks,
            "",
            "## What was asked, and what the served average answered",
            "",
            "Beside it what each household's adapter of round 1 answers, which was trained by it alone.",
            "",
            "| exam | asked | right | average | A alone | B alone |",
            "|---|---|---|---|---|---|",
            *map(_row, results.asked),
            "",
        ]
    )


def _row(one: Asked) -> str:
    told = (one.household, one.prompt, one.expected, one.average + ("" if one.right else " ✗"), one.a, one.b)
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in told) + " |"
