"""A relay changes one byte of a manifest while it passes it on: in a name, in a digest, in any other field."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.errors import SignatureInvalid
from orchd.records import Leaf, Lineage, Manifest, sign
from orchd.records.manifest import Leak, Round, Routing
from tests.attacks.door import assert_refused
from tests.helpers import ALICE, Lab, envelope, pack, plain

FULL = {
    "leak": Leak(method="loss", auc_ppm=500_000, verdict="chance"),
    "lineage": Lineage(
        recipe=bytes(32),
        method="mean",
        rank=2,
        strength_ppm=1_000_000,
        leaves=(Leaf(id=bytes(32), weight_ppm=1_000_000),),
        previous=bytes(32),
        outer=bytes(32),
        residual_ppm=0,
        tolerance_ppm=100,
    ),
    "round": Round(federation=bytes(32), number=1),
    "routing": Routing(layer=1, scale=1000, centroid=(1, 2), spread=(3, 4)),
    "supersedes": bytes(32),
    "extra": {"v2": {"x": 1}},
}


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The place of every value in a tree of maps and lists."""
    if isinstance(value, dict):
        return [place for key, item in value.items() for place in _fields(item, (*path, key))]
    if isinstance(value, list | tuple):
        return [place for key, item in enumerate(value) for place in _fields(item, (*path, key))]
    return [path]


def _tampered(tree: Any, path: tuple[str | int, ...]) -> Any:
    """The same tree with one byte of the value at `path` changed, and still of its type."""
    if path:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        changed = {key: _tampered(item, path[1:]) if key == path[0] else item for key, item in items}
        return changed if isinstance(tree, dict) else list(changed.values())
    match tree:
        case bool():
            return not tree
        case int():
            return tree + 1
        case str():
            return tree[:-1] + ("y" if tree.endswith("x") else "x")
        case bytes():
            return tree[:-1] + bytes([tree[-1] ^ 1])
    return 0  # null


def test_the_signature_no_longer_holds_whichever_field_it_is(lab: Lab) -> None:
    folder = lab.folder()
    claim: Manifest = lab.claim(folder, **FULL)
    tree = plain(claim)
    places = _fields(tree)
    assert {place[0] for place in places} == set(Manifest.__struct_fields__)
    for place in places:
        forged = envelope(pack(_tampered(tree, place)), ALICE, signed=pack(tree))
        assert "does not hold" in assert_refused(lab, SignatureInvalid, forged, folder)


def test_every_byte_of_the_payload_is_signed(lab: Lab) -> None:
    folder = lab.folder()
    signed = sign(lab.claim(folder), ALICE)
    payload = msgspec.msgpack.decode(signed.envelope)["payload"]
    for position in range(0, len(payload), 97):
        changed = payload[:position] + bytes([payload[position] ^ 1]) + payload[position + 1 :]
        assert_refused(lab, SignatureInvalid, signed.envelope.replace(payload, changed), folder)


def test_a_name_in_the_bytes_as_they_travel(lab: Lab) -> None:
    folder = lab.folder()
    honest = sign(lab.claim(folder, name="safe-to-use"), ALICE).envelope
    tampered = honest.replace(b"safe-to-use", b"best-to-use")
    assert "does not hold" in assert_refused(lab, SignatureInvalid, tampered, folder)
