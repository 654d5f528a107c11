"""Is an environment whole? Run in a process of its Python: `python -P check.py MODULE…`.

Every file that a package's RECORD lists is there with its size, and the modules import. Standard library only, but for
what it imports. The last line of standard output is the verdict, as JSON: `{"versions", "device", "size"}`, or
`{"broken"}` with the reason.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import sysconfig
import traceback
from pathlib import Path

MOST_SHOWN = 3


def main(modules: list[str]) -> int:
    own = sysconfig.get_paths()["purelib"]
    try:
        distributions = list(importlib.metadata.distributions(path=[own]))
        versions = {one.metadata["Name"]: one.version for one in distributions}
        lost, size = _files(distributions)
        if lost:
            more = f" and {len(lost) - MOST_SHOWN} more" if len(lost) > MOST_SHOWN else ""
            raise LookupError(f"files are missing or cut off: {', '.join(lost[:MOST_SHOWN])}{more}")
        for name in modules:
            importlib.import_module(name)
        verdict = {"versions": versions, "device": _device(), "size": size}
    except BaseException as error:  # whatever a broken package raises while it is imported
        traceback.print_exc()
        verdict = {"broken": f"{type(error).__name__}: {error}"}
    sys.stdout.flush()
    print(json.dumps(verdict), flush=True)
    os._exit(1 if "broken" in verdict else 0)  # without the atexit work of libraries


def _files(distributions: list[importlib.metadata.Distribution]) -> tuple[list[str], int]:
    """Files that are not as they were installed, and the bytes of all."""
    lost, size = [], 0
    for distribution in distributions:
        if distribution.files is None:
            lost.append(f"the list of {distribution.metadata['Name'] or 'a package'}")
            continue
        for file in distribution.files:
            if file.size is None:  # what was compiled here, and the list itself
                continue
            try:
                found = Path(str(file.locate())).stat().st_size
            except OSError:
                found = -1
            size += max(0, found)
            if found != file.size:
                lost.append(str(file))
    return lost, size


def _device() -> str:
    """What torch computes on there; empty without torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    mps = getattr(torch.backends, "mps", None)
    return "MPS" if mps is not None and mps.is_available() else "CPU"


if __name__ == "__main__":
    main(sys.argv[1:])
