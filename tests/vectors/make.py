"""Writes `records.json`: signed records, good and bad, with the verdict that every implementation must reach.

    python -m tests.vectors.make

Ed25519 is deterministic, so the file comes out the same each time (a test compares). Keys are the seeds 01…01, 02…02.
`refused` says which of four reasons orchd gives first: malformed, not_deterministic, signature, too_large. Another
implementation must refuse too; its reason may be another one where a record has several faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec

from orchd.average.recipe import recipe_digest
from orchd.records import (
    Announcement,
    Attestation,
    Federation,
    KeyRotation,
    Leaf,
    Lineage,
    Record,
    Revocation,
    Verified,
    sign,
)
from orchd.records.announcement import ANNOUNCEMENT_TYPE
from orchd.records.attestation import ATTESTATION_TYPE
from orchd.records.envelope import pre_authentication
from orchd.records.federation import FEDERATION_TYPE
from orchd.records.manifest import MANIFEST_TYPE, Leak, Manifest, Round, Routing
from orchd.records.revocation import REVOCATION_TYPE
from orchd.records.rotation import ROTATION_TYPE
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, envelope, manifest, pack, plain

FILE = Path(__file__).with_name("records.json")
KINDS: dict[type[Record], str] = {
    Manifest: "manifest",
    Announcement: "announcement",
    Revocation: "revocation",
    Attestation: "attestation",
    KeyRotation: "rotation",
    Federation: "federation",
}
ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519's base point


def main() -> None:
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    return json.dumps({"format": 1, "vectors": vectors()}, indent=1, ensure_ascii=False) + "\n"


def vectors() -> list[dict[str, Any]]:
    found = [*_valid(), *_invalid()]
    assert len({vector["name"] for vector in found}) == len(found)
    return found


def _vector(
    name: str, data: bytes, refused: str | None = None, id: str | None = None, kind: str = "manifest"
) -> dict[str, Any]:
    verdict: dict[str, Any] = {"valid": True, "id": id} if refused is None else {"valid": False, "refused": refused}
    return {"name": name, "kind": kind} | verdict | {"envelope": data.hex()}


# ---- good records ----------------------------------------------------------------------------------------------


def _valid() -> list[dict[str, Any]]:
    leaves, outer = ((b"\x05" * 32, 500_000), (b"\x06" * 32, 500_000)), b"\x08" * 32
    lineage = Lineage(
        recipe=recipe_digest(leaves, method="mean", rank=16, strength_ppm=1_000_000, dtype="BF16", outer=outer),
        method="mean",
        rank=16,
        strength_ppm=1_000_000,
        leaves=tuple(Leaf(id=id, weight_ppm=weight) for id, weight in leaves),
        previous=None,
        outer=outer,
        residual_ppm=1_234,
        tolerance_ppm=4_000,
    )
    full = manifest(
        name="both halves 🎉",
        training=None,
        leak=Leak(method="loss-threshold", auc_ppm=503_000, verdict="nothing found"),
        lineage=lineage,
        round=Round(federation=b"\x09" * 32, number=3),
        routing=Routing(layer=2, scale=1_000_000, centroid=(-12, 0, 2**31), spread=(1, 2, 3)),
        supersedes=b"\x0a" * 32,
    )
    newer = manifest(
        extra={"next": {"version": 2, "bytes": b"\x00\xff", "big": 2**64 - 1, "small": -(2**63), "": [None, True]}}
    )
    lowest = manifest(
        name="x", description="", licence="", tags=(), files=(), evaluation=(), created_ms=0, training=None
    )
    records: list[tuple[str, Manifest]] = [
        ("a trained adapter", manifest()),
        ("an average, every optional part present", full),
        ("extra from a newer writer", newer),
        ("the least that a manifest may hold", lowest),
        ("text of 120 code points, 480 bytes", manifest(name="😀" * 120)),
        ("text with tab and line feed", manifest(description="a\tb\n")),
        ("nested sixteen deep", manifest(extra={"a": _nested(14)})),
        (
            "what is more than a product",
            manifest(adapter=msgspec.structs.replace(manifest().adapter, capabilities=())),
        ),
        ("numbers at the edges of msgpack's integer forms", manifest(routing=_edges())),
    ]
    found = []
    for name, record in records:
        signed = sign(record, ALICE)
        found.append(_vector(name, signed.envelope, id=signed.id))
    payload = pack(plain(manifest()))
    cosigned = envelope(payload, BOB, ALICE)
    found.append(_vector("two signatures, the author's second", cosigned, id=sign(manifest(), ALICE).id))
    return found + [
        _vector(name, signed.envelope, id=signed.id, kind=KINDS[type(signed.record)]) for name, signed in small()
    ]


def small() -> list[tuple[str, Verified[Record]]]:
    """Good records of the five other kinds."""
    newer: dict[str, Any] = {"next": {"version": 2, "bytes": b"\x00\xff", "list": [1, -1, None, True, "ü"]}}
    replace = msgspec.structs.replace
    found: list[tuple[str, Verified[Record]]] = []
    for name, record in (
        ("an announcement", _announcement()),
        ("a revocation", _revocation()),
        ("a revocation without a reason", replace(_revocation(), reason="")),
        ("a revocation with a reason of 4000 code points, 16,000 bytes", replace(_revocation(), reason="😀" * 4000)),
        ("an attestation", _attestation()),
        ("an attestation without the base", replace(_attestation(), base_value=None, examples=0, value=2**53)),
        ("a federation", _federation()),
        ("a federation of one round and one member", replace(_federation(), rounds=1, min_members=1, cadence_s=0)),
    ):
        found.append((name, sign(record, ALICE)))
        if name in ("an announcement", "a revocation", "an attestation", "a federation"):
            found.append((f"{name} from a newer writer", sign(replace(record, extra=newer), ALICE)))
    found.append(("a key rotation, signed by both keys", sign(_rotation(), ALICE, BOB)))
    found.append(("a key rotation from a newer writer", sign(replace(_rotation(), extra=newer), ALICE, BOB)))
    found.append(("a revocation that a third party signed too", sign(_revocation(), ALICE, BOB)))
    return found


def _nested(depth: int) -> Any:
    inside: Any = None
    for _ in range(depth):
        inside = [inside]
    return inside


def _edges() -> Routing:
    powers = [2**bits + offset for bits in (5, 7, 8, 15, 16, 31, 32, 53) for offset in (-1, 0)]
    return Routing(layer=0, scale=1, centroid=tuple(sorted([*powers, *(-n - 1 for n in powers)])), spread=())


def _announcement() -> Announcement:
    return Announcement(
        manifest=sign(manifest(), ALICE).digest,
        topics=("orchd/demo", "größe"),
        size=70_400,
        created_ms=NOW_MS,
        base=bytes(range(32)),
        author=ALICE.public_key,
        seq=1,
    )


def _revocation() -> Revocation:
    return Revocation(
        manifest=sign(manifest(), ALICE).digest,
        reason="It was trained on the exam.\nDo not use it.",
        created_ms=NOW_MS,
        author=ALICE.public_key,
    )


def _attestation() -> Attestation:
    return Attestation(
        manifest=sign(manifest(), ALICE).digest,
        evaluator=ALICE.public_key,
        metric="loss",
        value=230_000,
        base_value=8_400_000,
        examples=64,
        interval=12_000,
        created_ms=NOW_MS,
    )


def _rotation() -> KeyRotation:
    return KeyRotation(old=ALICE.public_key, new=BOB.public_key, created_ms=NOW_MS)


def _federation() -> Federation:
    return Federation(
        topic="orchd/demo",
        base=bytes(range(32)),
        rounds=12,
        cadence_s=86_400,
        min_members=3,
        method="mean",
        rank=16,
        created_ms=NOW_MS,
        author=ALICE.public_key,
    )


# ---- bad records -----------------------------------------------------------------------------------------------


def _invalid() -> list[dict[str, Any]]:
    return [*_bad_signatures(), *_bad_payloads(), *_bad_envelopes(), *_bad_small_signatures(), *_bad_small_payloads()]


def _bad_signatures() -> list[dict[str, Any]]:
    good = sign(manifest(), ALICE).envelope
    parts = msgpack.unpackb(good)
    payload = parts["payload"]
    message = pre_authentication(MANIFEST_TYPE, payload)
    nobody = b"\x01" + bytes(31)

    def signed(*signatures: tuple[bytes, bytes], body: bytes = payload) -> bytes:
        return pack(parts | {"payload": body, "signatures": [{"key": key, "sig": sig} for key, sig in signatures]})

    honest = ALICE.sign(message)
    s_plus_order = (int.from_bytes(honest[32:], "little") + ORDER).to_bytes(32, "little")
    renamed = pack(plain(manifest(name="south-half")))
    relabelled = pack(parts | {"type": ANNOUNCEMENT_TYPE})
    return [
        _vector("one bit of the payload flipped", good.replace(b"north-half", b"north-hclf"), "signature"),
        _vector(
            "the name changed under the old signature", signed((ALICE.public_key, honest), body=renamed), "signature"
        ),
        _vector("signed by another key than the author's", signed((BOB.public_key, BOB.sign(message))), "signature"),
        _vector(
            "another key's signature under the author's key", signed((ALICE.public_key, BOB.sign(message))), "signature"
        ),
        _vector("signature over the bare payload", signed((ALICE.public_key, ALICE.sign(payload))), "signature"),
        _vector("signature over other bytes", envelope(payload, ALICE, signed=renamed), "signature"),
        _vector(
            "one bad signature beside the author's",
            signed((ALICE.public_key, honest), (BOB.public_key, bytes(64))),
            "signature",
        ),
        _vector("the signature's S not reduced", signed((ALICE.public_key, honest[:32] + s_plus_order)), "signature"),
        _vector(
            "a key of small order, for which one signature holds over every text",
            signed((nobody, b"\x01" + bytes(63)), body=pack(plain(manifest(author=nobody)))),
            "signature",
        ),
        _vector("a manifest relabelled as an announcement", relabelled, "signature", kind="announcement"),
    ]


def _bad_payloads() -> list[dict[str, Any]]:
    """Properly signed, and no manifest all the same."""
    fields = plain(manifest())
    good = pack(fields)
    backwards = msgpack.packb(dict(sorted(fields.items(), reverse=True)), use_bin_type=True)

    def changed(**changes: Any) -> bytes:
        return pack(fields | changes)

    def nested(part: str, **changes: Any) -> bytes:
        return changed(**{part: fields[part] | changes})

    def swapped(old: bytes, new: bytes) -> bytes:
        assert good.count(old) == 1
        return good.replace(old, new)

    bad: list[tuple[str, bytes, str]] = [
        ("keys in another order", backwards, "not_deterministic"),
        ("a key twice", b"\xde\x00\x12" + good[3:] + b"\xaasupersedes\xc0", "not_deterministic"),
        (
            "an integer in a longer form than it needs",
            swapped(b"\xa4rank\x10", b"\xa4rank\xcc\x10"),
            "not_deterministic",
        ),
        (
            "a text in a longer form than it needs",
            swapped(b"\xaanorth-half", b"\xd9\x0anorth-half"),
            "not_deterministic",
        ),
        (
            "a map in a longer form than it needs",
            swapped(b"\xa5extra\x80", b"\xa5extra\xde\x00\x00"),
            "not_deterministic",
        ),
        (
            "bytes in a longer form than they need",
            swapped(b"\xabfingerprint\xc4\x20", b"\xabfingerprint\xc5\x00\x20"),
            "not_deterministic",
        ),
        ("a byte after the record", good + b"\xc0", "malformed"),
        ("the last byte missing", good[:-1], "malformed"),
        ("no bytes", b"", "malformed"),
        ("an unknown field", changed(zz=1), "malformed"),
        ("an unknown field inside", nested("adapter", zz=1), "malformed"),
        ("a missing field", pack({key: fields[key] for key in fields if key != "licence"}), "malformed"),
        ("a field name as bytes", swapped(b"\xa4name", b"\xc4\x04name"), "malformed"),
        ("null for a number", changed(created_ms=None), "malformed"),
        ("true for a number", changed(created_ms=True), "malformed"),
        ("a float for a number", changed(created_ms=1.0), "malformed"),
        ("a negative number", changed(created_ms=-1), "malformed"),
        ("a number above 2^53", changed(created_ms=2**53 + 1), "malformed"),
        ("a rank of 0", nested("adapter", rank=0), "malformed"),
        ("a rank of 1025", nested("adapter", rank=1025), "malformed"),
        ("a digest of 31 bytes", nested("base", fingerprint=bytes(31)), "malformed"),
        ("a digest as text", nested("base", fingerprint="0" * 32), "malformed"),
        ("a text as bytes", changed(name=b"north"), "malformed"),
        ("an empty name", changed(name=""), "malformed"),
        ("a name of 121 code points", changed(name="x" * 121), "malformed"),
        ("text that is not NFC", changed(name="gro\u0308\u00dfe"), "malformed"),
        ("text with an escape sequence", changed(name="a\x1b[2J"), "malformed"),
        ("text with a carriage return", changed(description="a\rb"), "malformed"),
        ("text that is not UTF-8", swapped(b"north-half", b"north-h\xffl"[:10].ljust(10, b"f")), "malformed"),
        ("a float under extra", changed(extra={"a": 0.5}), "malformed"),
        ("a float that is no number under extra", changed(extra={"a": float("nan")}), "malformed"),
        ("an extension type under extra", changed(extra={"a": msgpack.ExtType(5, b"x")}), "malformed"),
        ("a timestamp under extra", changed(extra={"a": msgpack.Timestamp(5, 0)}), "not_deterministic"),
        ("a number as a key under extra", changed(extra={"a": {1: 2}}), "malformed"),
        ("text that is not NFC as a key under extra", changed(extra={"u\u0308": 1}), "malformed"),
        ("nested seventeen deep", changed(extra={"a": _nested(15)}), "malformed"),
        (
            "nested ten thousand deep",
            swapped(b"\xa5extra\x80", b"\xa5extra\x81\xa1a" + b"\x91" * 10_000 + b"\xc0"),
            "malformed",
        ),
        (
            "a list that says it has 2^32 - 1 items",
            swapped(b"\xa5extra\x80", b"\xa5extra\x81\xa1a\xdd\xff\xff\xff\xff"),
            "malformed",
        ),
    ]
    return [_vector(name, envelope(payload, ALICE), refused) for name, payload, refused in bad]


def _bad_envelopes() -> list[dict[str, Any]]:
    good = sign(manifest(), ALICE).envelope
    parts = msgpack.unpackb(good)
    announcement = plain(_announcement())
    long = ["😀" * 120] * 17
    topics = envelope(pack(announcement | {"topics": []}), ALICE, type=ANNOUNCEMENT_TYPE)
    many = envelope(pack(announcement | {"topics": long[:16]}), ALICE, type=ANNOUNCEMENT_TYPE)
    return [
        _vector("an announcement where a manifest is wanted", sign(_announcement(), ALICE).envelope, "malformed"),
        _vector(
            "version 2 of the type",
            envelope(parts["payload"], ALICE, type=MANIFEST_TYPE.replace("v1", "v2")),
            "malformed",
        ),
        _vector("no signature", pack(parts | {"signatures": []}), "malformed"),
        _vector("seventeen signatures", pack(parts | {"signatures": parts["signatures"] * 17}), "malformed"),
        _vector(
            "a signature of 63 bytes",
            pack(parts | {"signatures": [parts["signatures"][0] | {"sig": bytes(63)}]}),
            "malformed",
        ),
        _vector("an unknown field in the envelope", pack(parts | {"zz": 1}), "malformed"),
        _vector(
            "the envelope's keys in another order", msgpack.packb(dict(reversed(parts.items()))), "not_deterministic"
        ),
        _vector("a byte after the envelope", good + b"\x00", "malformed"),
        _vector("the bare payload", parts["payload"], "malformed"),
        _vector("an announcement under no topic", topics, "malformed", kind="announcement"),
        _vector("an announcement of more than 8 KiB", many + bytes(600), "too_large", kind="announcement"),
    ]


def _bad_small_signatures() -> list[dict[str, Any]]:
    """Records of the four small kinds that the wrong people signed, or that say they are of another kind."""
    rotation, revocation = pack(plain(_rotation())), pack(plain(_revocation()))
    moved = pack(plain(_rotation()) | {"new": MALLORY.public_key})
    only = [
        ("a key rotation that only the old key signed", envelope(rotation, ALICE, type=ROTATION_TYPE), "rotation"),
        ("a key rotation that only the new key signed", envelope(rotation, BOB, type=ROTATION_TYPE), "rotation"),
        (
            "a key rotation to another key under the old signatures",
            envelope(moved, ALICE, BOB, type=ROTATION_TYPE, signed=rotation),
            "rotation",
        ),
        (
            "a revocation by somebody who is not its author",
            envelope(revocation, BOB, type=REVOCATION_TYPE),
            "revocation",
        ),
        (
            "an attestation in another evaluator's name",
            envelope(pack(plain(_attestation())), BOB, type=ATTESTATION_TYPE),
            "attestation",
        ),
        (
            "a federation in another author's name",
            envelope(pack(plain(_federation())), BOB, type=FEDERATION_TYPE),
            "federation",
        ),
        (
            "a revocation relabelled as an attestation",
            pack(msgpack.unpackb(envelope(revocation, ALICE, type=REVOCATION_TYPE)) | {"type": ATTESTATION_TYPE}),
            "attestation",
        ),
    ]
    return [_vector(name, data, "signature", kind=kind) for name, data, kind in only]


def _bad_small_payloads() -> list[dict[str, Any]]:
    """Properly signed, and no record of that kind all the same."""
    changes: list[tuple[Record, str, list[tuple[str, dict[str, Any]]]]] = [
        (
            _revocation(),
            REVOCATION_TYPE,
            [
                ("of no adapter", {"manifest": b""}),
                ("with a reason of 4001 code points", {"reason": "x" * 4001}),
                ("with an escape sequence", {"reason": "\x1b[2J"}),
            ],
        ),
        (
            _attestation(),
            ATTESTATION_TYPE,
            [
                ("of a negative value", {"value": -1}),
                ("of a float", {"value": 0.23}),
                ("of more than 2^53", {"base_value": 2**53 + 1}),
                ("without an interval", {"interval": None}),
            ],
        ),
        (
            _rotation(),
            ROTATION_TYPE,
            [("to the same key", {"new": ALICE.public_key}), ("to a key of 31 bytes", {"new": bytes(31)})],
        ),
        (
            _federation(),
            FEDERATION_TYPE,
            [
                ("of no round", {"rounds": 0}),
                ("of no member", {"min_members": 0}),
                ("of rank 0", {"rank": 0}),
                ("of rank 1025", {"rank": 1025}),
                ("without a topic", {"topic": ""}),
                ("of 2^32 + 1 rounds", {"rounds": 2**32 + 1}),
            ],
        ),
        (_announcement(), ANNOUNCEMENT_TYPE, []),
    ]
    found = []
    for record, type, own in changes:
        fields, kind = plain(record), KINDS[record.__class__]

        def add(what: str, payload: bytes, refused: str = "malformed", kind: str = kind, type: str = type) -> None:
            found.append(_vector(f"{kind} {what}", envelope(payload, ALICE, BOB, type=type), refused, kind=kind))

        for what, change in own:
            add(what, pack(fields | change))
        add("with an unknown field", pack(fields | {"zz": 1}))
        add("without `extra`", pack({key: fields[key] for key in fields if key != "extra"}), "not_deterministic")
        add("with a float under extra", pack(fields | {"extra": {"a": 0.5}}))
        add("with its keys backwards", msgpack.packb(dict(sorted(fields.items(), reverse=True))), "not_deterministic")
        add("that is too large", pack(fields | {"extra": {"a": bytes(32 << 10)}}), "too_large")
    return found


if __name__ == "__main__":
    main()
