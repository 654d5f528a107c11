"""The words of `/orchd/exchange/1`. Sans-I/O: bytes in, values out.

A frame is its length in four bytes, big-endian, and that many bytes of msgpack: one map with a key `op`. A reader
knows the largest frame it will take before it reads one, unknown fields are refused, and every field has bounds.
Digests and topic keys are 32 bytes; a topic key is SHA-256 of `orchd/topic/` and the name.
"""

from __future__ import annotations

import hashlib
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from orchd.errors import PeerBusy, PeerMisbehaved, PeerQuota, PeerRefused, TopicInvalid
from orchd.net.policy.repair import Parts
from orchd.records.manifest import MANIFEST_LIMIT, Count, Digest
from orchd.records.revocation import REVOCATION_LIMIT

PROTOCOL = "/orchd/exchange/1"
#: Bytes of a blob in one answer, at most: the largest chunk that a manifest may have.
RANGE_LIMIT = 4 << 20
#: Records in one message, bytes of all of them and of one, and topics of one node, at most.
RECORDS_LIMIT, RECORDS_SIZE, RECORD_LIMIT, TOPICS_LIMIT = 64, 512 << 10, REVOCATION_LIMIT, 256
#: A frame's bytes, at most, in either direction.
REQUEST_LIMIT = RECORDS_SIZE + RECORDS_LIMIT * 8 + 4096
REPLY_LIMIT = max(MANIFEST_LIMIT, REQUEST_LIMIT) + 4096
HEADER = struct.Struct(">I")
TOPIC_NAME_LIMIT = 120

Topics = Annotated[tuple[Digest, ...], Meta(max_length=TOPICS_LIMIT)]
Records = Annotated[tuple[Annotated[bytes, Meta(max_length=RECORD_LIMIT)], ...], Meta(max_length=RECORDS_LIMIT)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    pass


# ---- requests ------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """These are my topics, all that you may know of. Answered by `Hello`.

    `proofs`: one for each private topic, HMAC-SHA256 under its secret (`policy/names.py`). `as_of_ms`: when the
    sender's topics changed last, in milliseconds since 1970; of two that overtook each other the newer one counts.
    """

    topics: Topics
    proofs: Topics = ()
    as_of_ms: Annotated[int, Meta(ge=0)] = 0


class Push(_Message, frozen=True, kw_only=True, tag="push"):
    """Signed records of any kind but manifests. Answered by `Done`. `repair`: no news, but what you lacked."""

    records: Records
    repair: bool = False


class GetManifest(_Message, frozen=True, kw_only=True, tag="manifest"):
    """The signed manifest of an adapter that is here. Answered by `Manifest` or `Failed`."""

    adapter: Digest


class GetRange(_Message, frozen=True, kw_only=True, tag="range"):
    """Bytes of one file of an adapter. Answered by `Range` or `Failed`."""

    adapter: Digest
    blob: Digest
    offset: Count
    length: Annotated[int, Meta(ge=1, le=RANGE_LIMIT)]


class TopicParts(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What to say of the records under one topic (`policy/repair.py`)."""

    topic: Digest
    parts: Parts


Sets = Annotated[tuple[TopicParts, ...], Meta(max_length=TOPICS_LIMIT)]


class Reconcile(_Message, frozen=True, kw_only=True, tag="reconcile"):
    """Do we know the same under these topics? Answered by `Reconciled`."""

    sets: Sets


class GetRecords(_Message, frozen=True, kw_only=True, tag="get_records"):
    """Signed records by id, as far as they are under any of these topics. Answered by `RecordsAre`."""

    topics: Topics
    ids: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=RECORDS_LIMIT)]


class OpenBulk(_Message, frozen=True, kw_only=True, tag="bulk"):
    """A way to ask for an adapter's ranges outside of libp2p (`bulk.py`). Answered by `BulkAt` or `Failed`."""

    adapter: Digest


# ---- replies -------------------------------------------------------------------------------------------------


class Done(_Message, frozen=True, kw_only=True, tag="done"):
    pass


