"""What every importer yields: typed conversations, whatever they were exported from."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message. ``counts`` is False for an answer that is only context for later ones (OpenAI's
    ``weight: 0``): it is never trained on and never scored."""

    role: Role
    content: str
    counts: bool = True


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation, oldest message first.

    ``id`` is the exporter's own id, or a hash of the content where there is none, so that importing a
    file again changes nothing. ``updated_ms`` and ``nodes`` (messages before any were left out) say
    which of two copies is the newer.
    """

    id: str
    messages: tuple[Message, ...]
    title: str = ""
    updated_ms: int = 0
    nodes: int = 0

    @property
    def trainable(self) -> bool:
        """Is there an answer to learn, and something before it?"""
        return any(message.role == "assistant" and message.counts and message.content for message in self.messages[1:])
