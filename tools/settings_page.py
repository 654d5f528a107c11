"""Writes docs/settings.md from orchd/config.py, and says whether it is up to date.

usage: .venv/bin/python tools/settings_page.py [--write]
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchd.cli.nouns.config import toml
from orchd.config import known_settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

The daemon reads them when it starts: from `~/.config/orchd/config.toml` (under `ORCHD_HOME`, if that is set, from its
`config.toml`), from variables, and from flags of `orchd`; later ones win. `orchctl config show` prints them all, as
they are now and in the form of that file. Written by `make settings` from `orchd/config.py`.

| setting | default | variable | what it is for |
|---|---|---|---|
"""


def page() -> str:
    rows = (
        f"| `{key}` | `{toml(known.default)}` | `ORCHD_{key.upper().replace('.', '__')}` | {known.meaning} |\n"
        for key, known in known_settings().items()
    )
    return HEAD + "".join(rows)


def main(arguments: list[str]) -> int:
    wanted = page()
    if "--write" in arguments:
        PAGE.write_text(wanted, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
        print("docs/settings.md is not what orchd/config.py says: run `make settings`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
