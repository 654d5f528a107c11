"""Writes docs/errors.md from orchd/errors.py, and says whether it is up to date.

usage: .venv/bin/python tools/error_pages.py [--write]

A section holds an error's number, name and exit code, what happened (the class's docstring) and the next step. Text
after a section's `<!-- more -->` line is written by hand and kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from orchd.errors import OrchdError, error_classes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
HEAD = """# Errors

Every error that orchd shows has a number, which never changes its meaning. `orchctl` prints it, the JSON-RPC error
carries it as `code`. Written by `make errors` from `orchd/errors.py`; text below a `<!-- more -->` is kept.

| exit code of `orchctl` | means |
|---|---|
| 0 | it worked |
| 1 | the operation failed |
| 2 | the command's words are wrong |
| 3 | the daemon is not reachable |
| 4 | refused by policy or verification |
| 5 | not found |
| 130 | interrupted |
"""
GROUPS = {
    10: "Node and configuration",
    11: "RPC",
    20: "Records",
    21: "Registry and admission",
    30: "Jobs",
    31: "Importers and data sets",
    40: "Network",
    50: "Training and language models",
    60: "Averaging",
    70: "Serving",
    80: "Demo and service",
}
MORE = "<!-- more -->"


def page(previous: str) -> str:
    """The whole page, with the hand-written parts of `previous`."""
    kept = dict(re.findall(rf'<a id="e(\d+)"></a>.*?{MORE}\n(.*?)(?=\n<a id=|\n## |\Z)', previous, re.DOTALL))
    parts, group = [HEAD], None
    for code, cls in sorted(error_classes().items()):
        if code // 100 != group:
            group = code // 100
            parts.append(f"\n## {GROUPS[group]}\n")
        more = kept.get(str(code), "").strip()
        parts.append(section(code, cls) + (f"\n{MORE}\n{more}\n" if more else ""))
    return "".join(parts)


def section(code: int, cls: type[OrchdError]) -> str:
    """One error's section."""
    doc = " ".join((vars(cls).get("__doc__") or "").split())
    return (
        f'\n<a id="e{code}"></a>\n### {code} {cls.__name__}\n\n{doc}\n\n'
        f"*Next step:* {cls.default_hint}\n\n*Exit code:* {cls.exit_code}\n"
    )


def main(arguments: list[str]) -> int:
    previous = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    wanted = page(previous)
    if "--write" in arguments:
        PAGE.write_text(wanted, encoding="utf-8")
    elif previous != wanted:
        print("docs/errors.md is not what orchd/errors.py says: run `make errors`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
