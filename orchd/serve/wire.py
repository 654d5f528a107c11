"""The conversation between the embedded runtime and its worker: one JSON object a line, both ways.

The worker reads `Load`, `Ask`, `Stop` and answers with events: `text` (a piece of an answer), `reply` (the end of a
request) or `failure` (its numbered error). A request's number comes back in each of its events.
"""

from __future__ import annotations

import msgspec

from orchd.importers.conversation import Message
from orchd.jobs.sandbox.report import Sandbox


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen beside the temperature. `top_p` and `seed` None are llama.cpp's own; an answer ends
    before any of the texts in `stop`."""

    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


DEFAULTS = Sampling()


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask", tag_field="do"):
    """Answer `messages` with the model in the GGUF at `path`, loaded if it isn't yet."""

    request: int
    path: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    sampling: Sampling = DEFAULTS


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load", tag_field="do"):
    """Load the GGUF at `path`, so that a file which llama.cpp doesn't take is noticed."""

    request: int
    path: str


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag="unload", tag_field="do"):
    """Free the model when its last answer has ended. Has no reply."""

    path: str


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop", tag_field="do"):
    """Nobody reads this request's answer any more."""

    request: int


Command = Ask | Load | Unload | Stop


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text", tag_field="event"):
    request: int
    text: str


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag="reply", tag_field="event"):
    """`tokens` generated after `prompt` tokens; `finish` is "stop" (the model ended), "length" (it was cut) or
    "loaded"."""

    request: int
    tokens: int
    finish: str
    prompt: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure", tag_field="event"):
    """The numbered error of one request."""

    request: int
    code: int
    message: str
    hint: str | None = None
    field: str | None = None


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready", tag_field="event"):
    """The process is up (sent by `orchd.worker`)."""


class Confined(msgspec.Struct, frozen=True, kw_only=True, tag="sandbox", tag_field="event"):
    """What the process is confined by (sent by `orchd.worker`)."""

    sandbox: Sandbox


class Log(msgspec.Struct, frozen=True, kw_only=True, tag="log", tag_field="event"):
    text: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="result", tag_field="event"):
    """The conversation has ended in order (sent by `orchd.worker`)."""


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="error", tag_field="event"):
    """The worker can't go on (sent by `orchd.worker`), for instance because xllamacpp isn't installed."""

    code: int
    message: str
    hint: str | None = None
    field: str | None = None


Event = Text | Reply | Failure | Ready | Confined | Log | Ended | Broken
