"""Which bases this node has, and which fingerprints are one and the same base.

What the user adds is journalled with the fingerprint that it had. A base whose files are gone, or are others now, is
told of and not used: an adapter that fitted yesterday's weights may be noise on today's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from orchd.errors import BaseChanged, BaseLinkRefused, BaseUnknown, OrchdError, ParamsInvalid, did_you_mean
from orchd.records import parse_id, text_id
from orchd.records.ids import BASE
from orchd.registry import bases, gguf_base
from orchd.registry.bases import FOLDER, FORMS, Base
from orchd.registry.local import Local, delete, put
from orchd.registry.local_rows import BaseHere, BaseLink

MIN_PREFIX = len(BASE) + 4
MAX_NAME = 120
NO_RIGHTS = "Check who may read it, and all files in it: the daemon opens them itself."
LOG = logging.getLogger(__name__)
_Stamp = tuple[tuple[str, int, int], ...]


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """A base that was added and can't be used now. `reason` says why."""

    name: str
    fingerprint: str
    path: str
    reason: str


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a fingerprint, looked at again."""

    name: str
    ok: bool
    detail: str


def read(name: str, path: Path) -> Base:
    """The base in a Hugging Face folder or a GGUF file. Raises `BaseUnknown` or `TensorsRefused`."""
    try:
        if path.is_dir():
            return bases.load(name, path)
        if path.is_file():
            return gguf_base.load(name, path)
    except OSError as error:
        hint = NO_RIGHTS if isinstance(error, PermissionError) else FORMS
        raise BaseUnknown(f"{error.filename or path} can't be read: {error.strerror}", hint=hint) from None
    raise BaseUnknown(f"{path} is no folder and no file", hint=FORMS)


class KnownBases:
    """Safe to use from several threads. Bases that the program brings along are `built_in`, and not journalled."""

    def __init__(self, local: Local, clock: Callable[[], int]) -> None:
        self._local, self._clock = local, clock
        self._built_in: dict[str, Base] = {}
        self._loaded: dict[tuple[str, str], tuple[_Stamp, Base | Absent]] = {}
        #: By path and fingerprint: what was read when it was still what it is here as.
        self._known: dict[tuple[str, str], Base] = {}
        self._loading = threading.Lock()

    # ---- adding -------------------------------------------------------------------------------------------------

    def build_in(self, name: str, path: Path) -> Base:
        base = read(name, path)
        self._built_in[name] = base
        return base

    def add(self, name: str, path: Path) -> Base:
        """Make a base known, at each start from now on. Raises `BaseUnknown`, `TensorsRefused`, `ParamsInvalid`."""
        if not 1 <= len(name) <= MAX_NAME or name.startswith(BASE) or not name.isprintable():
            raise ParamsInvalid(
                f"{name[:80]!r} can't be a base's name: 1 to {MAX_NAME} characters, not beginning with {BASE}",
                hint="Give another with `--name`.",
                field="name",
            )
        if name in self._built_in:
            hint = "Give another with `--name`."
            raise ParamsInvalid(f"{name!r} is the name of a base that orchd brings along", hint=hint, field="name")
        stamp, base = _stamp(path.resolve()), read(name, path.resolve())
        row = BaseHere(name=name, path=str(base.path), since=self._clock(), fingerprint=base.fingerprint)
        with self._loading:
            if (here := self._local.get(BaseHere, name)) is None or _place(here) != _place(row):
                self._local.act("base.add", put(row), undoable=True)
            self._loaded[_place(row)], self._known[_place(row)] = (stamp, base), base
        return base

    def remove(self, name: str) -> None:
        """Forget a base that was added; its files stay. Raises `BaseUnknown`."""
        if name in self._built_in:
            hint = "It stays; what `orchctl base add` made known can be removed."
            raise ParamsInvalid(f"the base {name} comes with orchd and can't be removed", hint=hint, field="base")
        if self._local.get(BaseHere, name) is None:
            hint = "`orchctl base list` shows the bases that are here; they are removed by their names."
            raise BaseUnknown(f"no base {name[:80]!r} was added here", hint=hint, field="base")
        self._local.act("base.remove", delete(BaseHere, name), undoable=True)

    # ---- asking -------------------------------------------------------------------------------------------------

    def all(self) -> list[Base]:
        """Every base that can be used."""
        return [base for base in self._rows() if isinstance(base, Base)]

    def absent(self) -> list[Absent]:
        """Every base that was added and can't be used."""
        return [base for base in self._rows() if isinstance(base, Absent)]

    def get(self, text: str) -> Base:
        """By name, by fingerprint or its beginning, or by a fingerprint that is linked.

        Raises `BaseUnknown`, or `BaseChanged` for one that was added and is gone or another one now.
        """
        here = self._rows()
        for base in here:
            if text == base.name:
                if isinstance(base, Absent):
                    raise BaseChanged(base.reason, field="base")
                return base
        usable = [base for base in here if isinstance(base, Base)]
        if len(text) >= MIN_PREFIX and text.startswith(BASE):
            whole = {base.fingerprint for base in usable if base.fingerprint.startswith(text)}
            same = self.same(whole.pop() if len(whole) == 1 else text)
            if found := _best((base for base in usable if base.fingerprint in same), text):
                return found
            for base in here:
                if isinstance(base, Absent) and base.fingerprint in same:
                    raise BaseChanged(base.reason, field="base")
        hint = did_you_mean(text, [base.name for base in here])
        raise BaseUnknown(f"no base {text[:80]!r} is here", hint=hint, field="base")

    def folder(self, text: str) -> Base:
        """As `get`, but in the form that can be trained on: for a GGUF file the folder that is linked to it."""
        base = self.get(text)
        same = self.same(base.fingerprint)
        found = [base, *(twin for twin in self.all() if twin.fingerprint in same)]
        for one in found:
            if one.form == FOLDER:
                return one
        hint = f"`orchctl base add` the folder that it was made from, then `orchctl base link {base.name} NAME`."
        raise BaseUnknown(
            f"{base.name} is a GGUF file, and this needs the Hugging Face folder", hint=hint, field="base"
        )

    def of(self, digest: bytes) -> Base | None:
        """The base with this fingerprint, or with one that is linked to it."""
        try:
            return self.get(text_id(BASE, digest))
        except (BaseUnknown, BaseChanged):
            return None

    def _rows(self) -> list[Base | Absent]:
        return [*self._built_in.values(), *map(self._load, self._local.all(BaseHere))]

    def _load(self, row: BaseHere) -> Base | Absent:
        """As it lies there now: its files are read again when one of them has another time or size."""
        with self._loading:
            place, stamp = _place(row), _stamp(Path(row.path))
            if place not in self._loaded or self._loaded[place][0] != stamp:
                found = _read_again(row)
                self._loaded[place] = stamp, found
                if isinstance(found, Base):
                    self._known[place] = found
            _, found = self._loaded[place]
        return msgspec.structs.replace(found, name=row.name) if isinstance(found, Absent) else _named(found, row.name)

    # ---- looking again ------------------------------------------------------------------------------------------

    def verify(self, name: str) -> tuple[Base | Absent, list[Part]]:
        """Read a base's files again and compare each part with what was read before. Raises `BaseUnknown`."""
        found = next((base for base in self._rows() if name in (base.name, base.fingerprint)), None)
        before = found or self.get(name)
        path = Path(before.path)
        try:
            now = read(before.name, path)
        except (OrchdError, OSError) as error:
            return before, [Part(name="readable", ok=False, detail=str(error))]
        known = self._parts(before)
        parts = [
            Part(name=part, ok=digest == known.get(part, digest), detail=digest[:16])
            for part, digest in now.parts.items()
        ]
        same = now.fingerprint == before.fingerprint
        detail = now.fingerprint if same else f"{now.fingerprint}, not {before.fingerprint}"
        return before, [*parts, Part(name="fingerprint", ok=same, detail=detail)]

    def _parts(self, base: Base | Absent) -> Mapping[str, str]:
        """The digests of its parts when it was added or last started with; empty when it was not here since."""
        if isinstance(base, Base):
            return base.parts
        known = self._known.get((base.path, base.fingerprint))
        return {} if known is None else known.parts

    # ---- links --------------------------------------------------------------------------------------------------

    def links(self) -> list[BaseLink]:
        return self._local.all(BaseLink)

    def same(self, fingerprint: str) -> frozenset[str]:
        """This fingerprint and all that are said to be the same base's."""
        found, before = {fingerprint}, 0
        pairs = [{link.fingerprint, link.same_as} for link in self.links()]
        while len(found) != before:
            before = len(found)
            found.update(*(pair for pair in pairs if found & pair))
        return frozenset(found)

    def link(self, one: str, other: str) -> BaseLink:
        """Say that two bases (names or fingerprints) are one. Raises `BaseLinkRefused`, `BaseUnknown`."""
        first, second = self._fingerprint(one), self._fingerprint(other)
        if first == second or second in self.same(first):
            raise BaseLinkRefused("these are one base already", hint="`orchctl base show` tells what is linked.")
        self._check_alike(self.of(parse_id(first, BASE)), self.of(parse_id(second, BASE)))
        taken = {link.fingerprint for link in self.links()}
        while first in taken:  # one row for each fingerprint: the chain's end is linked
            first = next(link.same_as for link in self.links() if link.fingerprint == first)
        row = BaseLink(fingerprint=first, same_as=second, since=self._clock())
        self._local.act("base.link", put(row), undoable=True)
        return row

    def _fingerprint(self, text: str) -> str:
        try:
            return self.get(text).fingerprint
        except BaseUnknown:
            if not text.startswith(BASE):
                raise
            parse_id(text, BASE)
            return text

    @staticmethod
    def _check_alike(one: Base | None, other: Base | None) -> None:
        """Where both are here: no weight that both have is of another shape, and the layers are the same ones."""
        if one is None or other is None:
            return
        for name in sorted(name for name in one.shapes.keys() | other.shapes.keys() if ".layers." in name):
            first, second = one.shapes.get(name), other.shapes.get(name)
            if first != second:
                raise BaseLinkRefused(
                    f"{name} is {_shape(first)} in {one.name}, {_shape(second)} in {other.name}", field="other"
                )


