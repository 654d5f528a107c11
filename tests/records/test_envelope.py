"""Can anything but the author's own bytes pass for the author's record?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import (
    ParamsInvalid,
    RecordMalformed,
    RecordNotDeterministic,
    RecordTooLarge,
    SignatureInvalid,
)
from orchd.identity import Identity
from orchd.records import Announcement, Manifest, parse_id, sign, text_id, verify
from orchd.records.announcement import ANNOUNCEMENT_TYPE
from orchd.records.envelope import MAX_SIGNATURES, pre_authentication
from orchd.records.ids import ADAPTER, sha256
from orchd.records.manifest import MANIFEST_TYPE
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, envelope, manifest, pack, plain

HONEST = sign(manifest(), ALICE)
PAYLOAD: bytes = msgpack.unpackb(HONEST.envelope)["payload"]
ANNOUNCEMENT = Announcement(
    manifest=HONEST.digest,
    topics=("orchd/demo",),
    size=70_400,
    created_ms=NOW_MS,
    base=bytes(range(32)),
    author=ALICE.public_key,
    seq=1,
)

fuzz = settings(max_examples=200, deadline=None, derandomize=True, database=None)


RECORD_ERRORS = (RecordMalformed, RecordNotDeterministic, SignatureInvalid, RecordTooLarge)


def _refused(data: bytes) -> bool:
    try:
        verify(data, Manifest)
    except RECORD_ERRORS:
        return True
    return False


def _refused_or_taken_as_it_is(payload: bytes) -> bool:
    """An author may sign nonsense; the strict decode refuses it, or takes it as exactly these bytes."""
    try:
        verified = verify(envelope(payload, ALICE), Manifest)
    except RECORD_ERRORS:
        return True
    return pack(plain(verified.record)) == payload


# ---- honest records ------------------------------------------------------------------------------------------


def test_a_signed_manifest_comes_back_whole() -> None:
    verified = verify(HONEST.envelope, Manifest)
    assert verified == HONEST
    assert verified.record == manifest()
    assert verified.author == ALICE.author
    assert verified.id == text_id(ADAPTER, sha256(PAYLOAD))
    assert parse_id(verified.id, ADAPTER) == verified.digest


def test_signing_twice_gives_the_same_bytes() -> None:
    assert sign(manifest(), ALICE).envelope == HONEST.envelope


def test_a_signed_announcement_comes_back_whole() -> None:
    verified = sign(ANNOUNCEMENT, ALICE)
    assert verify(verified.envelope, Announcement).record == ANNOUNCEMENT
    assert verified.id.startswith("ann_")


def test_a_verified_record_can_not_be_changed() -> None:
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        HONEST.record = manifest(name="other")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        HONEST.record.name = "other"  # type: ignore[misc]


def test_the_envelope_is_not_part_of_the_id() -> None:
    cosigned = envelope(PAYLOAD, ALICE, BOB)
    assert verify(cosigned, Manifest).id == HONEST.id
    assert verify(envelope(PAYLOAD, BOB, ALICE), Manifest).author == ALICE.author


def test_what_a_newer_writer_puts_under_extra_is_kept() -> None:
    extra = {"orchd.next": {"version": 2, "blob": b"\x00\xff", "list": [1, -1, None, True, "ü"]}}
    verified = verify(sign(manifest(extra=extra), ALICE).envelope, Manifest)
    assert verified.record.extra == extra
    assert sign(verified.record, ALICE).digest == verified.digest


def test_the_pre_authentication_encoding_is_dsses() -> None:
    assert pre_authentication("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # the example of DSSE's protocol.md
    )


# ---- tampered bytes ------------------------------------------------------------------------------------------


def test_every_bit_counts() -> None:
    for position in range(len(HONEST.envelope)):
        for bit in range(8):
            data = bytearray(HONEST.envelope)
            data[position] ^= 1 << bit
            assert _refused(bytes(data)), (position, bit)


def test_every_cut_loss_doubling_and_addition_is_seen() -> None:
    data = HONEST.envelope
    for position in range(len(data)):
        assert _refused(data[:position])
        assert _refused(data[:position] + data[position + 1 :])
        doubled = data[: position + 1] + data[position:]
        assert _refused(doubled)
    assert all(_refused(data + bytes([byte])) for byte in range(256))
    assert all(_refused(bytes([byte]) + data) for byte in range(256))


@fuzz
@given(
    st.integers(0, len(HONEST.envelope)),
    st.integers(0, 40),
    st.binary(max_size=40),
    st.integers(0, len(HONEST.envelope)),
)
def test_a_record_with_a_piece_replaced_is_refused(start: int, length: int, piece: bytes, other: int) -> None:
    data = HONEST.envelope
    replaced = data[:start] + piece + data[start + length :]
    moved = data[:start] + data[other : other + length] + data[start + length :]
    assert replaced == data or _refused(replaced)
    assert moved == data or _refused(moved)


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _refused(data)
    assert _refused(envelope(data, ALICE))


# ---- every field, changed and told under the old signature ---------------------------------------------------


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each single value lies in maps and lists."""
    if isinstance(value, dict) and value:
        return [found for key, item in value.items() for found in _paths(item, (*path, key))]
    if isinstance(value, list | tuple) and value:
        return [found for number, item in enumerate(value) for found in _paths(item, (*path, number))]
    return [path]


