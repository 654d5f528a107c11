"""Ends what the demo started when the demo itself was killed and could not.

Run as a process of its own (`python -I -S leash.py`). It reads lines from the demo on its standard input:
`started PGID`, `ended PGID`, `folder PATH`, `over`. When the pipe closes without `over`, the demo is dead: every
process group still there is killed and every folder removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        word, _, value = line.rstrip("\n").partition(" ")
        if word == "started":
            groups.add(int(value))
        elif word == "ended":
            groups.discard(int(value))
        elif word == "folder":
            folders.append(value)
        elif word == "over":
            return
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
