"""A second reader of docs/SPEC-manifest.md and docs/SPEC-records.md, from these pages alone: nothing of orchd.

    python tests/vectors/independent.py        checks records.json and prints what differs

It needs `msgpack` and `cryptography`. Written to be read: copy it to start an implementation in another language.
"""

from __future__ import annotations

import base64
import hashlib
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Check = Callable[[Any], bool]
P = 2**255 - 19
SMALL_ORDER_Y = {
    0,
    1,
    P - 1,
    P,
    P + 1,
    2707385501144840649318225287225658788936804267575313519463743609750303402022,
    P - 2707385501144840649318225287225658788936804267575313519463743609750303402022,
}


class Refused(Exception):
    """This is no record; the text says why."""


# ---- the fields ------------------------------------------------------------------------------------------------


def number(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def text(low: int, high: int) -> Check:
    return lambda value: type(value) is str and low <= len(value) <= high


def data(length: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == length


def maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def many(check: Check, low: int = 0, high: int = 2**32) -> Check:
    return lambda value: type(value) is list and low <= len(value) <= high and all(map(check, value))


def fields(**checks: Check) -> Check:
    return lambda value: (
        type(value) is dict
        and value.keys() == checks.keys()
        and all(check(value[name]) for name, check in checks.items())
    )


def both(first: Check, second: Check) -> Check:
    return lambda value: first(value) and second(value)


def switch(value: Any) -> bool:
    return type(value) is bool


def anything(value: Any) -> bool:
    return type(value) is dict


COUNT, DIGEST, LABEL, PPM = number(0, 2**53), data(32), text(0, 120), number(0, 1_000_000)
INTEGER = number(-(2**63), 2**64 - 1)
MANIFEST = fields(
    name=text(1, 120),
    description=text(0, 4000),
    licence=LABEL,
    tags=many(LABEL),
    created_ms=COUNT,
    author=DIGEST,
    base=fields(fingerprint=DIGEST, hint=LABEL, architecture=LABEL),
    adapter=fields(
        format=LABEL,
        rank=number(1, 1024),
        alpha_milli=number(0, 2**40),
        rslora=switch,
        target_modules=many(LABEL),
        dtype=LABEL,
        parameters=COUNT,
        capabilities=many(LABEL),
    ),
    files=many(
        fields(path=LABEL, size=COUNT, sha256=DIGEST, chunk_size=number(4096, 4 << 20), chunks=many(DIGEST)),
    ),
    training=maybe(
        fields(
            method=LABEL,
            initial=maybe(DIGEST),
            relative_to=maybe(DIGEST),
            examples=COUNT,
            tokens=COUNT,
            steps=COUNT,
            seed=COUNT,
            software=LABEL,
            data_commitment=DIGEST,
        )
    ),
    evaluation=many(fields(metric=LABEL, value=COUNT, base_value=maybe(COUNT), examples=COUNT, split=LABEL)),
    leak=maybe(fields(method=LABEL, auc_ppm=PPM, verdict=LABEL)),
    lineage=maybe(
        fields(
            recipe=DIGEST,
            method=LABEL,
            rank=number(1, 1024),
            strength_ppm=number(0, 10**9),
            leaves=many(fields(id=DIGEST, weight_ppm=number(-(10**9), 10**9))),
            previous=maybe(DIGEST),
            outer=maybe(DIGEST),
            residual_ppm=PPM,
            tolerance_ppm=PPM,
        )
    ),
    round=maybe(fields(federation=DIGEST, number=COUNT)),
    routing=maybe(fields(layer=COUNT, scale=number(1, 2**40), centroid=many(INTEGER), spread=many(INTEGER))),
    supersedes=maybe(DIGEST),
    extra=anything,
)
ANNOUNCEMENT = fields(
    manifest=DIGEST,
    topics=many(text(1, 120), 1, 16),
    size=COUNT,
    created_ms=COUNT,
    base=DIGEST,
    author=DIGEST,
    seq=COUNT,
    extra=anything,
)
REVOCATION = fields(manifest=DIGEST, reason=text(0, 4000), created_ms=COUNT, author=DIGEST, extra=anything)
ATTESTATION = fields(
    manifest=DIGEST,
    evaluator=DIGEST,
    metric=LABEL,
    value=COUNT,
    base_value=maybe(COUNT),
    examples=COUNT,
    interval=COUNT,
    created_ms=COUNT,
    extra=anything,
)
ROTATION = both(
    fields(old=DIGEST, new=DIGEST, created_ms=COUNT, extra=anything), lambda value: value["old"] != value["new"]
)
FEDERATION = fields(
    topic=text(1, 120),
    base=DIGEST,
    rounds=number(1, 2**32),
    cadence_s=COUNT,
    min_members=number(1, 2**32),
    method=LABEL,
    rank=number(1, 1024),
    created_ms=COUNT,
    author=DIGEST,
    extra=anything,
)
ENVELOPE = fields(
    payload=lambda value: type(value) is bytes,
    type=lambda value: type(value) is str,
    signatures=many(fields(key=DIGEST, sig=data(64)), 1, 16),
)
#: The type's word, the id's prefix, the most bytes of an envelope, the fields, and who must have signed.
KINDS: dict[str, tuple[str, str, int, Check, tuple[str, ...]]] = {
    "manifest": ("manifest", "adp_", 1 << 20, MANIFEST, ("author",)),
    "announcement": ("announcement", "ann_", 8 << 10, ANNOUNCEMENT, ("author",)),
    "revocation": ("revocation", "rev_", 32 << 10, REVOCATION, ("author",)),
    "attestation": ("attestation", "att_", 8 << 10, ATTESTATION, ("evaluator",)),
    "rotation": ("rotation", "rot_", 8 << 10, ROTATION, ("old", "new")),
    "federation": ("federation", "fed_", 8 << 10, FEDERATION, ("author",)),
}


# ---- reading ---------------------------------------------------------------------------------------------------


def verify(envelope: bytes, kind: str) -> tuple[str, dict[str, Any]]:
    """The record's id and fields. Raises `Refused`."""
    word, prefix, limit, check, signers = KINDS[kind]
    wanted_type = f"application/vnd.orchd.{word}.v1+msgpack"
    if len(envelope) > limit:
        raise Refused("too large")
    outer = decode(envelope, ENVELOPE)
    if outer["type"] != wanted_type:
        raise Refused("another type")
    payload, name = outer["payload"], wanted_type.encode()
    message = b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)
    for signature in outer["signatures"]:
        check_signature(signature["key"], signature["sig"], message)
    record = decode(payload, check)
    if not {record[name] for name in signers} <= {signature["key"] for signature in outer["signatures"]}:
        raise Refused("somebody who must sign has not signed")
    digest = hashlib.sha256(payload).digest()
    return prefix + base64.b32encode(digest).decode().lower().rstrip("="), record


def check_signature(key: bytes, signature: bytes, message: bytes) -> None:
    if int.from_bytes(key, "little") % 2**255 in SMALL_ORDER_Y:
        raise Refused("a key of small order")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Refused("the signature does not hold") from None


def decode(packed: bytes, check: Check) -> dict[str, Any]:
    try:
        value = msgpack.unpackb(packed, strict_map_key=False)
        if check_plain(value, 0) > 65_536:
            raise Refused("too many values")
        again = encode(value)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Refused(f"not readable: {error}") from None
    if again != packed:
        raise Refused("not the deterministic form")
    if not check(value):
        raise Refused("a field is missing, unknown or out of bounds")
    return value  # type: ignore[no-any-return]


def check_plain(value: Any, depth: int) -> int:
    """How many values there are, keys not counted."""
    if depth > 16:
        raise Refused("nested too deeply")
    if type(value) is str:
        if not unicodedata.is_normalized("NFC", value):
            raise Refused("text that is not NFC")
        if any(unicodedata.category(letter) == "Cc" and letter not in "\t\n" for letter in value):
            raise Refused("text with control characters")
    elif type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise Refused("a key that is no text")
            check_plain(key, depth + 1)
        return 1 + sum(check_plain(item, depth + 1) for item in value.values())
    elif type(value) is list:
        return 1 + sum(check_plain(item, depth + 1) for item in value)
    elif value is not None and type(value) not in (bool, int, bytes):
        raise Refused(f"a {type(value).__name__}")
    return 1


def encode(value: Any) -> bytes:
    return msgpack.packb(in_order(value), use_bin_type=True)  # type: ignore[no-any-return]


def in_order(value: Any) -> Any:
    if type(value) is dict:
        return {key: in_order(value[key]) for key in sorted(value, key=lambda key: key.encode())}
    return [in_order(item) for item in value] if type(value) is list else value


def recipe(record: dict[str, Any]) -> bytes:
    """The digest that the lineage of an average must name."""
    lineage = record["lineage"]
    parts = {name: lineage[name] for name in ("method", "outer", "previous", "rank", "strength_ppm")}
    leaves = sorted([leaf["id"], leaf["weight_ppm"]] for leaf in lineage["leaves"])
    return hashlib.sha256(
        encode(parts | {"dtype": record["adapter"]["dtype"], "leaves": leaves, "version": 1})
    ).digest()


# ---- the vectors -----------------------------------------------------------------------------------------------


def differences() -> list[str]:
    """What this reader says about `records.json` other than what is written there."""
    found = []
    for vector in json.loads(Path(__file__).with_name("records.json").read_text("utf-8"))["vectors"]:
        try:
            answer = verify(bytes.fromhex(vector["envelope"]), vector["kind"])[0]
        except Refused:
            answer = None
        if answer != vector.get("id"):
            found.append(f"{vector['name']}: {answer} instead of {vector.get('id')}")
    return found


if __name__ == "__main__":
    print("\n".join(differences()) or "all as it should be")
