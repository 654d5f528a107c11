"""Has one value one sequence of bytes, and does anything else get a numbered refusal?"""

from __future__ import annotations

import struct
import unicodedata
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import OrchdError, RecordMalformed, RecordNotDeterministic
from orchd.records import codec
from tests.helpers import pack


class Bag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The smallest record with a free map."""

    extra: dict[str, Any]
    number: int = 0


def _bag(item: bytes) -> bytes:
    """{"extra": {"a": item}, "number": 0} with the item's bytes as they are."""
    return b"\x82\xa5extra\x81\xa1a" + item + b"\xa6number\x00"


def _text() -> st.SearchStrategy[str]:
    letters = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
    return st.text(letters, max_size=8).map(lambda text: unicodedata.normalize("NFC", text))


def _values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=8) | _text()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text(), inner, max_size=4), max_leaves=12
    )


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(_text(), _values(), max_size=5))
def test_the_plain_msgpack_package_writes_the_same_bytes(extra: dict[str, Any]) -> None:
    data = codec.encode(Bag(extra=extra))
    assert data == pack({"extra": extra, "number": 0})
    assert codec.encode(codec.decode(data, Bag)) == data


def test_the_order_in_which_a_map_was_filled_does_not_show() -> None:
    one = {"b": 1, "a": {"z": 1, "é": 2, "": 3}, "aa": 0}
    other = {"aa": 0, "a": {"": 3, "é": 2, "z": 1}, "b": 1}
    assert codec.encode(one) == codec.encode(other)


def test_keys_are_sorted_by_their_utf8_bytes() -> None:
    keys = ["😀", "\uff00", "é", "b", "aa", "Z", ""]
    decoded = msgpack.unpackb(codec.encode(dict.fromkeys(keys, 0)))
    assert list(decoded) == sorted(keys, key=lambda key: key.encode())


@pytest.mark.parametrize(
    "item",
    [
        struct.pack(">Bd", 0xCB, 1.0),
        struct.pack(">Bd", 0xCB, float("nan")),
        struct.pack(">Bf", 0xCA, float("inf")),
        msgpack.packb(msgpack.ExtType(5, b"abc")),
        b"\xd4\x05\x01",
        b"\x81\x05\x02",
        b"\x81\xc0\x02",
        b"\x81\x91\x01\x02",
        b"\x81\x80\x02",
        b"\x81\x91\x80\x02",
        b"\x81\xd4\x05\x01\x02",
        b"\x81\xcb\x7f\xf8\0\0\0\0\0\0\x01",
        b"\x81\xc4\x01a\x02",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\xc1",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        pack("é".encode().decode("utf-8").replace("é", "e\u0301")),
        pack("a\x1b[31mred"),
        pack("a\x00b"),
        pack("a\x9bb"),
        pack("a\rb"),
        b"\x91" * 17 + b"\xc0",
        b"\x91" * 10_000 + b"\xc0",
        b"\x81\xa1a" * 10_000 + b"\xc0",
        b"\x91" * 500_000 + b"\xc0",
    ],
    ids=lambda item: item[:6].hex(),
)
def test_what_a_record_cannot_hold_is_malformed(item: bytes) -> None:
    with pytest.raises(RecordMalformed):
        codec.decode(_bag(item), Bag)


@pytest.mark.parametrize(
    "item",
    [
        b"\xcc\x01",
        b"\xcd\x00\xff",
        b"\xd0\x01",
        b"\xd0\xe0",
        b"\xcf" + bytes(7) + b"\x01",
        b"\xd9\x01a",
        b"\xc5\x00\x01a",
        b"\xdc\x00\x01\x01",
        b"\xde\x00\x01\xa1a\x01",
        b"\x82\xa1a\x01\xa1a\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x82\xa1b\x01\xa1a\x01",
        msgpack.packb(msgpack.Timestamp(5, 0)),
    ],
    ids=lambda item: item[:6].hex(),
)
def test_a_second_form_of_the_same_value_is_refused(item: bytes) -> None:
    with pytest.raises(RecordNotDeterministic):
        codec.decode(_bag(item), Bag)


def test_a_repeated_or_misplaced_field_is_refused() -> None:
    honest = codec.encode(Bag(extra={}))
    assert honest == b"\x82\xa5extra\x80\xa6number\x00"
    for other in (
        b"\x83\xa5extra\x80\xa6number\x00\xa6number\x00",
        b"\x82\xa6number\x00\xa5extra\x80",
        b"\x81\xa5extra\x80",  # a default is written too
        b"\x92\x80\x00",
        honest + b"\x00",
        honest + b"\xc0",
        honest[:-1],
        b"",
        b"\x83\xa5extra\x80\xa6number\x00\xa7strange\x00",
        honest.replace(b"\xa5extra", b"\xc4\x05extra"),
    ):
        with pytest.raises((RecordMalformed, RecordNotDeterministic)):
            codec.decode(other, Bag)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1.5, "\ud800", {"\ud800": 1}, {1: 2}, object(), {"a": 2**70}])
def test_a_writer_is_told_what_can_not_be_written(value: Any) -> None:
    with pytest.raises(RecordMalformed):
        codec.encode({"a": value})


def test_a_writer_is_told_of_endless_nesting() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(RecordMalformed):
        codec.encode(value)


def test_depth_sixteen_is_the_last() -> None:
    value: Any = None
    for _ in range(14):
        value = [value]
    assert codec.decode(codec.encode(Bag(extra={"a": value})), Bag)  # the two maps around it make sixteen
    with pytest.raises(RecordMalformed, match="deeper"):
        codec.encode(Bag(extra={"a": [value]}))


@pytest.mark.parametrize("item", [None, {}, []])
def test_a_record_holds_so_many_values_and_no_more(item: Any) -> None:
    """A megabyte of empty maps would take a hundred megabytes, and seconds each time it is read."""
    most = codec.MAX_VALUES - 4  # the record, extra, its list, and the number
    assert codec.decode(codec.encode(Bag(extra={"a": [item] * most})), Bag)
    for many in (most + 1, 300_000):
        with pytest.raises(RecordMalformed, match="values"):
            codec.decode(pack({"extra": {"a": [item] * many}, "number": 0}), Bag)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_number(data: bytes) -> None:
    for attempt in (data, _bag(data)):
        try:
            value = codec.decode(attempt, Bag)
        except OrchdError:
            continue
        assert codec.encode(value) == attempt