class Reconciled(_Message, frozen=True, kw_only=True, tag="reconciled"):
    """Of those topics that both take part in; no parts at all mean: the same."""

    sets: Sets


class RecordsAre(_Message, frozen=True, kw_only=True, tag="records_are"):
    """As many of them as are here and fit, in any order."""

    records: Records


class ManifestIs(_Message, frozen=True, kw_only=True, tag="manifest_is"):
    envelope: Annotated[bytes, Meta(max_length=MANIFEST_LIMIT)]


class Range(_Message, frozen=True, kw_only=True, tag="bytes"):
    """So many bytes follow this frame, in none themselves: fewer than were asked for at the file's end alone."""

    length: Annotated[int, Meta(ge=0, le=RANGE_LIMIT)]


class BulkAt(_Message, frozen=True, kw_only=True, tag="bulk_at"):
    """`port` of the address at which the peer is connected; a token for one use within ten seconds; the digest of the
    certificate that is shown there."""

    port: Annotated[int, Meta(ge=1, le=65_535)]
    token: Digest
    certificate: Digest


class Failed(_Message, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """`reason` is one of unknown, busy (ask again later), quota (not within the hour), malformed, failed.

    `after_s`, of a quota: seconds until as much would be given; 0 when that is not known, or never.
    """

    reason: Annotated[str, Meta(max_length=40)]
    after_s: Annotated[int, Meta(ge=0, le=86_400)] = 0


UNKNOWN, BUSY, QUOTA, MALFORMED, BROKEN = "unknown", "busy", "quota", "malformed", "failed"


def refusal(peer: object, failed: Failed) -> PeerRefused:
    """What a `Failed` means to whoever asked."""
    if failed.reason == QUOTA:
        error = PeerQuota(f"{peer} has given this node its share (net.upload_quota_mb there) for now")
        error.after_s = failed.after_s
        return error
    if failed.reason == BUSY:
        return PeerBusy(f"{peer} serves others at the moment: it answers {BUSY!r}")
    return PeerRefused(f"{peer} answers: {failed.reason}")


Request = Hello | Push | Reconcile | GetRecords | GetManifest | GetRange | OpenBulk
Reply = Hello | Done | Reconciled | RecordsAre | ManifestIs | Range | BulkAt | Failed
_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """A frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def decode_request(body: bytes) -> Request:
    """The request in a frame's body. Raises `PeerMisbehaved`."""
    try:
        request: Request = _requests.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerMisbehaved(f"no request: {str(error)[:200]}") from None
    return request


def decode_reply(body: bytes) -> Reply:
    """The reply in a frame's body. Raises `PeerMisbehaved`."""
    try:
        reply: Reply = _replies.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerMisbehaved(f"no reply: {str(error)[:200]}") from None
    return reply


class Frames:
    """Cuts a stream of bytes into frames of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def waiting(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def next(self) -> bytes | None:
        """The next whole frame's body, or None. Raises `PeerMisbehaved` for one that says it is too large."""
        if len(self._buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._buffer)
        if length > self._limit:
            raise PeerMisbehaved(f"a frame of {length} bytes; at most {self._limit} are taken")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return body

    def take(self, most: int) -> bytes:
        """What has come of the raw bytes that follow a frame."""
        data = bytes(memoryview(self._buffer)[:most])
        del self._buffer[:most]
        return data


def batches(envelopes: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Records in their order, in parts that one message holds."""
    part: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if part and (len(part) == RECORDS_LIMIT or size + len(envelope) > RECORDS_SIZE):
            yield tuple(part)
            part, size = [], 0
        part.append(envelope)
        size += len(envelope)
    if part:
        yield tuple(part)


def topic_key(name: str) -> bytes:
    """The 32 bytes under which a topic is on the DHT and between peers. Raises `TopicInvalid`."""
    if not 1 <= len(name) <= TOPIC_NAME_LIMIT or not unicodedata.is_normalized("NFC", name):
        raise TopicInvalid(f"{name[:40]!r} is no name for a topic", field="topic")
    return hashlib.sha256(b"orchd/topic/" + name.encode()).digest()
