"""Signing and verifying: Ed25519 over the DSSE pre-authentication encoding.

DSSE: https://github.com/secure-systems-lab/dsse (protocol.md, version 1). Verification works on the bytes as they
came; decoding follows it. What comes out is a `Verified` record, another type than the bytes that went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, cast

import msgspec
from msgspec import Meta

from orchd import identity
from orchd.errors import RecordMalformed, RecordTooLarge, SignatureInvalid
from orchd.identity import Identity, author_text
from orchd.records import codec, ids
from orchd.records.announcement import ANNOUNCEMENT_LIMIT, ANNOUNCEMENT_TYPE, Announcement
from orchd.records.attestation import ATTESTATION_LIMIT, ATTESTATION_TYPE, Attestation
from orchd.records.federation import FEDERATION_LIMIT, FEDERATION_TYPE, Federation
from orchd.records.ids import sha256, text_id
from orchd.records.manifest import MANIFEST_LIMIT, MANIFEST_TYPE, Key, Manifest
from orchd.records.revocation import REVOCATION_LIMIT, REVOCATION_TYPE, Revocation
from orchd.records.rotation import ROTATION_LIMIT, ROTATION_TYPE, KeyRotation

MAX_SIGNATURES = 16
Record = Manifest | Announcement | Revocation | Attestation | KeyRotation | Federation
R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class _Kind:
    type: str
    prefix: str
    limit: int  # bytes of an envelope


_KINDS: dict[type, _Kind] = {
    Manifest: _Kind(MANIFEST_TYPE, ids.ADAPTER, MANIFEST_LIMIT),
    Announcement: _Kind(ANNOUNCEMENT_TYPE, ids.ANNOUNCEMENT, ANNOUNCEMENT_LIMIT),
    Revocation: _Kind(REVOCATION_TYPE, ids.REVOCATION, REVOCATION_LIMIT),
    Attestation: _Kind(ATTESTATION_TYPE, ids.ATTESTATION, ATTESTATION_LIMIT),
    KeyRotation: _Kind(ROTATION_TYPE, ids.ROTATION, ROTATION_LIMIT),
    Federation: _Kind(FEDERATION_TYPE, ids.FEDERATION, FEDERATION_LIMIT),
}
_BY_TYPE: dict[str, type[Record]] = {kind.type: record for record, kind in _KINDS.items()}
LARGEST = max(kind.limit for kind in _KINDS.values())  # bytes


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: Key
    sig: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    payload: bytes
    type: str
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]


for _each in (Envelope, *_KINDS):
    msgspec.msgpack.Decoder(_each)  # seen once: two threads that were the first to decode a type, msgspec 0.22, SIGSEGV


@dataclass(frozen=True)
class Verified(Generic[R_co]):
    """A record whose author's signature holds. `envelope` is the bytes as received, `digest` the 32 bytes of its id.

    `signers` are the public keys (32 bytes) of everybody who signed, the author among them; each signature holds.
    """

    record: R_co
    digest: bytes
    envelope: bytes
    signers: frozenset[bytes]

    @property
    def id(self) -> str:
        return text_id(_KINDS[type(self.record)].prefix, self.digest)

    @property
    def author(self) -> str:
        return author_text(self.record.author)

    @property
    def cosigners(self) -> tuple[str, ...]:
        """Who else has signed, in the order of the keys' texts."""
        return tuple(sorted(author_text(key) for key in self.signers - {self.record.author}))

    def of(self, kind: type[S]) -> Verified[S] | None:
        """This record if it is of that kind, else None."""
        return cast(Verified[S], self) if isinstance(self.record, kind) else None


def sign(record: R, signer: Identity, *cosigners: Identity) -> Verified[R]:
    """The record in an envelope signed by its author, and by whoever else.

    Raises `SignatureInvalid` when `signer` is not the author, or a key that must sign too (that of a rotation) has not.
    """
    if record.author != signer.public_key:
        raise SignatureInvalid("a record is signed by its author, and by nobody else in their place")
    kind = _KINDS[type(record)]
    payload = codec.encode(record)
    signatures = tuple(_signature(who, kind.type, payload) for who in (signer, *cosigners))
    envelope = codec.encode(Envelope(payload=payload, type=kind.type, signatures=signatures))
    return verify(envelope, type(record))


def cosign(envelope: bytes, signer: Identity) -> bytes:
    """The same record with one signature more; the same bytes when `signer` has signed already.

    Raises what `verify` raises, and `RecordTooLarge` when there is room for no other signature.
    """
    verified = verify_any(envelope)
    if signer.public_key in verified.signers:
        return envelope
    outer = codec.decode(envelope, Envelope)
    if len(outer.signatures) == MAX_SIGNATURES:
        raise RecordTooLarge(f"the record has {MAX_SIGNATURES} signatures already")
    signatures = (*outer.signatures, _signature(signer, outer.type, outer.payload))
    return verify_any(codec.encode(msgspec.structs.replace(outer, signatures=signatures))).envelope


def verify(envelope: bytes, wanted: type[R]) -> Verified[R]:
    """The record in `envelope`, if every signature holds and the author's is among them.

    Raises `RecordTooLarge`, `RecordMalformed`, `RecordNotDeterministic` or `SignatureInvalid`.
    """
    kind = _KINDS[wanted]
    _check_size(envelope, kind.limit)
    outer = codec.decode(envelope, Envelope)
    if outer.type != kind.type:
        raise RecordMalformed(f"the record's type is {outer.type[:80]!r}, not {kind.type!r}")
    return _verify(outer, envelope, wanted)


def verify_any(envelope: bytes) -> Verified[Record]:
    """The record in `envelope`, of whatever kind its type names. Raises what `verify` raises."""
    _check_size(envelope, LARGEST)
    outer = codec.decode(envelope, Envelope)
    wanted = _BY_TYPE.get(outer.type)
    if wanted is None:
        raise RecordMalformed(f"the record's type {outer.type[:80]!r} is not known")
    _check_size(envelope, _KINDS[wanted].limit)
    return _verify(outer, envelope, wanted)


def _verify(outer: Envelope, envelope: bytes, wanted: type[R]) -> Verified[R]:
    message = pre_authentication(outer.type, outer.payload)
    for signature in outer.signatures:
        if not identity.verify(signature.key, signature.sig, message):
            raise SignatureInvalid(f"the signature by {author_text(signature.key)} does not hold")
    record = codec.decode(outer.payload, wanted)
    signers = frozenset(signature.key for signature in outer.signatures)
    for key in _must_sign(record):
        if key not in signers:
            who = "author" if key == record.author else "new key"
            raise SignatureInvalid(f"the {who} {author_text(key)} has not signed it")
    return Verified(record=record, digest=sha256(outer.payload), envelope=envelope, signers=signers)


def _must_sign(record: Record) -> tuple[bytes, ...]:
    return (record.old, record.new) if isinstance(record, KeyRotation) else (record.author,)


def _signature(signer: Identity, type: str, payload: bytes) -> Signature:
    return Signature(key=signer.public_key, sig=signer.sign(pre_authentication(type, payload)))


def _check_size(envelope: bytes, limit: int) -> None:
    if len(envelope) > limit:
        raise RecordTooLarge(f"{len(envelope)} bytes; at most {limit} are taken")


def pre_authentication(payload_type: str, body: bytes) -> bytes:
    """`"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body`, lengths in decimal."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)
