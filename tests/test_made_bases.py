"""Bases that a training of whole weights made: kept once, used like others, never told of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchd import made_bases
from orchd.errors import BaseIsPrivate, BaseUnchanged, BaseUnknown, ParamsInvalid
from orchd.node import Node
from orchd.train.specs import TrainSpec
from tests.helpers import Lab


@pytest.fixture
def node(lab: Lab) -> Node:
    return cast(Node, SimpleNamespace(registry=lab.registry, paths=SimpleNamespace(data=lab.root / "data")))


@pytest.fixture
def folder(lab: Lab) -> Path:
    """What a worker wrote: the lab's base with another weight, marked as private."""
    made = lab.root / "work" / "base"
    shutil.copytree(lab.base.path, made)
    weights = made / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\x11\x3e"
    weights.write_bytes(data)
    (made / "RECORD.json").write_text(json.dumps({"licence": "MIT", "private": True}))
    return made


def test_it_is_a_base_like_others_that_nobody_is_told_of(node: Node, lab: Lab, folder: Path) -> None:
    made = made_bases.keep(node, "mine", "job_1", folder)
    base = lab.registry.base("mine")
    assert (base.fingerprint, str(base.path), base.licence) == (made.fingerprint, made.path, "MIT")
    assert base.fingerprint != lab.base.fingerprint
    assert base in lab.registry.bases()
    assert base not in made_bases.announced(lab.registry.bases())
    assert lab.base.name in [one.name for one in made_bases.announced(lab.registry.bases())]


def test_a_daemon_that_died_meanwhile_finds_it(node: Node, lab: Lab, folder: Path) -> None:
    first = made_bases.keep(node, "mine", "job_1", folder)
    assert made_bases.keep(node, "mine", "job_1", folder) == first
    shutil.rmtree(folder)
    assert made_bases.keep(node, "mine", "job_1", folder) == first
    assert [base.name for base in lab.registry.bases()].count("mine") == 1
    with pytest.raises(BaseUnknown):
        lab.registry.base("mine-2")


def test_a_name_that_was_taken_meanwhile(node: Node, lab: Lab, folder: Path) -> None:
    assert made_bases.keep(node, lab.base.name, "job_1", folder).name == f"{lab.base.name}-2"


def test_a_base_that_is_none_of_its_own_is_not_kept(node: Node, lab: Lab, folder: Path) -> None:
    """A change below BF16's rounding leaves the fingerprint: a private base would pass for the one it came from."""
    shutil.copyfile(lab.base.path / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(BaseUnchanged, match=lab.base.name):
        made_bases.keep(node, "mine", "job_1", folder)
    assert made_bases.announced(lab.registry.bases()) == lab.registry.bases()
    assert not (node.paths.data / made_bases.FOLDER / "job_1").exists()


def test_a_name_that_is_taken_is_told_before(node: Node, lab: Lab) -> None:
    spec = TrainSpec(base="", dataset="", method="full")
    made_bases.check_start(node, lab.base, "free", spec)
    with pytest.raises(ParamsInvalid, match="called") as refused:
        made_bases.check_start(node, lab.base, lab.base.name, spec)
    assert refused.value.field == "name"


def test_an_adapter_for_it_can_not_be_shared(node: Node, lab: Lab, folder: Path) -> None:
    made = made_bases.keep(node, "mine", "job_1", folder)
    row = lab.admit(lab.folder(), origin="trained").row
    made_bases.check_publishable(lab.registry, row)
    private = SimpleNamespace(name="a", base=made.fingerprint)
    with pytest.raises(BaseIsPrivate, match="mine"):
        made_bases.check_publishable(lab.registry, private)  # type: ignore[arg-type]
