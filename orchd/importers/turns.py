"""Whose turns of a conversation are learnt: the assistant's, or the user's own, with the roles exchanged."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from orchd.errors import ImportUnreadable
from orchd.importers.conversation import Conversation, Example, Message

Learn = Literal["assistant", "user"]

OPENER: Final = "Begin a conversation."
"""What the user's first words answer where the conversation has no title."""


def turned(example: Example, learn: Learn) -> Example:
    """The example with the turns that are to be learnt as the assistant's, which are the ones that count in the loss.
    Raises `ImportUnreadable` where it has no turns."""
    if learn == "assistant":
        return example
    if not isinstance(example, Conversation):
        hint = "Leave out `--learn`; of text all is learnt, of the others the completion or the chosen answer."
        raise ImportUnreadable("only conversations have turns of the user to learn", hint=hint, field="learn")
    return msgspec.structs.replace(example, messages=_exchanged(example))


def _exchanged(one: Conversation) -> tuple[Message, ...]:
    """What the user wrote becomes what the model is to say; what the assistant said is what it answers.

    Instructions to the assistant and what tools returned are left out, several messages of one side become one (many
    chat templates want the sides to alternate), and nothing stays after the user's last words. The first words answer
    the conversation's title, for something must stand before them.
    """
    said: list[Message] = []
    for message in one.messages:
        if message.role not in ("user", "assistant") or not message.content:
            continue
        by_user = message.role == "user"
        new = Message("assistant" if by_user else "user", message.content, counts=message.counts or not by_user)
        if said and said[-1].role == new.role:
            before = said.pop()
            new = Message(new.role, f"{before.content}\n\n{new.content}", counts=before.counts and new.counts)
        said.append(new)
    if said and said[-1].role == "user":
        said.pop()
    opener = (Message("user", one.title.strip() or OPENER),) if said and said[0].role == "assistant" else ()
    return (*opener, *said)
