"""`adapter.verify` names every check of the door, says which fails and why, and goes on after one that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest

from orchd.cli.nouns.adapter import human_checks
from orchd.node import Node
from orchd.records import BaseRef, Revocation, sign
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.news import receive
from orchd.rpc.methods_adapters import AdapterNamed, AdapterVerified, adapter_verify
from tests.helpers import ALICE, Lab, Safetensors, lora_config, lora_tensors

NAMES = [
    "envelope and signature", "author", "revocation", "clock", "sizes", "file list", "digests", "header", "config",
    "tensors", "finite", "norms", "claims", "base",
]  # fmt: skip


async def verified(lab: Lab, id: str) -> AdapterVerified:
    node = cast(Node, SimpleNamespace(registry=lab.registry, clock=lambda: lab.now_ms))
    found = await adapter_verify(node, AdapterNamed(adapter=id))
    assert [check.name for check in found.checks] == NAMES
    assert found.ok == all(check.ok for check in found.checks)
    return found


def failed(found: AdapterVerified) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if not check.ok}


async def test_every_check_is_named_and_holds(lab: Lab) -> None:
    found = await verified(lab, lab.admit(lab.folder()).id)
    assert found.ok
    shown = human_checks(msgspec.to_builtins(found))
    assert all(name in shown for name in NAMES)
    assert ALICE.author in shown


def _write(blob: Path, data: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "fail", "said"),
    [
        (WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1]), {"digests"}, "chunk 0"),
        (WEIGHTS, lambda data: data[:-1], {"digests", "header", "tensors", "norms", "claims"}, "chunk 0"),
        (WEIGHTS, lambda data: b"", {"digests", "header", "tensors", "norms", "claims"}, "chunk 0"),
        (CONFIG, lambda data: data.replace(b'"r": 2', b'"r": 3'), {"digests", "tensors", "claims"}, "chunk 0"),
        (CONFIG, lambda data: b"{", {"digests", "config", "tensors", "norms", "claims"}, "chunk 0"),
    ],
)
async def test_damage_is_told_and_the_other_checks_go_on(
    lab: Lab, name: str, damage: Callable[[bytes], bytes], fail: set[str], said: str
) -> None:
    id = lab.admit(lab.folder(config=lora_config())).id
    blob = lab.registry.files(id)[name]
    _write(blob, damage(blob.read_bytes()))
    told = failed(await verified(lab, id))
    assert told.keys() - {"finite"} == fail
    assert name in told["digests"]
    assert said in told["digests"]


async def test_numbers_that_are_none_and_factors_of_other_shapes_crash_nothing(lab: Lab) -> None:
    id = lab.admit(lab.folder()).id
    blob = lab.registry.files(id)[WEIGHTS]
    tensors = lora_tensors()
    for name in list(tensors)[:2]:
        tensors[name] = np.full(tensors[name].size, np.nan, np.float32)
    _write(blob, Safetensors.of(tensors).file())
    assert {"digests", "tensors", "finite"} <= failed(await verified(lab, id)).keys()


async def test_a_lost_file_is_told_by_its_name(lab: Lab) -> None:
    id = lab.admit(lab.folder()).id
    lab.registry.files(id)[WEIGHTS].unlink()
    told = failed(await verified(lab, id))
    assert {"digests", "header", "tensors"} <= told.keys()
    assert WEIGHTS in told["digests"]


async def test_what_was_revoked_or_has_no_base_here_is_told(lab: Lab) -> None:
    folder = lab.folder()
    revoked = lab.admit(folder)
    record = Revocation(
        manifest=lab.registry.manifest(revoked.id).digest,
        reason="it learned names",
        created_ms=lab.now_ms,
        author=ALICE.public_key,
    )
    receive(lab.registry, sign(record, ALICE))
    told = failed(await verified(lab, revoked.id))
    assert told.keys() == {"revocation"}
    assert "it learned names" in told["revocation"]
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    other = lab.admit(folder, lab.claim(folder, base=stranger))
    assert failed(await verified(lab, other.id)).keys() == {"base"}
