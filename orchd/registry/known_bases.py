"""Which bases this node has, and which fingerprints are one and the same base.

What the user adds is journalled with the fingerprint that it had. A base whose files are gone, or are others now, is
told of and not used: an adapter that fitted yesterday's weights may be noise on today's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from orchd.errors import BaseChanged, BaseLinkRefused, BaseUnknown, OrchdError, ParamsInvalid
from orchd.records import parse_id, text_id
from orchd.records.ids import BASE
from orchd.registry import bases, gguf_base
from orchd.registry.bases import FOLDER, Base
from orchd.registry.local import Local, delete, put
from orchd.registry.local_rows import BaseHere, BaseLink

MIN_PREFIX = len(BASE) + 4
MAX_NAME = 120
LOG = logging.getLogger(__name__)


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
    if path.is_dir():
        return bases.load(name, path)
    if path.is_file():
        return gguf_base.load(name, path)
    raise BaseUnknown(f"there is nothing at {path}")


class KnownBases:
    """Safe to use from several threads. Bases that the program brings along are `built_in`, and not journalled."""

    def __init__(self, local: Local, clock: Callable[[], int]) -> None:
        self._local, self._clock = local, clock
        self._built_in: dict[str, Base] = {}
        self._loaded: dict[tuple[str, str], Base | Absent] = {}
        self._loading = threading.Lock()

    # ---- adding -------------------------------------------------------------------------------------------------

    def build_in(self, name: str, path: Path) -> Base:
        base = read(name, path)
        self._built_in[name] = base
        return base

    def add(self, name: str, path: Path) -> Base:
        """Make a base known, at each start from now on. Raises `BaseUnknown`, `TensorsRefused`, `ParamsInvalid`."""
        if not 1 <= len(name) <= MAX_NAME or name.startswith(BASE) or not name.isprintable():
            raise ParamsInvalid(f"{name[:80]!r} can't be a base's name", field="name")
        if name in self._built_in:
            raise ParamsInvalid(f"{name!r} is the name of a base that orchd brings along", field="name")
        base = read(name, path.resolve())
        row = BaseHere(name=name, path=str(base.path), since=self._clock(), fingerprint=base.fingerprint)
        with self._loading:
            self._local.act("base.add", put(row), undoable=True)
            self._loaded[row.path, row.fingerprint] = base
        return base

    def remove(self, name: str) -> None:
        """Forget a base that was added; its files stay. Raises `BaseUnknown`."""
        if self._local.get(BaseHere, name) is None:
            raise BaseUnknown(f"no base {name[:80]!r} was added here", field="base")
        self._local.act("base.remove", delete(BaseHere, name), undoable=True)

    # ---- asking -------------------------------------------------------------------------------------------------

    def all(self) -> list[Base]:
        """Every base that can be used."""
        return [base for base in self._rows() if isinstance(base, Base)]

    def absent(self) -> list[Absent]:
        """Every base that was added and can't be used."""
        return [base for base in self._rows() if isinstance(base, Absent)]

    def get(self, text: str) -> Base:
        """By name, by fingerprint or its beginning, or by a fingerprint that is linked. Raises `BaseUnknown`."""
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
        raise BaseUnknown(f"no base {text[:80]!r} is here", field="base")

    def of(self, digest: bytes) -> Base | None:
        """The base with this fingerprint, or with one that is linked to it."""
        try:
            return self.get(text_id(BASE, digest))
        except BaseUnknown:
            return None

    def _rows(self) -> list[Base | Absent]:
        return [*self._built_in.values(), *map(self._load, self._local.all(BaseHere))]

    def _load(self, row: BaseHere) -> Base | Absent:
        with self._loading:
            key = row.path, row.fingerprint
            if key not in self._loaded:
                self._loaded[key] = _read_again(row)
            found = self._loaded[key]
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
        if isinstance(before, Absent):
            self._forget(before)
        known = before.parts if isinstance(before, Base) else {}
        parts = [
            Part(name=part, ok=digest == known.get(part, digest), detail=digest[:16])
            for part, digest in now.parts.items()
        ]
        same = now.fingerprint == before.fingerprint
        detail = now.fingerprint if same else f"{now.fingerprint}, not {before.fingerprint}"
        return before, [*parts, Part(name="fingerprint", ok=same, detail=detail)]

    def _forget(self, absent: Absent) -> None:
        """Files may have come back."""
        with self._loading:
            self._loaded.pop((absent.path, absent.fingerprint), None)

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
            raise BaseLinkRefused("these are one base already")
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
