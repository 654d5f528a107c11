"""The one method table: what dispatches requests, what `rpc.discover` shows and what `orchctl` is compared with."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from orchd.errors import MethodUnknown, ParamsInvalid, did_you_mean


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parameters of every method. A subclass sets `kw_only=True` itself; the rest is inherited."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the results."""


class NoParams(Params, frozen=True, kw_only=True):
    """For methods without parameters."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `handler(node, params)`, or `handler(node, params, session)` when `streams`."""

    name: str
    params: type[msgspec.Struct]
    result: Any
    summary: str
    handler: Callable[..., Awaitable[Any]]
    streams: bool
    decoder: msgspec.json.Decoder[Any]


METHODS: dict[str, Method] = {}
"""Filled by the decorator when the `orchd.rpc.methods*` modules are imported."""

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])

NAME = re.compile(r"[a-z]+\.[a-z_]+")


def method(
    name: str,
    params: type[msgspec.Struct],
    result: Any,
    summary: str,
    table: dict[str, Method] = METHODS,
) -> Callable[[Handler], Handler]:
    """Put `async def handler(node, params[, session]) -> result` into the table under `noun.verb`.

    A handler that takes the `session` may send notifications on the caller's connection.
    """
    if not NAME.fullmatch(name) or name in table:
        raise ValueError(f"{name!r} is no free noun.verb")
    if not params.__struct_config__.forbid_unknown_fields:
        raise TypeError(f"{params.__name__} must derive from orchd.rpc.table.Params")

    def register(handler: Handler) -> Handler:
        table[name] = Method(
            name=name,
            params=params,
            result=result,
            summary=summary,
            handler=handler,
            streams=len(inspect.signature(handler).parameters) == 3,
            decoder=msgspec.json.Decoder(params),
        )
        return handler

    return register


def find(name: str, table: Mapping[str, Method] = METHODS) -> Method:
    """The method of this name. Raises `MethodUnknown` with the nearest name."""
    try:
        return table[name]
    except KeyError:
        raise MethodUnknown(f"no method {name[:80]!r}", hint=did_you_mean(name, table)) from None


def decode_params(method: Method, raw: msgspec.Raw) -> Any:
    """The typed parameters of a call. Raises `ParamsInvalid` naming the field, with the nearest known name."""
    try:
        return method.decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _params_invalid(method, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ParamsInvalid(f"{method.name}: {error}") from None


_limit = re.compile(r"Expected `(?:int|float|str|array|object)` (of length )?([<>]=?) ([0-9.]+)")
_words = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_quoted = re.compile(r"field `([^`]+)`")
_path = re.compile(r"at `\$\.?([^`]+)`")


def _params_invalid(method: Method, text: str) -> ParamsInvalid:
    names = [field.encode_name for field in msgspec.structs.fields(method.params)]
    path, field = _path.search(text), _quoted.search(text)
    at = path[1] if path else None
    if field and not path and "unknown field" in text:
        known = did_you_mean(field[1], names) or _takes(method, names)
        return ParamsInvalid(f"{method.name} has no parameter {field[1]!r}", hint=known, field=field[1])
    hint: str | None = None
    if field:
        at = f"{at}.{field[1]}" if at else field[1]
        hint = f"Give `{at}` too." if "missing" in text else None
    if (limit := _limit.search(text)) and at:
        length, sign, number = limit.groups()
        text = f"{at} has to be {f'{_words[sign]} {number} long' if length else f'{_words[sign]} {number}'}"
    if "got `array`" in text and not path:
        text, hint = "parameters are given by name, in an object", _takes(method, names)
    return ParamsInvalid(f"{method.name}: {text}", hint=hint, field=at)


def _takes(method: Method, names: list[str]) -> str:
    return f"{method.name} takes {', '.join(names)}." if names else f"{method.name} takes no parameters."
