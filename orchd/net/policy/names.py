"""What a topic's name says, and how a member of a private one proves itself.

A topic's kind is in its name, so that every node agrees on it and nothing else need be told or kept:

    NAME                 public: on the DHT, whoever knows the name may take part
    base/FINGERPRINT     public: those who have that base
    lan/LABEL            only on this network: never on the DHT, told to nobody who comes from further away
    private/LABEL/TAG    only for those who have its secret

TAG comes from the secret, so the name, and with it the key on the DHT, can't be guessed, and says nothing of the
secret. Who only knows the name or the key is no member: a member proves the secret to each peer, for that pair of
peers and that direction alone. Noise has proven the two peers' ids before, so a proof that is told on is of no use to
anybody else. Who has left keeps the secret; to shut somebody out, make a new topic.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import unicodedata
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from orchd.errors import InviteInvalid, SecretWeak, TopicInvalid

PRIVATE, LAN, BASE = "private/", "lan/", "base/"
#: Bytes of a secret, characters of the tag that is made of it, and characters of a label, at most.
SECRET_SIZE, TAG_SIZE, LABEL_LIMIT = 32, 26, 60
#: How an invitation begins; characters of a whole one, at most; bytes of its check; addresses in it.
INVITE, INVITE_LIMIT, CHECK_SIZE, INVITE_ADDRESSES = "orchd-topic-1.", 4096, 4, 6

#: What an invitation that lost its first letters, or its capitals, still has.
OF_INVITE = re.compile(r"rchd-topic|topic-1\.[\w-]{8}", re.IGNORECASE)
#: A word that may be a piece of one: so many characters (a shorter piece leaves 128 bits of the secret untold), so many
#: of them capitals and small letters each, and such a share of them where base64 jumps between capitals, small letters
#: and digits as names do not.
WORD, CASES, JUMPS_SHARE = re.compile(r"[\w-]{22,}", re.ASCII), 3, 0.25
JUMPS = re.compile(r"(?=[a-z][A-Z0-9]|[0-9][A-Za-z]|[A-Z][0-9]|[A-Z][A-Z][a-z])")


#: Random bytes of a secret's size have fewer different ones than this once in 10¹⁰.
DISTINCT = 16


class Kind(StrEnum):
    PUBLIC = "public"
    BASE = "base"
    LAN = "lan"
    PRIVATE = "private"


@lru_cache(maxsize=4096)  # asked for every record and peer
def kind_of(name: str) -> Kind:
    if name.startswith(PRIVATE):
        return Kind.PRIVATE
    if name.startswith(LAN):
        return Kind.LAN
    return Kind.BASE if name.startswith(BASE) else Kind.PUBLIC


def is_open(name: str) -> bool:
    """Whether anybody may know the topic and take part."""
    return kind_of(name) in (Kind.PUBLIC, Kind.BASE)


def spelled(text: str) -> str:
    """A topic's name in Unicode form NFC, which all nodes agree on.

    Raises `TopicInvalid` for a prefix in capitals, which would be a public topic, and `InviteInvalid`, without
    repeating it, for what looks like a piece of an invitation: a public topic's name is told to everybody.
    """
    name = unicodedata.normalize("NFC", text)
    for prefix in (PRIVATE, LAN, BASE):
        if name.casefold().startswith(prefix) and not name.startswith(prefix):
            hint = f"Write {prefix!r} in small letters; otherwise it would be the name of a public topic."
            raise TopicInvalid(f"{name[:80]!r} begins almost like {prefix!r}", hint=hint, field="topic")
    if is_piece(name):
        hint = "Give the whole line that `orchctl topic invite` printed. As a name it would be told to every peer."
        raise InviteInvalid("this looks like a part of an invitation, which is a secret", hint=hint, field="topic")
    return name


def is_piece(name: str) -> bool:
    """Whether a name looks like an invitation that was mistyped or cut."""
    if OF_INVITE.search(name):
        return True
    return kind_of(name) in (Kind.PUBLIC, Kind.LAN) and any(map(_is_coded, WORD.findall(name)))


def _is_coded(word: str) -> bool:
    """Whether a word looks like base64 more than like something that somebody would call a topic."""
    capitals, smalls = sum(map(str.isupper, word)), sum(map(str.islower, word))
    return min(capitals, smalls) >= CASES and len(JUMPS.findall(word)) >= JUMPS_SHARE * len(word)


def separately(topics: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Topics that one record may name together: the open ones, and each closed one alone, so that members of the
    others do not learn its name."""
    together = tuple(name for name in topics if is_open(name))
    return ([together] if together else []) + [(name,) for name in topics if not is_open(name)]


