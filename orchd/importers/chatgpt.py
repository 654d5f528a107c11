"""ChatGPT's data export: a tree of nodes a conversation, of which one path was shown last.

Sources: mohamed-chs/convoviz ``docs/dev/chatgpt-spec.md`` v3.0; the slim export of 2026 without
``children``, ``status`` and ``weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from orchd.importers.clean import clean, content_id, milliseconds, object_at
from orchd.importers.conversation import Conversation, Message, Role

_ROLES: Final = {"user", "assistant"}
_TEXT_TYPES: Final = {"text", "multimodal_text"}
_Nodes = Mapping[str, dict[str, Any]]


def parse(record: dict[str, Any]) -> Conversation | None:
    """The path that was shown last, as user and assistant text; None when the user asked ChatGPT not
    to remember the conversation.

    Hidden and system nodes, tool calls, thoughts and the user's profile are left out; a node that is
    left out does not break the path.
    """
    if record.get("is_do_not_remember") is True:
        return None
    mapping = object_at(record, "mapping")
    nodes: _Nodes = {key: node for key, node in mapping.items() if isinstance(node, dict)}
    messages = tuple(message for node in _shown_path(nodes, record.get("current_node")) for message in _read(node))
    identity = clean(record.get("conversation_id")) or clean(record.get("id"))
    return Conversation(
        id=identity or content_id(messages),
        title=clean(record.get("title")),
        messages=messages,
        updated_ms=milliseconds(record.get("update_time")) or milliseconds(record.get("create_time")),
        created_ms=milliseconds(record.get("create_time")),
        model=_model(record, nodes),
        nodes=len(nodes),
    )


def _model(record: dict[str, Any], nodes: _Nodes) -> str:
    """The model that the conversation was begun with, or the last one that a message names."""
    slugs = (object_at(object_at(node, "message"), "metadata").get("model_slug") for node in nodes.values())
    named = [slug for slug in map(clean, slugs) if slug]
    return clean(record.get("default_model_slug")) or (named[-1] if named else "")


def _shown_path(nodes: _Nodes, current: object) -> list[dict[str, Any]]:
    """From the root to the current node, or to the newest leaf where that is missing."""
    parents = _parents(nodes)
    node = current if isinstance(current, str) and current in nodes else _newest_leaf(nodes, parents)
    path: list[dict[str, Any]] = []
    seen: set[str] = set()
    while node is not None and node in nodes and node not in seen:
        seen.add(node)
        path.append(nodes[node])
        node = parents.get(node)
    return path[::-1]


def _parents(nodes: _Nodes) -> dict[str, str]:
    """Parent pointers are the truth; ``children`` only fill missing ones."""
    parents = {key: node["parent"] for key, node in nodes.items() if isinstance(node.get("parent"), str)}
    for key, node in nodes.items():
        children = node.get("children")
        for child in children if isinstance(children, list) else ():
            if isinstance(child, str) and child in nodes:
                parents.setdefault(child, key)
    return parents


def _newest_leaf(nodes: _Nodes, parents: Mapping[str, str]) -> str | None:
    inner = set(parents.values())
    leaves = [key for key in nodes if key not in inner] or list(nodes)
    return max(
        leaves,
        key=lambda key: milliseconds(object_at(nodes[key], "message").get("create_time")),
        default=None,
    )


def _read(node: dict[str, Any]) -> list[Message]:
    """The node's message, if it is text that one side said to the other."""
    message = object_at(node, "message")
    role = object_at(message, "author").get("role")
    metadata = object_at(message, "metadata")
    content = object_at(message, "content")
    hidden = metadata.get("is_visually_hidden_from_conversation") is True
    to_a_tool = message.get("recipient") not in (None, "all")
    if role not in _ROLES or hidden or to_a_tool or content.get("content_type") not in _TEXT_TYPES:
        return []
    text = _text(content)
    weight = message.get("weight")
    return [Message(cast(Role, role), text, counts=weight != 0)] if text else []


def _text(content: dict[str, Any]) -> str:
    """The parts that are text; of images and sounds only a transcription."""
    parts = content.get("parts")
    pieces: list[str] = []
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, str):
            pieces.append(clean(part))
        elif isinstance(part, dict) and part.get("content_type") == "audio_transcription":
            pieces.append(clean(part.get("text")))
    return "\n".join(piece for piece in pieces if piece)
