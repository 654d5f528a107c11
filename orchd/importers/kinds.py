"""The kinds of data sets: what their rows look like to the model, wherever they came from."""

from __future__ import annotations

from typing import Literal

from orchd.importers.conversation import Completion, Conversation, Example, Passage

Kind = Literal["text", "code", "qa", "completion", "chat", "preference"]


def kind_of(example: Example) -> Kind:
    """The narrowest kind that an example is of: a conversation of one exchange is ``qa``."""
    if isinstance(example, Conversation):
        return "qa" if example.is_one_exchange else "chat"
    if isinstance(example, Passage):
        return "code" if example.code else "text"
    return "completion" if isinstance(example, Completion) else "preference"
