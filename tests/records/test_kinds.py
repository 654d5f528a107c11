"""Do the five small kinds of records come back whole, and does nothing else pass for one of them?"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import (
    RecordMalformed,
    RecordNotDeterministic,
    RecordTooLarge,
    SignatureInvalid,
)
from orchd.identity import Identity
from orchd.records import (
    Attestation,
    KeyRotation,
    Manifest,
    Record,
    Revocation,
    Verified,
    cosign,
    sign,
    verify,
    verify_any,
)
from orchd.records.envelope import LARGEST, MAX_SIGNATURES
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, envelope, manifest, pack, plain
from tests.vectors import make

RECORD_ERRORS = (RecordMalformed, RecordNotDeterministic, SignatureInvalid, RecordTooLarge)
REVOCATION = Revocation(manifest=bytes(32), reason="wrong", created_ms=NOW_MS, author=ALICE.public_key)
ATTESTATION = Attestation(
    manifest=bytes(32),
    evaluator=ALICE.public_key,
    metric="loss",
    value=1,
    base_value=None,
    examples=1,
    interval=0,
    created_ms=NOW_MS,
)
ROTATION = KeyRotation(old=ALICE.public_key, new=BOB.public_key, created_ms=NOW_MS)
SIGNED: list[Verified[Record]] = [signed for _, signed in make.small()]
fuzz = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def _refused(data: bytes) -> bool:
    try:
        verify_any(data)
    except RECORD_ERRORS:
        return True
    return False


@pytest.mark.parametrize("signed", SIGNED, ids=lambda signed: signed.id[:12])
def test_a_signed_record_comes_back_whole(signed: Verified[Record]) -> None:
    assert verify_any(signed.envelope) == signed
    assert signed.author == ALICE.author
    assert signed.of(type(signed.record)) is signed
    assert signed.of(Manifest) is None


@pytest.mark.parametrize("signed", SIGNED, ids=lambda signed: signed.id[:12])
def test_a_record_is_of_one_kind_alone(signed: Verified[Record]) -> None:
    for other in (Manifest, Revocation, Attestation, KeyRotation):
        if not isinstance(signed.record, other):
            with pytest.raises((RecordMalformed, RecordTooLarge)):
                verify(signed.envelope, other)


def test_a_record_is_whoevers_field_says() -> None:
    assert sign(ATTESTATION, ALICE).author == ALICE.author
    rotated = sign(ROTATION, ALICE, BOB)
    assert (rotated.author, rotated.cosigners) == (ALICE.author, (BOB.author,))
    for record in (ATTESTATION, REVOCATION, ROTATION):
        with pytest.raises(SignatureInvalid):
            sign(record, BOB)


def test_both_keys_sign_a_rotation_whatever_the_order() -> None:
    payload = pack(plain(ROTATION))
    type = msgpack.unpackb(sign(ROTATION, ALICE, BOB).envelope)["type"]
    assert verify(envelope(payload, BOB, ALICE, type=type), KeyRotation).author == ALICE.author
    for signers in ((ALICE,), (BOB,), (ALICE, MALLORY)):
        with pytest.raises(SignatureInvalid, match="has not signed"):
            verify(envelope(payload, *signers, type=type), KeyRotation)
    with pytest.raises(SignatureInvalid, match="new key"):
        sign(ROTATION, ALICE)


def test_no_key_is_rotated_to_itself() -> None:
    with pytest.raises(ValueError, match="same"):
        KeyRotation(old=ALICE.public_key, new=ALICE.public_key, created_ms=NOW_MS)


# ---- co-signatures -------------------------------------------------------------------------------------------


def test_a_co_signature_changes_neither_id_nor_author() -> None:
    signed = sign(manifest(), ALICE)
    both = verify_any(cosign(signed.envelope, BOB))
    assert (both.id, both.author, both.record) == (signed.id, signed.author, signed.record)
    assert both.cosigners == (BOB.author,)
    assert signed.cosigners == ()
    three = verify_any(cosign(both.envelope, MALLORY))
    assert three.cosigners == tuple(sorted([BOB.author, MALLORY.author]))
    assert three.signers == {ALICE.public_key, BOB.public_key, MALLORY.public_key}


def test_who_signed_already_signs_no_second_time() -> None:
    signed = sign(REVOCATION, ALICE, BOB).envelope
    assert cosign(signed, ALICE) == cosign(signed, BOB) == signed


def test_one_name_counts_once_however_often_it_signed() -> None:
    payload = pack(plain(manifest()))
    assert verify(envelope(payload, ALICE, BOB, BOB, BOB), Manifest).cosigners == (BOB.author,)


def test_there_is_room_for_sixteen_signatures() -> None:
    crowd = [Identity.from_seed(bytes([number]) * 32) for number in range(40, 40 + MAX_SIGNATURES)]
    signed = sign(REVOCATION, ALICE).envelope
    for signer in crowd[1:]:
        signed = cosign(signed, signer)
    assert len(verify_any(signed).signers) == MAX_SIGNATURES
    with pytest.raises(RecordTooLarge, match="16"):
        cosign(signed, crowd[0])


def test_nothing_that_does_not_verify_is_co_signed() -> None:
    spoilt = bytearray(sign(REVOCATION, ALICE).envelope)
    spoilt[spoilt.index(b"wrong")] ^= 1
    with pytest.raises(SignatureInvalid):
        cosign(bytes(spoilt), BOB)


# ---- hostile bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", SIGNED[::3], ids=lambda signed: signed.id[:12])
def test_every_byte_counts(signed: Verified[Record]) -> None:
    honest = signed.envelope[:2000]
    for position in range(len(honest)):
        data = bytearray(signed.envelope)
        data[position] ^= 1 << position % 8
        assert _refused(bytes(data)), position
        assert _refused(signed.envelope[:position])


def test_a_type_that_nobody_knows_is_refused() -> None:
    payload = pack(plain(REVOCATION))
    for type in ("", "application/vnd.orchd.revocation.v2+msgpack", "application/vnd.orchd.promise.v1+msgpack"):
        with pytest.raises(RecordMalformed, match="not known"):
            verify_any(envelope(payload, ALICE, type=type))


def test_each_kind_has_a_limit_of_its_own() -> None:
    with pytest.raises(RecordTooLarge):
        verify_any(bytes(LARGEST + 1))
    with pytest.raises(RecordTooLarge):
        sign(msgspec.structs.replace(ATTESTATION, extra={"a": bytes(8 << 10)}), ALICE)
    assert sign(msgspec.structs.replace(REVOCATION, extra={"a": bytes(8 << 10)}), ALICE)


@fuzz
@given(st.data())
def test_a_record_with_a_piece_replaced_is_refused(data: st.DataObject) -> None:
    honest = data.draw(st.sampled_from(SIGNED)).envelope
    start = data.draw(st.integers(0, len(honest)))
    length = data.draw(st.integers(0, 40))
    replaced = honest[:start] + data.draw(st.binary(max_size=40)) + honest[start + length :]
    assert replaced == honest or _refused(replaced)


_FUZZED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(st.sampled_from(SIGNED), st.data())
def test_signed_nonsense_is_refused_or_taken_as_it_is(signed: Verified[Record], data: st.DataObject) -> None:
    """An author may sign what they like: what is taken is exactly the bytes that were signed."""
    fields: dict[Any, Any] = plain(signed.record)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_FUZZED)
    try:
        payload = msgpack.packb(fields, use_bin_type=True)
    except (OverflowError, ValueError, TypeError):
        return
    type = msgpack.unpackb(signed.envelope)["type"]
    try:
        verified = verify_any(envelope(payload, ALICE, BOB, type=type))
    except RECORD_ERRORS:
        return
    assert pack(plain(verified.record)) == payload


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _refused(data)
    for signed in SIGNED[::4]:
        assert _refused(envelope(data, ALICE, BOB, type=msgpack.unpackb(signed.envelope)["type"]))
