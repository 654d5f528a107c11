"""Flat formats, one conversation a record: OpenAI chat, ShareGPT and Alpaca."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args

from orchd.importers.clean import clean, content_id, objects, part_of
from orchd.importers.conversation import Conversation, Message, Role

SHAREGPT_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
}
OPENAI_ROLES: Final[dict[str, Role]] = {
    **{role: role for role in get_args(Role)},
    "developer": "system",
}


def parse_openai(record: dict[str, Any]) -> Conversation:
    """``{"messages": [{role, content, weight?}]}``; ``weight: 0`` marks an answer as context only."""
    return _conversation(
        record,
        (
            Message(role, text, counts=one.get("weight") != 0)
            for one in objects(record.get("messages"))
            if (role := OPENAI_ROLES.get(str(one.get("role")))) and (text := _text(one))
        ),
    )


def parse_sharegpt(record: dict[str, Any]) -> Conversation:
    """``{"conversations": [{from, value}], "system"?}``; function calls are left out."""
    return _conversation(
        record,
        (
            *_optional("system", record.get("system")),
            *(
                Message(role, text)
                for one in objects(record.get("conversations"))
                if (role := SHAREGPT_ROLES.get(str(one.get("from")))) and (text := clean(one.get("value")))
            ),
        ),
    )


def parse_alpaca(record: dict[str, Any]) -> Conversation:
    """``{"instruction", "input"?, "output", "system"?, "history"? [[question, answer]]}``."""
    question = "\n\n".join(text for text in (clean(record.get("instruction")), clean(record.get("input"))) if text)
    history = record.get("history")
    return _conversation(
        record,
        (
            *_optional("system", record.get("system")),
            *(
                message
                for pair in (history if isinstance(history, list) else ())
                if isinstance(pair, list) and len(pair) == 2
                for message in (
                    *_optional("user", pair[0]),
                    *_optional("assistant", pair[1]),
                )
            ),
            *_optional("user", question),
            *_optional("assistant", record.get("output")),
        ),
    )


def _conversation(record: dict[str, Any], read: Iterable[Message]) -> Conversation:
    messages = tuple(read)
    return Conversation(
        id=content_id(messages),
        title=clean(record.get("title")),
        messages=messages,
        group=clean(record.get("group")),
        part=part_of(record),
        nodes=len(messages),
    )


def _optional(role: Role, value: object) -> list[Message]:
    text = clean(value)
    return [Message(role, text)] if text else []


def _text(one: dict[str, Any]) -> str:
    """Content as a string or as a list of parts, of which the text parts are taken."""
    content = one.get("content")
    if isinstance(content, list):
        return "\n".join(
            text
            for part in objects(content)
            if part.get("type") in ("text", "input_text", "output_text") and (text := clean(part.get("text")))
        )
    return clean(content)