def _place(row: BaseHere) -> tuple[str, str]:
    return row.path, row.fingerprint


def _stamp(path: Path) -> _Stamp:
    """What tells that a base's files were written since: names, sizes, times. Empty when it can't be looked at."""
    try:
        files = [path] if path.is_file() else sorted(path.iterdir())
        return tuple((file.name, facts.st_size, facts.st_mtime_ns) for file in files for facts in [file.stat()])
    except OSError:
        return ()


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _read_again(row: BaseHere) -> Base | Absent:
    try:
        base = read(row.name, Path(row.path))
    except (OrchdError, OSError) as error:
        reason = f"the base {row.name} can't be read: {error}"
    else:
        if base.fingerprint == row.fingerprint:
            return base
        reason = f"the base {row.name} in {row.path} is another one now: {base.fingerprint}, not {row.fingerprint}"
    LOG.warning("%s", reason)
    return Absent(name=row.name, fingerprint=row.fingerprint, path=row.path, reason=reason)


def _named(base: Base, name: str) -> Base:
    return base if base.name == name else replace(base, name=name)


def _best(found: Iterable[Base], text: str) -> Base | None:
    """The base itself rather than a linked one, a folder rather than a file: only a folder can be trained on."""
    return min(found, key=lambda base: (not base.fingerprint.startswith(text), base.form != FOLDER), default=None)
