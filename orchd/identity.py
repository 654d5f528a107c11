"""The node's Ed25519 key: who signs its records, and who it is on the network.

RFC 8032 signatures through `cryptography`. The key file is PKCS #8 PEM, mode 0600; nothing else is ever written
about it, and it never leaves the machine.
"""

from __future__ import annotations

import base64
import errno
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from orchd.errors import DiskFull, IdentityInvalid
from orchd.paths import sync

KEY_PREFIX = "key_"
#: y of the points of small order (p and p + 1 are other forms of 0 and 1). With such a key anybody's bytes verify:
#: an all-zero signature holds over every text. RFC 8032 does not forbid them, OpenSSL takes them.
_P = 2**255 - 19
_ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
SMALL_ORDER = frozenset({0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8})


@dataclass(frozen=True)
class Identity:
    """A key pair. `public_key` is 32 bytes; the private half stays inside."""

    public_key: bytes
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte private seed (RFC 8032)."""
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The identity in `path`, made there first when nothing is.

        Raises `IdentityInvalid` when the file can't be read as an Ed25519 key or others may read it, `DiskFull`.
        """
        try:
            return cls._load(path)
        except FileNotFoundError:
            pass
        try:
            _write_key(path, Ed25519PrivateKey.generate())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no room for the key file {path}") from None
            raise
        try:
            return cls._load(path)
        except FileNotFoundError:
            raise IdentityInvalid(f"the key file {path} is a link to nothing") from None

    @classmethod
    def make_next(cls, path: Path) -> Identity:
        """The key that is to follow the one in `path`, kept beside it until `adopt_next`."""
        return cls.load_or_create(_next(path))

    @classmethod
    def next_of(cls, path: Path) -> Identity | None:
        """The key that was to follow when the process ended. Raises `IdentityInvalid`."""
        try:
            return cls._load(_next(path))
        except FileNotFoundError:
            return None

    @classmethod
    def adopt_next(cls, path: Path, now_ms: int) -> Path:
        """Make the next key the one in `path`; where the old one lies from now on."""
        retired = path.with_name(f"{path.name}.retired-{now_ms}")
        os.link(path, retired)
        os.replace(_next(path), path)
        sync(path.parent)
        return retired

    @classmethod
    def drop_next(cls, path: Path) -> None:
        """The change of keys was never told to anybody."""
        _next(path).unlink(missing_ok=True)

    @classmethod
    def _load(cls, path: Path) -> Identity:
        try:
            mode, text = path.stat().st_mode & 0o777, path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise IdentityInvalid(f"the key file {path} can't be read: {error.strerror}") from None
        if mode & 0o077:
            raise IdentityInvalid(
                f"the key file {path} is readable by others (mode {mode:o})",
                hint=f"Run `chmod 600 {path}`, and consider whether somebody has copied it.",
            )
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityInvalid(f"the key file {path} is no key: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityInvalid(f"the key file {path} holds no Ed25519 key")
        return cls._of(key)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Identity:
        return cls(public_key=key.public_key().public_bytes_raw(), _private=key)

    @property
    def author(self) -> str:
        return author_text(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """A 64-byte signature."""
        return self._private.sign(data)

    def private_seed(self) -> bytes:
        """The 32-byte seed, for the network's key pair; never to be written or sent."""
        return self._private.private_bytes_raw()


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (64 bytes) over `data` is by `public_key` (32 bytes), a key that only one can sign with."""
    if int.from_bytes(public_key, "little") & (2**255 - 1) in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def author_text(public_key: bytes) -> str:
    """`key_…`: a public key as people see it (base32, lower case, no padding)."""
    return KEY_PREFIX + base64.b32encode(public_key).decode().lower().rstrip("=")


def _write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Atomic and durable: a crash leaves a whole key or none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # A name of its own (mode 0600): two creators, or what a crash left, are never in the way.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, a link never replaces a key that appeared meanwhile
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
    sync(path.parent)


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