def _changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(value[path[0]], path[1:], change)
    return copy


def _other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case None:
            return bytes(32)
        case dict():
            return {"x": 1}
        case _:
            return ["x"]


PLAIN = plain(manifest())


@pytest.mark.parametrize("path", _paths(PLAIN), ids=lambda path: ".".join(map(str, path)))
def test_a_changed_field_under_the_old_signature_is_refused(path: tuple[Any, ...]) -> None:
    changed = pack(_changed(PLAIN, path, _other))
    assert changed != PAYLOAD
    honest = msgpack.unpackb(HONEST.envelope)
    with pytest.raises(SignatureInvalid):
        verify(pack(honest | {"payload": changed}), Manifest)


# ---- well signed, and still no manifest ----------------------------------------------------------------------


@pytest.mark.parametrize("path", _paths(PLAIN), ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_the_wrong_kind_is_refused_with_a_number(path: tuple[Any, ...]) -> None:
    wrongs: tuple[Any, ...] = (1.5, [], {}, "x" * 5000, -1, 2**63, True, None, b"", bytes(31), [[]], "")
    for wrong in wrongs:
        assert _refused_or_taken_as_it_is(pack(_changed(PLAIN, path, lambda _, w=wrong: w)))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("author",), bytes(31)),
        (("created_ms",), -1),
        (("created_ms",), 2**53 + 1),
        (("created_ms",), True),
        (("name",), ""),
        (("description",), "x" * 4001),
        (("licence",), "x" * 121),
        (("tags",), "demo"),
        (("adapter", "rank"), 0),
        (("adapter", "rank"), 1025),
        (("adapter", "rslora"), 0),
        (("adapter", "parameters"), "1"),
        (("files", 0, "chunk_size"), 4095),
        (("files", 0, "chunk_size"), (4 << 20) + 1),
        (("files", 0, "sha256"), bytes(33)),
        (("files", 0, "sha256"), "0" * 32),
        (("evaluation", 0, "value"), 0.21),
        (("evaluation", 0, "value"), None),
        (("base",), None),
        (("extra",), None),
        (("extra",), []),
        (("extra",), {"a": 0.5}),
    ],
    ids=str,
)
def test_a_field_keeps_its_kind_and_bounds(path: tuple[Any, ...], wrong: Any) -> None:
    with pytest.raises(RecordMalformed):
        verify(envelope(pack(_changed(PLAIN, path, lambda _: wrong)), ALICE), Manifest)


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_no_field_may_be_missing(key: str) -> None:
    with pytest.raises(RecordMalformed):
        verify(envelope(pack({k: v for k, v in PLAIN.items() if k != key}), ALICE), Manifest)


