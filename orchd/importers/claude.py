"""Claude's data export: conversations with a flat list of ``chat_messages``."""

from __future__ import annotations

from typing import Any, Final

from orchd.importers.clean import clean, content_id, milliseconds, objects
from orchd.importers.conversation import Conversation, Message, Role

_ROLES: Final[dict[str, Role]] = {"human": "user", "assistant": "assistant"}
_NO_PARENT: Final = "00000000-0000-4000-8000-000000000000"


def parse(record: dict[str, Any]) -> Conversation:
    """The newest branch, as text; thinking and tool use are left out, attached text is kept."""
    kept = _newest_branch(objects(record.get("chat_messages")))
    messages = tuple(message for one in kept for message in _read(one))
    return Conversation(
        id=clean(record.get("uuid")) or content_id(messages),
        title=clean(record.get("name")),
        messages=messages,
        updated_ms=milliseconds(record.get("updated_at")) or milliseconds(record.get("created_at")),
        created_ms=milliseconds(record.get("created_at")),
        model=clean(record.get("model")),
        nodes=len(objects(record.get("chat_messages"))),
    )


def _newest_branch(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From the last message up, where there are parent ids; else all, as they stand."""
    if not any("parent_message_uuid" in one for one in messages):
        return messages
    by_id = {one["uuid"]: one for one in messages if isinstance(one.get("uuid"), str)}
    branch: list[dict[str, Any]] = []
    one: dict[str, Any] | None = messages[-1]
    while one is not None and all(one is not other for other in branch):
        branch.append(one)
        parent = one.get("parent_message_uuid")
        one = by_id.get(parent) if isinstance(parent, str) and parent != _NO_PARENT else None
    return branch[::-1]


def _read(one: dict[str, Any]) -> list[Message]:
    sender = one.get("sender")
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        return []
    blocks = [clean(block.get("text")) for block in objects(one.get("content")) if block.get("type") == "text"]
    said = "\n".join(text for text in blocks if text) or clean(one.get("text"))
    attached = [clean(part.get("extracted_content")) for part in objects(one.get("attachments"))]
    text = "\n\n".join(part for part in (said, *attached) if part)
    return [Message(role, text)] if text else []
