"""Writes docs/settings.md from orchd/config.py, and says whether it is up to date.

usage: .venv/bin/python tools/settings_page.py [--write]
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchd.cli.nouns.config import toml
from orchd.config import allowed, known_settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

The daemon reads them when it starts: from `~/.config/orchd/config.toml` (under `ORCHD_HOME`, if that is set, from its
`config.toml`), from variables, and from flags of `orchd`; later ones win. `orchctl config show` prints them all, as
they are now and in the form of that file. Written by `make settings` from `orchd/config.py`.

In a variable, and in `orchd --set KEY=VALUE`, a list is its texts with commas between them, without quotes
(`--set net.listen=/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001`); nothing after the `=` is an empty list, or no text.

| setting | default | allowed | variable | what it is for |
|---|---|---|---|---|
"""


def page() -> str:
    rows = (
        (f"`{key}`", f"`{toml(known.default)}`", allowed(key), f"`{_variable(key)}`", known.meaning)
        for key, known in known_settings().items()
    )
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _variable(key: str) -> str:
    return f"ORCHD_{key.upper().replace('.', '__')}"


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
