"""Which files a model is made of: the folder of a base, or its own GGUF file, and how its numbers are written."""

from __future__ import annotations

import json
from typing import NamedTuple

from orchd.errors import BaseUnknown, ParamsInvalid
from orchd.registry import Base
from orchd.registry.bases import GGUF
from orchd.registry.known_bases import KnownBases
from orchd.serve.specs import KEEP, QUANTIZE_NAMES

PLAIN = "F16"
"""What a file made of a folder is written in, where nothing is asked for."""


class Chosen(NamedTuple):
    """`base` is the folder, `gguf` the path of the base's own file where `quantize` is KEEP, else empty."""

    base: Base
    gguf: str
    quantize: str


def choose(known: KnownBases, base: str, quantize: str) -> Chosen:
    """What is made of the base that is called so. `quantize` is one of QUANTIZE_NAMES or KEEP in any case of letters;
    empty stands for KEEP where the base came as a GGUF file, so that what it doesn't touch stays as its makers wrote
    it, and for PLAIN elsewhere.

    Raises `BaseUnknown` where no folder is here, or with KEEP no GGUF file; `ParamsInvalid`.
    """
    wanted = quantize.upper()
    if wanted and wanted not in (*QUANTIZE_NAMES, KEEP):
        names = ", ".join((*QUANTIZE_NAMES, KEEP))
        hint = f"Give one of {names}."
        raise ParamsInvalid(f"quantize {quantize[:80]!r} is not {names}", hint=hint, field="quantize")
    folder = known.folder(base)
    file = _own_file(known, folder, asked=known.get(base))
    if not wanted:
        wanted = KEEP if file is not None and _came_as(folder) == file.fingerprint else PLAIN
    if wanted != KEEP:
        return Chosen(folder, "", wanted)
    if file is None:
        hint = f"`orchctl base add` its GGUF file, then `orchctl base link NAME {folder.name}`; or choose another."
        raise BaseUnknown(f"no GGUF file of the base {folder.name} is here to be kept", hint=hint, field="quantize")
    return Chosen(folder, str(file.path), KEEP)


def _own_file(known: KnownBases, folder: Base, asked: Base) -> Base | None:
    """The GGUF file that was asked for by name, or one that is linked to the folder: the one that it was made of."""
    if asked.form == GGUF:
        return asked
    same, made_of = known.same(folder.fingerprint), _came_as(folder)
    files = [one for one in known.all() if one.form == GGUF and one.fingerprint in same]
    return min(files, key=lambda one: (one.fingerprint != made_of, one.name), default=None)


def _came_as(folder: Base) -> str:
    """The fingerprint of the GGUF file that the folder was made of (`base.unpack` notes it); empty for others."""
    try:
        told = json.loads((folder.path / "RECORD.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return str(told.get("source", "")) if isinstance(told, dict) else ""
