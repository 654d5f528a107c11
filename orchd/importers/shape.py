"""What is odd about a record of a flat format, with what to do about it. Exports of chat programs are as they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from orchd.importers.clean import clean
from orchd.importers.conversation import Conversation
from orchd.importers.flat import OPENAI_ROLES, SHAREGPT_ROLES

Oddity = tuple[str, str]
"""What is odd, and the fix."""

_LISTS: Final = {
    "openai": ("messages", "role", "content", OPENAI_ROLES),
    "sharegpt": ("conversations", "from", "value", SHAREGPT_ROLES),
}
_NOT_SAID: Final = frozenset({"function_call", "tool_calls"})


def oddities(record: dict[str, Any], format: str) -> Iterator[Oddity]:
    """Of a record as it stands in the file: messages that the importer can't take."""
    if format == "alpaca" and not clean(record.get("output")):
        yield "no output to the instruction", "Give `output` the answer."
    if format not in _LISTS:
        return
    key, role_name, text_name, roles = _LISTS[format]
    listed = record.get(key)
    if not isinstance(listed, list):
        yield f"{key} is no list", f"Write `{key}` as a list of objects with `{role_name}` and `{text_name}`."
        return
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict):
            yield f"message {number} is no object", f"Write it as an object with `{role_name}` and `{text_name}`."
        elif (role := str(one.get(role_name))) not in roles and role not in _NOT_SAID:
            known = ", ".join(roles)
            yield f"message {number}: no such {role_name}: {role[:40]!r}; it is left out", f"Use one of {known}."
        elif one.get(text_name) in (None, "", []) and not _NOT_SAID & one.keys() and role not in _NOT_SAID:
            yield f"message {number} has no text; it is left out", f"Give it `{text_name}`, or leave it out yourself."


def order_of(one: Conversation) -> Iterator[Oddity]:
    """Of a conversation that was read: who speaks when."""
    roles = [message.role for message in one.messages]
    said = [role for role in roles if role in ("user", "assistant")]
    if "system" in roles[1:]:
        yield "a system message after the first one", "Put it first; most chat templates allow it only there."
    if said[:1] == ["assistant"]:
        yield "it begins with an answer", "Put the question before it; an answer to nothing is not learnt."
    for role, twice in pairwise(said):
        if role == twice and "tool" not in roles:
            yield f"two {role} messages in a row", "Join them; many chat templates refuse them."
            return
    if said[-1:] == ["user"] and "assistant" in said:
        yield "it ends with a question", "The last message is not learnt: leave it out, or add its answer."