@pytest.mark.parametrize("path", [(), ("base",), ("adapter",), ("files", 0), ("training",), ("evaluation", 0)])
def test_no_field_may_be_added_outside_extra(path: tuple[Any, ...]) -> None:
    payload = pack(_changed(PLAIN, path, lambda value: value | {"zz_new": 1}))
    with pytest.raises(RecordMalformed):
        verify(envelope(payload, ALICE), Manifest)


_FUZZED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(st.sampled_from(_paths(PLAIN)), _FUZZED, st.integers(0, 6))
def test_signed_nonsense_is_refused_with_a_number(path: tuple[Any, ...], value: Any, up: int) -> None:
    path = path[: max(1, len(path) - up)]
    try:
        payload = msgpack.packb(_changed(PLAIN, path, lambda _: value), use_bin_type=True)
    except (OverflowError, ValueError, TypeError):
        return
    assert _refused_or_taken_as_it_is(payload)


# ---- who signed ----------------------------------------------------------------------------------------------


def test_a_signature_by_somebody_else_is_not_the_authors() -> None:
    with pytest.raises(SignatureInvalid, match="has not signed"):
        verify(envelope(PAYLOAD, MALLORY), Manifest)


def test_somebody_elses_signature_under_the_authors_key_is_refused() -> None:
    honest = msgpack.unpackb(HONEST.envelope)
    forged = MALLORY.sign(pre_authentication(MANIFEST_TYPE, PAYLOAD))
    honest["signatures"] = [{"key": ALICE.public_key, "sig": forged}]
    with pytest.raises(SignatureInvalid, match="does not hold"):
        verify(pack(honest), Manifest)


def test_a_signature_over_other_bytes_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        verify(envelope(PAYLOAD, ALICE, signed=PAYLOAD + b" "), Manifest)


def test_a_signature_over_the_bare_payload_is_refused() -> None:
    honest = msgpack.unpackb(HONEST.envelope)
    honest["signatures"] = [{"key": ALICE.public_key, "sig": ALICE.sign(PAYLOAD)}]
    with pytest.raises(SignatureInvalid):
        verify(pack(honest), Manifest)


def test_one_bad_co_signature_spoils_the_envelope() -> None:
    honest = msgpack.unpackb(HONEST.envelope)
    honest["signatures"].append({"key": BOB.public_key, "sig": bytes(64)})
    with pytest.raises(SignatureInvalid):
        verify(pack(honest), Manifest)


def test_no_signature_or_too_many_are_malformed() -> None:
    with pytest.raises(RecordMalformed):
        verify(envelope(PAYLOAD), Manifest)
    crowd = [Identity.from_seed(bytes([number]) * 32) for number in range(40, 40 + MAX_SIGNATURES)]
    assert verify(envelope(PAYLOAD, *crowd[1:], ALICE), Manifest).id == HONEST.id
    with pytest.raises(RecordMalformed):
        verify(envelope(PAYLOAD, *crowd, ALICE), Manifest)


def test_a_key_that_everybody_can_sign_with_is_nobody() -> None:
    """The neutral point as a public key: (R, S) = (neutral point, 0) solves the equation for every text."""
    nobody = b"\x01" + bytes(31)
    payload = pack(plain(manifest(author=nobody)))
    signatures = [{"key": nobody, "sig": b"\x01" + bytes(63)}]
    with pytest.raises(SignatureInvalid):
        verify(pack({"payload": payload, "type": MANIFEST_TYPE, "signatures": signatures}), Manifest)


def test_nobody_signs_in_anothers_name_here() -> None:
    with pytest.raises(SignatureInvalid):
        sign(manifest(), BOB)


# ---- what kind of record -------------------------------------------------------------------------------------


def test_a_record_of_another_kind_is_refused() -> None:
    announced = sign(ANNOUNCEMENT, ALICE).envelope
    with pytest.raises(RecordMalformed, match="type"):
        verify(announced, Manifest)
    with pytest.raises(RecordMalformed, match="type"):
        verify(HONEST.envelope, Announcement)


