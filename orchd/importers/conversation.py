"""What every importer yields: typed examples, whatever they were exported from."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
Part = Literal["", "train", "validation", "test"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message. ``counts`` is False for an answer that is only context for later ones (OpenAI's
    ``weight: 0``): it is never trained on and never scored."""

    role: Role
    content: str
    counts: bool = True


class _Example(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is the exporter's own id, or a hash of the content where there is none, so that importing a
    file again changes nothing. ``updated_ms`` and ``nodes`` (messages before any were left out) say
    which of two copies is the newer.

    What has the same ``group`` (not empty) is never divided between training and scoring. ``part`` is where
    a data set that was exported had the example; empty: not said.
    """

    id: str
    title: str = ""
    group: str = ""
    part: Part = ""
    updated_ms: int = 0
    nodes: int = 0


class Conversation(_Example, frozen=True, kw_only=True):
    """One conversation, oldest message first. ``model`` is the one that answered, where the export says so."""

    messages: tuple[Message, ...]
    created_ms: int = 0
    model: str = ""

    @property
    def trainable(self) -> bool:
        """Is there an answer to learn, and something before it?"""
        return any(message.role == "assistant" and message.counts and message.content for message in self.messages[1:])

    @property
    def is_one_exchange(self) -> bool:
        """One question and its answer, perhaps with a system message before them."""
        roles = [message.role for message in self.messages]
        return roles in (["user", "assistant"], ["system", "user", "assistant"])


class Passage(_Example, frozen=True, kw_only=True):
    """Plain text or (``code``) source text: all of it is learnt, no template is put around it."""

    text: str
    code: bool = False

    @property
    def trainable(self) -> bool:
        return bool(self.text)


class Completion(_Example, frozen=True, kw_only=True):
    """``prompt`` and what follows it, without a chat template; only ``completion`` is learnt."""

    prompt: str
    completion: str

    @property
    def trainable(self) -> bool:
        return bool(self.prompt and self.completion)


class Preference(_Example, frozen=True, kw_only=True):
    """An answer that somebody preferred to another one, after the same messages."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str

    @property
    def trainable(self) -> bool:
        return bool(self.messages and self.chosen and self.rejected and self.chosen != self.rejected)


Example = Conversation | Passage | Completion | Preference
