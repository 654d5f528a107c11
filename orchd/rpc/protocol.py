"""JSON-RPC 2.0 over lines, without any I/O: bytes in, requests and bytes out.

One JSON text a line (NDJSON). Named params only. The four cases that the specification numbers keep its numbers
(-32700 parse error, -32600 invalid request, -32601 method not found, -32602 invalid params, and -32603 for what
nobody foresaw); every other error has orchd's own number as its code. `error.data.number` holds orchd's number in
every case, beside `name`, `hint`, `page` and, where one is at fault, `field`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from orchd.errors import LimitExceeded, LineInvalid, MethodUnknown, OrchdError, ParamsInvalid, RequestInvalid

LINE_BYTES = 8 * 1024 * 1024
"""A longer line ends the connection: where the next one would begin isn't known."""

DEPTH = 64
"""Arrays and objects inside each other."""

BATCH = 256
"""Requests in one batch."""

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = (
    -32700,
    -32600,
    -32601,
    -32602,
    -32603,
)

LONGEST = 4_000
"""Characters of an error's message: it may quote what the client sent."""

Id = int | float | str | None


STANDARD_CODES: dict[type[OrchdError], int] = {
    LineInvalid: PARSE_ERROR,
    RequestInvalid: INVALID_REQUEST,
    MethodUnknown: METHOD_NOT_FOUND,
    ParamsInvalid: INVALID_PARAMS,
    OrchdError: INTERNAL_ERROR,
}


class Request(msgspec.Struct, frozen=True):
    """One request, or a notification when it has no `id`. `params` is still undecoded JSON."""

    method: str
    jsonrpc: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: Id | msgspec.UnsetType = msgspec.UNSET

    @property
    def answered(self) -> bool:
        return self.id is not msgspec.UNSET


class Faulty(msgspec.Struct, frozen=True):
    """What stands in a request's place when it couldn't be read."""

    error: OrchdError
    id: Id = None


Call = Request | Faulty


class Lines:
    """Cuts a stream of bytes into lines. Raises `LimitExceeded` when one is too long."""

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without those that are blank."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise LimitExceeded(f"a line may have {self._limit} bytes")
        return [line for line in lines if line.strip()]

    def rest(self) -> list[bytes]:
        """What came after the last newline, at the end of the stream: some clients send none."""
        line = bytes(self._rest)
        self._rest.clear()
        return [line] if line.strip() else []


def parse(line: bytes) -> Call | list[Call]:
    """The request of a line, or the list of a batch. What can't be read becomes `Faulty`, never an exception."""
    if _too_deep(line):
        return Faulty(LimitExceeded(f"JSON may be nested {DEPTH} levels deep"))
    if not line.lstrip().startswith(b"["):
        return _request(line)
    try:
        parts = msgspec.json.decode(line, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Faulty(LineInvalid(f"not JSON: {error}"))
    if not parts:
        return Faulty(RequestInvalid("a batch needs at least one request"))
    if len(parts) > BATCH:
        return Faulty(LimitExceeded(f"a batch may have {BATCH} requests"))
    return [_request(bytes(part)) for part in parts]


def result_line(identifier: Id, result: object) -> bytes:
    """A response that holds a result, without the newline."""
    return msgspec.json.encode({"jsonrpc": "2.0", "id": identifier, "result": result})


def error_line(identifier: Id, error: OrchdError) -> bytes:
    """A response that holds an error, without the newline."""
    return msgspec.json.encode({"jsonrpc": "2.0", "id": identifier, "error": error_object(error)})


def notification_line(method: str, params: object) -> bytes:
    """A notification to the client, without the newline."""
    return msgspec.json.encode({"jsonrpc": "2.0", "method": method, "params": params})


def batch_line(responses: list[bytes]) -> bytes:
    """The response to a batch, from the responses to its requests."""
    return b"[" + b",".join(responses) + b"]"


def error_object(error: OrchdError) -> dict[str, Any]:
    """`{code, message, data}` of the specification."""
    data: dict[str, Any] = {
        "number": error.code,
        "name": error.name,
        "hint": error.hint,
        "page": error.page,
    }
    if error.field is not None:
        data["field"] = error.field
    return {
        "code": STANDARD_CODES.get(type(error), error.code),
        "message": error.message if len(error.message) <= LONGEST else f"{error.message[:LONGEST]}…",
        "data": data,
    }


_request_decoder = msgspec.json.Decoder(Request)


def _request(text: bytes) -> Call:
    try:
        request = _request_decoder.decode(text)
    except msgspec.ValidationError as error:
        return Faulty(RequestInvalid(f"not a JSON-RPC request: {error}"), _identifier(text))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Faulty(LineInvalid(f"not JSON: {error}"))
    if request.jsonrpc != "2.0":
        return Faulty(RequestInvalid('"jsonrpc" must be "2.0"'), _identifier(text))
    return request


class _OnlyId(msgspec.Struct):
    id: Id = None


def _identifier(text: bytes) -> Id:
    """The id of something that is no request, if it has a usable one."""
    try:
        return msgspec.json.decode(text, type=_OnlyId).id
    except msgspec.DecodeError:
        return None


_token = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _too_deep(line: bytes) -> bool:
    """Whether arrays and objects are nested deeper than `DEPTH`. Brackets inside strings don't count."""
    if line.count(b"[") + line.count(b"{") <= DEPTH:
        return False
    depth = 0
    for token in _token.finditer(line):
        if token[0] in b"[{":
            depth += 1
            if depth > DEPTH:
                return True
        elif token[0] in b"]}":
            depth -= 1
    return False
