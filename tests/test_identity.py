"""Who is this node, who may read its key, and can its signature be made by anybody else?"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchd.errors import DiskFull, IdentityInvalid
from orchd.identity import SMALL_ORDER, Identity, verify

ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def _pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_new_identity_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "identity.pem"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path) == first
    assert first.author.startswith("key_")
    assert len(first.public_key) == 32


def test_only_its_owner_may_read_the_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Identity.load_or_create(tmp_path / "home" / "identity.pem")
    finally:
        os.umask(old)
    assert (tmp_path / "home" / "identity.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0


def test_nothing_but_the_key_is_left(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / "identity.pem")
    assert [path.name for path in tmp_path.iterdir()] == ["identity.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o610, 0o601])
def test_a_key_that_others_may_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityInvalid, match=f"{mode:o}") as caught:
        Identity.load_or_create(path)
    assert "chmod 600" in caught.value.hint


_ED, _EC = Ed25519PrivateKey.from_private_bytes(bytes(32)), ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key at all",
        _pem(_ED)[:-40],
        _pem(_ED).replace(b"PRIVATE", b"PUBLIC"),
        _pem(_ED)[:60] + b"!" + _pem(_ED)[61:],
        _pem(_EC),
        _pem(_ED, password=b"secret"),
    ],
    ids=["empty", "text", "cut", "relabelled", "flipped", "another-kind", "locked"],
)
def test_a_damaged_key_is_told_and_kept(tmp_path: Path, content: bytes) -> None:
    path = _write(tmp_path / "identity.pem", content)
    with pytest.raises(IdentityInvalid, match=r"identity\.pem"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_folder_or_a_dead_link_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(IdentityInvalid, match="folder"):
        Identity.load_or_create(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IdentityInvalid, match="link"):
        Identity.load_or_create(tmp_path / "link")


def test_many_creators_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    start, found = threading.Barrier(8), []

    def create() -> None:
        start.wait()
        found.append(Identity.load_or_create(path).public_key)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["identity.pem"]


def test_what_a_crashed_creator_left_is_not_in_the_way(tmp_path: Path) -> None:
    # In a container each start has the same process id.
    (tmp_path / f".identity.pem.{os.getpid()}").write_bytes(b"half")
    assert Identity.load_or_create(tmp_path / "identity.pem").author


def test_without_room_there_is_no_key_and_none_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            Identity.load_or_create(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    Identity.load_or_create(tmp_path / "key")


def test_the_private_half_does_not_show() -> None:
    identity = Identity.from_seed(bytes(range(32)))
    assert "private" not in repr(identity).lower()
    assert identity.private_seed() == bytes(range(32))


def test_rfc_8032_first_vector() -> None:
    identity = Identity.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signature_is_for_one_key_and_one_text() -> None:
    one, two = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1] * 32))
    signature = one.sign(b"text")
    assert verify(one.public_key, signature, b"text")
    assert not verify(two.public_key, signature, b"text")
    assert not verify(one.public_key, signature, b"texts")
    assert not verify(one.public_key, signature[:-1], b"text")
    assert not verify(one.public_key[:-1], signature, b"text")
    assert not any(
        verify(one.public_key, signature[:i] + bytes([signature[i] ^ 1]) + signature[i + 1 :], b"text")
        for i in range(64)
    )


def test_a_signature_has_one_form_only() -> None:
    """S + L satisfies the equation too; RFC 8032 (5.1.7) asks that it be refused."""
    identity = Identity.from_seed(bytes(32))
    signature = identity.sign(b"text")
    s = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    assert not verify(identity.public_key, signature[:32] + s.to_bytes(32, "little"), b"text")


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", sorted(SMALL_ORDER))
def test_a_key_that_everybody_can_sign_with_signs_nothing(y: int, sign: int) -> None:
    """With a key of small order, this signature (R the neutral point, S = 0) holds over one text in eight or all."""
    key, signature = (y | sign << 255).to_bytes(32, "little"), b"\1" + bytes(63)
    assert not any(verify(key, signature, b"%d" % number) for number in range(64))


def test_the_refused_keys_are_those_of_small_order() -> None:
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    root = pow(2, (p - 1) // 4, p)
    multiples: set[int] = set()
    for y in SMALL_ORDER:
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * root % p
        assert x * x % p == square, "on the curve"
        point = (x, y % p)
        for _ in range(3):  # doubling three times: [8]P
            a, b = point
            k = d * a * a * b * b
            point = (2 * a * b * pow(1 + k, -1, p) % p, (b * b + a * a) * pow(1 - k, -1, p) % p)
        assert point == (0, 1)
        multiples |= {y % p}
    assert len(multiples) == 5  # eight points; ±x share a y
