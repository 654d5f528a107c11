"""`orchctl`: a client of the daemon's socket (and of the service manager, and of the demo).

Starts fast: `--help` and `--version` load nothing but a table, a command loads its own noun's file.
"""

from __future__ import annotations

import sys

HELP = frozenset({"-h", "--help", "help"})


def main(arguments: list[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in HELP:
        from orchd.cli.table import overview

        print(overview(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given == ["--version"]:
        from orchd import __version__

        print(f"orchctl {__version__}")
        return 0
    try:
        from orchd.cli.run import run

        return run(given)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
