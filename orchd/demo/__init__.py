"""`orchctl demo`: the whole loop on one machine, with real daemons."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Play the demo with these arguments. Returns the exit code. Nothing is imported before it is called."""
    from orchd.demo.command import run

    return run(argv)
