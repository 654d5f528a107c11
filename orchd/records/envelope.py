"""Signing and verifying: Ed25519 over the DSSE pre-authentication encoding.

DSSE: https://github.com/secure-systems-lab/dsse (protocol.md, version 1). Verification works on the bytes as they
came; decoding follows it. What comes out is a `Verified` record, another type than the bytes that went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from orchd import identity
from orchd.errors import RecordMalformed, RecordTooLarge, SignatureInvalid
from orchd.identity import Identity, author_text
from orchd.records import codec
from orchd.records.announcement import ANNOUNCEMENT_LIMIT, ANNOUNCEMENT_TYPE, Announcement
from orchd.records.ids import ADAPTER, ANNOUNCEMENT, sha256, text_id
from orchd.records.manifest import MANIFEST_LIMIT, MANIFEST_TYPE, Key, Manifest

MAX_SIGNATURES = 16
R = TypeVar("R", Manifest, Announcement)


@dataclass(frozen=True)
class _Kind:
    type: str
    prefix: str
    limit: int  # bytes of an envelope


_KINDS: dict[type, _Kind] = {
    Manifest: _Kind(MANIFEST_TYPE, ADAPTER, MANIFEST_LIMIT),
    Announcement: _Kind(ANNOUNCEMENT_TYPE, ANNOUNCEMENT, ANNOUNCEMENT_LIMIT),
}


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: Key
    sig: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    payload: bytes
    type: str
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]


@dataclass(frozen=True)
class Verified(Generic[R]):
    """A record whose author's signature holds. `envelope` is the bytes as received, `digest` the 32 bytes of its id."""

    record: R
    digest: bytes
    envelope: bytes

    @property
    def id(self) -> str:
        return text_id(_KINDS[type(self.record)].prefix, self.digest)

    @property
    def author(self) -> str:
        return author_text(self.record.author)


def sign(record: R, signer: Identity) -> Verified[R]:
    """The record in an envelope signed by its author. Raises `SignatureInvalid` when `signer` is somebody else."""
    if record.author != signer.public_key:
        raise SignatureInvalid("a record is signed by its author, and by nobody else in their place")
    kind = _KINDS[type(record)]
    payload = codec.encode(record)
    signature = Signature(key=signer.public_key, sig=signer.sign(pre_authentication(kind.type, payload)))
    envelope = codec.encode(Envelope(payload=payload, type=kind.type, signatures=(signature,)))
    return verify(envelope, type(record))


def verify(envelope: bytes, wanted: type[R]) -> Verified[R]:
    """The record in `envelope`, if every signature holds and the author's is among them.

    Raises `RecordTooLarge`, `RecordMalformed`, `RecordNotDeterministic` or `SignatureInvalid`.
    """
    kind = _KINDS[wanted]
    if len(envelope) > kind.limit:
        raise RecordTooLarge(f"{len(envelope)} bytes; at most {kind.limit} are taken")
    outer = codec.decode(envelope, Envelope)
    if outer.type != kind.type:
        raise RecordMalformed(f"the record's type is {outer.type[:80]!r}, not {kind.type!r}")
    message = pre_authentication(outer.type, outer.payload)
    for signature in outer.signatures:
        if not identity.verify(signature.key, signature.sig, message):
            raise SignatureInvalid(f"the signature by {author_text(signature.key)} does not hold")
    record = codec.decode(outer.payload, wanted)
    if record.author not in {signature.key for signature in outer.signatures}:
        raise SignatureInvalid(f"the author {author_text(record.author)} has not signed it")
    return Verified(record=record, digest=sha256(outer.payload), envelope=envelope)


def pre_authentication(payload_type: str, body: bytes) -> bytes:
    """`"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body`, lengths in decimal."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)
