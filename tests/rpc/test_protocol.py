"""JSON-RPC 2.0 without a socket: the examples of the specification, and what is hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchd.errors import LimitExceeded, OrchdError, ParamsInvalid, TensorsRefused
from orchd.rpc import protocol
from orchd.rpc.protocol import Faulty, Lines, Request, parse


def faulty(line: bytes) -> dict[str, Any]:
    parsed = parse(line)
    assert isinstance(parsed, Faulty), parsed
    answer: dict[str, Any] = json.loads(protocol.error_line(parsed.id, parsed.error))
    return answer


def test_a_request_and_a_notification() -> None:
    parsed = parse(b'{"jsonrpc": "2.0", "method": "job.show", "params": {"job": "job_1"}, "id": 3}')
    assert isinstance(parsed, Request)
    assert (parsed.method, parsed.id, parsed.answered) == ("job.show", 3, True)
    assert bytes(parsed.params) == b'{"job": "job_1"}'
    notification = parse(b'{"jsonrpc": "2.0", "method": "job.show"}')
    assert isinstance(notification, Request)
    assert not notification.answered
    assert bytes(notification.params) == b"{}"


@pytest.mark.parametrize("identifier", ["abc", 7, 1.5, None])
def test_ids_of_every_kind(identifier: Any) -> None:
    parsed = parse(json.dumps({"jsonrpc": "2.0", "method": "a.b", "id": identifier}).encode())
    assert isinstance(parsed, Request)
    assert parsed.id == identifier
    assert parsed.answered


@pytest.mark.parametrize(
    ("line", "code", "identifier"),
    [
        (b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[1, 2", -32700, None),
        (b"[]", -32600, None),
        (b"1", -32600, None),
        (b'{"jsonrpc": "2.0", "method": 1, "params": "bar"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": 9}', -32600, 9),
        (b'{"jsonrpc": "1.0", "method": "a.b", "id": "x"}', -32600, "x"),
        (b'{"method": "a.b", "id": {}}', -32600, None),
        (b'{"jsonrpc": "2.0", "method": "a.b", "id": [1]}', -32600, None),
    ],
)
def test_what_is_no_request(line: bytes, code: int, identifier: Any) -> None:
    answer = faulty(line)
    assert answer["error"]["code"] == code
    assert answer["id"] == identifier
    assert answer["error"]["data"]["hint"]


def test_a_batch_keeps_its_good_parts() -> None:
    parsed = parse(b'[1, {"jsonrpc": "2.0", "method": "a.b", "id": 1}, {"foo": "boo"}]')
    assert isinstance(parsed, list)
    assert [type(call) for call in parsed] == [Faulty, Request, Faulty]
    assert faulty(b"[" + b"1," * 256 + b"1]")["error"]["data"]["name"] == "LimitExceeded"


def test_nesting() -> None:
    def nested(depth: int) -> bytes:
        # the request itself and its params are two levels
        return b'{"jsonrpc":"2.0","method":"a.b","params":{"x":%s%s}}' % (b"[" * depth, b"]" * depth)

    assert isinstance(parse(nested(protocol.DEPTH - 2)), Request)
    assert faulty(nested(protocol.DEPTH - 1))["error"]["data"]["name"] == "LimitExceeded"
    assert faulty(b"[" * 1_000_000)["error"]["data"]["name"] == "LimitExceeded"
    text = json.dumps({"jsonrpc": "2.0", "method": "a.b", "params": {"x": '[[{"\\' * 1000}}).encode()
    assert isinstance(parse(text), Request)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(line: bytes) -> None:
    assert parse(line) is not None


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b)), st.integers(1, 7))
def test_lines_come_out_whole_however_they_come_in(lines: list[bytes], size: int) -> None:
    stream = b"\n".join(lines) + b"\n"
    cutter = Lines()
    out = [line for at in range(0, len(stream), size) for line in cutter.feed(stream[at : at + size])]
    assert out == [line for line in lines if line.strip()]
    assert cutter.rest() == []


def test_a_long_line_is_refused_before_its_end_is_there() -> None:
    cutter = Lines(limit=10)
    assert cutter.feed(b"0123456789\n012345") == [b"0123456789"]
    with pytest.raises(LimitExceeded):
        cutter.feed(b"678901")
    with pytest.raises(LimitExceeded):
        Lines(limit=10).feed(b"01234567890\n")
    last = Lines()
    last.feed(b"no newline")
    assert last.rest() == [b"no newline"]


def test_error_objects() -> None:
    assert protocol.error_object(TensorsRefused("too wide", field="adapter")) == {
        "code": 2113,
        "message": "too wide",
        "data": {
            "number": 2113,
            "name": "TensorsRefused",
            "hint": TensorsRefused.default_hint,
            "page": "docs/errors.md#e2113",
            "field": "adapter",
        },
    }
    assert protocol.error_object(OrchdError("?"))["code"] == -32603


def test_an_error_quotes_no_megabyte() -> None:
    told = protocol.error_object(ParamsInvalid("x" * 1_000_000))
    assert len(told["message"]) <= protocol.LONGEST + 1