def test_a_relabelled_record_does_not_verify() -> None:
    honest = msgpack.unpackb(HONEST.envelope)
    with pytest.raises(SignatureInvalid):
        verify(pack(honest | {"type": ANNOUNCEMENT_TYPE}), Announcement)


def test_a_later_version_of_the_type_is_not_guessed_at() -> None:
    with pytest.raises(RecordMalformed, match="v2"):
        verify(envelope(PAYLOAD, ALICE, type=MANIFEST_TYPE.replace("v1", "v2")), Manifest)


def test_the_envelope_itself_is_deterministic() -> None:
    honest = msgpack.unpackb(HONEST.envelope)
    for other in (
        msgpack.packb({key: honest[key] for key in ("type", "payload", "signatures")}),
        pack(honest | {"zz": 1}),
        pack({key: honest[key] for key in ("payload", "signatures")}),
        HONEST.envelope.replace(b"\xa4type", b"\xd9\x04type"),
    ):
        with pytest.raises((RecordMalformed, RecordNotDeterministic)):
            verify(other, Manifest)


def test_a_payload_in_another_order_is_refused_though_well_signed() -> None:
    backwards = msgpack.packb(dict(sorted(PLAIN.items(), reverse=True)), use_bin_type=True)
    with pytest.raises(RecordNotDeterministic):
        verify(envelope(backwards, ALICE), Manifest)


# ---- limits --------------------------------------------------------------------------------------------------


def test_limits_are_told_before_anything_is_read() -> None:
    with pytest.raises(RecordTooLarge, match="1048577"):
        verify(bytes((1 << 20) + 1), Manifest)
    with pytest.raises(RecordTooLarge):
        verify(bytes((8 << 10) + 1), Announcement)
    with pytest.raises(RecordTooLarge):
        sign(manifest(extra={"a": bytes(1 << 20)}), ALICE)


def test_the_largest_record_is_taken() -> None:
    room = (1 << 20) - len(sign(manifest(extra={"a": bytes(1 << 19)}), ALICE).envelope)
    whole = sign(manifest(extra={"a": bytes((1 << 19) + room)}), ALICE)
    assert len(whole.envelope) == 1 << 20


def test_lengths_are_counted_in_code_points() -> None:
    assert sign(manifest(name="😀" * 120), ALICE)
    with pytest.raises(RecordMalformed):
        sign(manifest(name="😀" * 121), ALICE)
    with pytest.raises(RecordMalformed):
        sign(manifest(name=""), ALICE)


def test_a_topic_is_named_and_there_are_at_most_sixteen() -> None:
    for topics in ((), ("",), ("x",) * 17, ("x" * 121,)):
        with pytest.raises(RecordMalformed):
            sign(Announcement(**(plain(ANNOUNCEMENT) | {"topics": topics})), ALICE)


def test_a_name_can_not_drive_a_terminal() -> None:
    for name in ("a\x1b[2J", "a\x9b31m", "a\x00", "a\rb", "a\x7f"):
        with pytest.raises(RecordMalformed, match="control"):
            sign(manifest(name=name), ALICE)


# ---- ids -----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_an_id_is_its_digest(digest: bytes) -> None:
    text = text_id(ADAPTER, digest)
    assert len(text) == 4 + 52
    assert parse_id(text, ADAPTER) == digest


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.upper(),
        lambda text: text[:-1],
        lambda text: text + "a",
        lambda text: text + "=",
        lambda text: text.replace("adp_", "ann_"),
        lambda text: text.removeprefix("adp_"),
        lambda text: text[:-1] + "b",  # the last letter holds four spare bits, which must be zero
        lambda text: "adp_" + "ß" * 52,
        lambda text: "adp_" + "1" * 52,
        lambda text: "",
    ],
)
def test_an_id_has_one_form(spoil: Callable[[str], str]) -> None:
    with pytest.raises(ParamsInvalid):
        parse_id(spoil(text_id(ADAPTER, bytes(32))), ADAPTER)
