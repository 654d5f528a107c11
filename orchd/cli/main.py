"""`orchctl`: a client of the daemon's socket (and of the service manager, and of the demo).

Starts fast: `--help` and `--version` load nothing but a table, a command loads its own noun's file.
"""

from __future__ import annotations

import sys

HELP = frozenset({"-h", "--help", "help"})


def main(arguments: list[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # while this was still being loaded; `run` answers for what comes after
        return 130


def _main(given: list[str]) -> int:
    if not given or given[0] in HELP:
        from orchd.cli.table import overview

        print(overview(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given == ["--version"]:
        from orchd import __version__

        print(f"orchctl {__version__}")
        return 0
    from orchd.cli.run import run

    return run(given)


if __name__ == "__main__":
    sys.exit(main())
