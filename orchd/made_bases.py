"""Bases that a training of whole weights made: kept here, used like any other base, and never announced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchd.errors import BaseIsPrivate, BaseUnchanged, ParamsInvalid
from orchd.paths import sync
from orchd.registry import AdapterRow, Base, Registry
from orchd.registry.known_bases import read
from orchd.train.specs import TrainSpec

if TYPE_CHECKING:
    from orchd.node import Node

FOLDER = "bases"
BYTES_PER_STEP = 12
"""A checkpoint of whole weights: float32, with AdamW's two moments."""

BYTES_PER_GOOD = 4
BYTES_AT_LAST = 2
"""What is left is BF16."""


class MadeBase(msgspec.Struct, frozen=True, kw_only=True):
    """A new base of this node's. `parameters` of it were trained."""

    name: str
    fingerprint: str
    path: str
    parameters: int


def check_start(node: Node, base: Base, name: str, spec: TrainSpec) -> None:
    """Before a training of whole weights: is the name free for a base, and is there room? Raises `ParamsInvalid`,
    `DiskFull`."""
    if name in _names(node):
        hint = "Give another with `--name`: what comes out is a base, and takes the name."
        raise ParamsInvalid(f"a base is called {name!r} already", hint=hint, field="name")
    goods = spec.checkpointing.keep_best + 1
    each = 2 * BYTES_PER_STEP + goods * BYTES_PER_GOOD + BYTES_AT_LAST
    node.registry.blobs.check_room(each * base.parameters)


def keep(node: Node, name: str, run: str, folder: Path) -> MadeBase:
    """Take in what the run's worker wrote. A daemon that died in between finds it here. Raises `BaseUnchanged` where it
    has the fingerprint of one that may be announced: the two could not be told apart."""
    target = node.paths.data / FOLDER / run
    if folder.is_dir() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"new-{run}")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(folder, draft)
        for path in (*draft.iterdir(), draft):
            sync(path)
        os.replace(draft, target)
        sync(target.parent)
    known = node.registry.known_bases
    for one in known.all():
        if one.path == target.resolve():
            return _made(one)
    fingerprint = read(name, target).fingerprint
    for one in known.all():
        if one.fingerprint == fingerprint and not one.private:
            shutil.rmtree(target, ignore_errors=True)
            raise BaseUnchanged(f"what came out has the fingerprint of {one.name}", field="learning_rate")
    return _made(known.add(_free(name, _names(node)), target))


def _names(node: Node) -> set[str]:
    known = node.registry.known_bases
    return {one.name for one in known.all()} | {one.name for one in known.absent()}


def _free(name: str, taken: set[str]) -> str:
    """It may have been taken while the training ran."""
    return next(
        one for number in range(1, len(taken) + 2) if (one := name if number == 1 else f"{name}-{number}") not in taken
    )


def _made(base: Base) -> MadeBase:
    return MadeBase(name=base.name, fingerprint=base.fingerprint, path=str(base.path), parameters=base.parameters)


def announced(bases: Sequence[Base]) -> list[Base]:
    """Those that others may be told of."""
    return [base for base in bases if not base.private]


def check_publishable(registry: Registry, row: AdapterRow) -> None:
    """Raises `BaseIsPrivate` for an adapter that nobody else could use."""
    base = next((one for one in registry.bases() if one.fingerprint == row.base), None)
    if base is not None and base.private:
        raise BaseIsPrivate(
            f"{row.name} is for the base {base.name}, which was made here and stays here", field="adapter"
        )
