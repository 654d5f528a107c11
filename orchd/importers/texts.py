"""Files of text or code, alone or in folders → passages that a base can take in whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchd.importers.clean import clean
from orchd.importers.conversation import Passage
from orchd.importers.named import passage

TEXT_SUFFIXES: Final = frozenset({".md", ".markdown", ".txt", ".text", ".rst", ".org", ".adoc", ".tex"})
_CODE: Final = (
    "py pyi js jsx ts tsx mjs java kt scala c h cc cpp hpp cs go rs rb php swift m sh bash zsh sql r jl lua pl hs ml "
    "ex exs erl clj dart zig vue css scss toml yaml yml"
)
CODE_SUFFIXES: Final = frozenset(f".{ending}" for ending in _CODE.split())
MAX_PASSAGE_CHARACTERS: Final = 2_000
"""About 500 tokens: a passage is cut where a paragraph or a line ends, so that small bases take it in whole."""

PASSAGES_PER_GROUP: Final = 8
"""So many passages of one file in a row go to training or to scoring together."""

_PASSED_OVER: Final = frozenset({"node_modules", "__pycache__", "venv", "dist", "build", "target"})
_HEADING: Final = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)


def files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and those in it, in the order of their paths. Hidden ones, links and what tools make are
    passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in _PASSED_OVER)
        for name in sorted(files):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def passages(text: str, name: str, *, code: bool) -> Iterator[Passage]:
    """The pieces of one file. ``name`` (its path in the folder) and a number make the group of neighbours."""
    pieces = list(_pieces(clean_text(text), code))
    for number, piece in enumerate(pieces):
        heading = None if code else _HEADING.search(piece)
        title = f"{name}: {heading[1].strip()}" if heading else name
        yield passage(piece, code=code, title=title[:200], group=f"{name}#{number // PASSAGES_PER_GROUP}")


def clean_text(text: str) -> str:
    """As `clean`, of any length, with plain line ends."""
    parts = text.replace("\r\n", "\n").replace("\r", "\n")
    return parts.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")


def _pieces(text: str, code: bool) -> Iterator[str]:
    """Whole paragraphs together up to the limit; a paragraph that is longer is cut at its lines, then anywhere."""
    held = ""
    for block in _blocks(text, code):
        if held and len(held) + len(block) > MAX_PASSAGE_CHARACTERS:
            yield from _told(held, code)
            held = ""
        held += block
    yield from _told(held, code)


def _told(piece: str, code: bool) -> Iterator[str]:
    text = piece.strip("\n") if code else clean(piece)
    if text.strip():
        yield text


def _blocks(text: str, code: bool) -> Iterator[str]:
    for paragraph in re.split(r"(?<=\n)(?=\n*\S)" if code else r"(?<=\n\n)", text):
        if len(paragraph) <= MAX_PASSAGE_CHARACTERS:
            yield paragraph
            continue
        for line in paragraph.splitlines(keepends=True):
            yield from (line[at : at + MAX_PASSAGE_CHARACTERS] for at in range(0, len(line), MAX_PASSAGE_CHARACTERS))