def private_name(label: str, secret: bytes) -> str:
    """The name that everybody with this secret gives the topic. Raises `TopicInvalid`."""
    printable = label.isprintable() and label == label.strip() and unicodedata.is_normalized("NFC", label)
    if not 1 <= len(label) <= LABEL_LIMIT or "/" in label or not printable:
        raise TopicInvalid(
            f"{label[:80]!r} can't be a private topic's name",
            hint=f"That has 1 to {LABEL_LIMIT} printable characters, no '/', and no space at its ends.",
            field="topic",
        )
    tag = hmac.digest(secret, b"orchd/topic/tag/" + label.encode(), "sha256")[:16]
    return f"{PRIVATE}{label}/{base64.b32encode(tag).decode().lower().rstrip('=')}"


def check_secret(name: str, secret: bytes | None) -> None:
    """Whether a topic may be joined with this secret. Raises `TopicInvalid`."""
    if kind_of(name) is Kind.PRIVATE and (secret is None or private_name(label_of(name), secret) != name):
        hint = "Join it with the line that `orchctl topic invite` printed on a member's node."
        raise TopicInvalid(f"{name[:80]!r} is private: its name is not enough", hint=hint, field="topic")


def label_of(name: str) -> str:
    """What the user calls the topic."""
    return name.removeprefix(PRIVATE).rpartition("/")[0] if kind_of(name) is Kind.PRIVATE else name


def proof(secret: bytes, sender: bytes, receiver: bytes) -> bytes:
    """What `sender` tells `receiver` (bytes of peer ids) to show that it knows the secret: 32 bytes."""
    text = b"orchd/topic/member/" + len(sender).to_bytes(2, "big") + sender + receiver
    return hmac.digest(secret, text, "sha256")


# ---- invitations ---------------------------------------------------------------------------------------------


class Invite(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that a new member needs. Whoever has it is a member. `addresses` are multiaddrs with peer ids."""

    label: Annotated[str, Meta(max_length=LABEL_LIMIT)]
    secret: Annotated[bytes, Meta(min_length=SECRET_SIZE, max_length=SECRET_SIZE)]
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=INVITE_ADDRESSES)]

    @property
    def name(self) -> str:
        return private_name(self.label, self.secret)


def invitation(invite: Invite) -> str:
    """As one word of letters, digits, `-`, `_` and `.`."""
    body = msgspec.msgpack.encode(invite)
    return INVITE + base64.urlsafe_b64encode(_check(body) + body).decode().rstrip("=")


def parse_invitation(text: str) -> Invite:
    """Raises `InviteInvalid` or `SecretWeak`, without repeating what may be a secret."""
    if not text.startswith(INVITE) or len(text) > INVITE_LIMIT:
        raise InviteInvalid(f"no invitation: one begins with {INVITE} and is one word", field="topic")
    packed = text.removeprefix(INVITE)
    try:
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    check, body = raw[:CHECK_SIZE], raw[CHECK_SIZE:]
    if not body or check != _check(body):
        raise InviteInvalid("the invitation is damaged: characters are missing or changed", field="topic")
    try:
        invite = msgspec.msgpack.decode(body, type=Invite)
    except msgspec.MsgspecError as error:
        raise InviteInvalid(f"the invitation is not one that this orchd reads: {error}", field="topic") from None
    if is_weak(invite.secret):
        raise SecretWeak(f"the secret of {invite.label!r} in this invitation is not random", field="topic")
    return invite


def is_weak(secret: bytes) -> bool:
    """Whether a secret is plainly not random bytes, so that it may be worth less than 128 bits: text (a phrase, hex),
    bytes that repeat themselves, or ones that count up or down."""
    steps = bytes((b - a) % 256 for a, b in pairwise(secret))
    is_text = all(0x20 <= byte < 0x7F for byte in secret)
    return len(secret) < SECRET_SIZE or is_text or min(len(set(secret)), len(set(steps))) < DISTINCT


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"orchd/topic/invite/" + body).digest()[:CHECK_SIZE]
