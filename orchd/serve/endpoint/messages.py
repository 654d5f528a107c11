"""The bodies of the OpenAI API that are taken and given. Pure: bytes in, values out; the clock is an argument.

What would change the answer and isn't done here (tools, several choices, penalties, log-probabilities) is refused by
name, not passed over; fields that change nothing (`user`, `metadata`, `store`) are taken and kept nowhere.
Source: OpenAI's API reference, `POST /v1/chat/completions`, `GET /v1/models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from orchd.errors import EndpointRequestRefused, OrchdError
from orchd.importers.conversation import Message, Role
from orchd.serve.wire import Sampling

MAX_TOKENS = 4096
DEFAULT_TOKENS = 1024
MAX_MESSAGES = 1000
MAX_STOPS = 4


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A field that isn't known is an error."""


class _TextPart(_Strict, frozen=True, kw_only=True):
    type: Literal["text"]
    text: str


class _ChatMessage(_Strict, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]
    name: str | None = None


class _StreamOptions(_Strict, frozen=True, kw_only=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class _TextFormat(_Strict, frozen=True, kw_only=True):
    type: Literal["text"]


Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
Zero = Annotated[float, msgspec.Meta(ge=0, le=0)]
One = Annotated[int, msgspec.Meta(ge=1, le=1)]
Nothing = Annotated[list[Any], msgspec.Meta(max_length=0)]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _ChatRequest(_Strict, frozen=True, kw_only=True):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    messages: Annotated[list[_ChatMessage], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    stop: StopText | Annotated[list[StopText], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logprobs: bool | None = None
    tools: Nothing | None = None
    response_format: _TextFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class Asked(NamedTuple):
    """One question: `model` is a deployment's name, or one that somebody resolves. Temperature 0 is greedy."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float
    sampling: Sampling
    stream: bool
    usage: bool


def parse(body: bytes) -> Asked:
    """A chat request. Raises EndpointRequestRefused naming the field."""
    try:
        found = msgspec.json.decode(body, type=_ChatRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EndpointRequestRefused(f"the request can't be taken: {str(error)[:300]}", field="body") from None
    if found.logprobs:
        raise EndpointRequestRefused("log-probabilities are not given here", field="logprobs")
    stop = found.stop
    return Asked(
        model=found.model,
        messages=tuple(Message(_role(one.role), _text(one.content)) for one in found.messages),
        max_tokens=found.max_completion_tokens or found.max_tokens or DEFAULT_TOKENS,
        temperature=found.temperature or 0.0,
        sampling=Sampling(
            top_p=found.top_p,
            seed=found.seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        ),
        stream=bool(found.stream),
        usage=found.stream_options is not None and found.stream_options.include_usage,
    )


def _role(role: str) -> Role:
    if role in ("system", "developer"):
        return "system"
    return "assistant" if role == "assistant" else "user"


def _text(content: str | list[_TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Usage(NamedTuple):
    """Tokens."""

    prompt: int
    completion: int

    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Told(NamedTuple):
    """What stands in every piece of one answer. `created` in seconds since 1970."""

    id: str
    created: int
    model: str

    def whole(self, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage.body()}

    def first(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text}, None)

    def last(self, finish: str) -> dict[str, Any]:
        return self._chunk({}, finish)

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage.body()}

    def _chunk(self, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ModelCard(NamedTuple):
    """A name that can be asked. `created` in seconds since 1970."""

    name: str
    created: int


def model_list(cards: Sequence[ModelCard]) -> dict[str, Any]:
    return {"object": "list", "data": [model(card) for card in cards]}


def model(card: ModelCard) -> dict[str, Any]:
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": "orchd"}


def failure(error: OrchdError, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it; `code` is the number in docs/errors.md."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = f"{error.message} [E{error.code}] {error.hint}"
    return {"error": {"message": message, "type": kind, "param": error.field, "code": str(error.code)}}
