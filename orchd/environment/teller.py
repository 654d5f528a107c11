"""What the maker says, in lines of JSON, as a worker does."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from orchd.errors import OrchdError

PHASE: Final = "environment"


class Teller:
    """`outgoing` is the pipe to the daemon. One thread at a time."""

    def __init__(self, outgoing: int) -> None:
        self._outgoing = outgoing

    def phase(self, step: str, done: float = 0, total: float = 0, package: str = "") -> None:
        """How far it is, in bytes; without a `total` only what it is at."""
        done, total, unit = (done, total, "bytes") if total else (0, 1, "steps")
        figures = {"phase": PHASE, "step": step} | ({"package": package} if package else {})
        self._write({"event": "progress", "done": done, "total": total, "unit": unit, "figures": figures})

    def log(self, text: str) -> None:
        self._write({"event": "log", "text": text})

    def result(self, result: msgspec.Struct) -> None:
        self._write({"event": "result", "result": msgspec.to_builtins(result)})

    def error(self, error: OrchdError) -> None:
        told = {"code": error.code, "message": error.message, "hint": error.hint, "field": error.field}
        self._write({"event": "error", **told})

    def _write(self, message: dict[str, object]) -> None:
        data = memoryview(msgspec.json.encode(message) + b"\n")
        while data:
            data = data[os.write(self._outgoing, data) :]
