"""Chat templates: messages → text → token ids, and which of the ids are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchd.errors import TemplateUnusable


class ChatMessage(Protocol):
    """What a message must have here: `orchd.importers.conversation.Message` does."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids. ``counted[i]``: does token i count in the loss? The first token
    never does, for nothing predicts it."""

    ids: tuple[int, ...]
    counted: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counted) or (self.counted and self.counted[0]):
            raise ValueError("one flag a token, and the first token cannot count")

    @property
    def counted_tokens(self) -> int:
        return sum(self.counted)


def render(tokenizer: Any, messages: Sequence[ChatMessage], add_generation_prompt: bool = False) -> str:
    """The text that the model sees, special tokens included."""
    text: str = tokenizer.apply_chat_template(
        _plain(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return text


def encode_prompt(tokenizer: Any, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids up to where the assistant's answer begins."""
    return _ids(tokenizer, render(tokenizer, messages, add_generation_prompt=True))


def encode_conversation(
    tokenizer: Any, messages: Sequence[ChatMessage], counted: Sequence[bool] | None = None
) -> Encoded:
    """Token ids of the whole conversation; the assistant's tokens count, with their end of turn.

    ``counted`` says for each message whether its tokens may count (default: all the assistant's).
    A template with ``{% generation %}`` tags gives the answer itself; for another one each answer is
    what the text gains when the message is added. Raises `TemplateUnusable` where neither works.
    """
    wanted = [message.role == "assistant" and (counted is None or counted[i]) for i, message in enumerate(messages)]
    if "{% generation" in _template(tokenizer) or "{%- generation" in _template(tokenizer):
        return _encode_with_tags(tokenizer, messages, wanted)
    return _encode_by_growth(tokenizer, messages, wanted)


def _encode_with_tags(tokenizer: Any, messages: Sequence[ChatMessage], wanted: Sequence[bool]) -> Encoded:
    encoded = tokenizer.apply_chat_template(_plain(messages), return_dict=True, return_assistant_tokens_mask=True)
    runs = _runs(encoded["assistant_masks"])
    answers = [keep for keep, m in zip(wanted, messages, strict=True) if m.role == "assistant"]
    if len(runs) != len(answers):
        raise TemplateUnusable(f"{len(answers)} answers, but {len(runs)} marked stretches of tokens")
    mask = [False] * len(encoded["input_ids"])
    for (start, end), keep in zip(runs, answers, strict=True):
        mask[start:end] = [keep] * (end - start)
    return _encoded(encoded["input_ids"], mask)


def _encode_by_growth(tokenizer: Any, messages: Sequence[ChatMessage], wanted: Sequence[bool]) -> Encoded:
    ids = _ids(tokenizer, render(tokenizer, messages))
    mask = [False] * len(ids)
    for index, keep in enumerate(wanted):
        if not keep:
            continue
        before = encode_prompt(tokenizer, messages[:index])
        after = _ids(tokenizer, render(tokenizer, messages[: index + 1]))
        if ids[: len(before)] != before or ids[: len(after)] != after or len(after) <= len(before):
            raise TemplateUnusable("adding an answer changes the text before it")
        mask[len(before) : len(after)] = [True] * (len(after) - len(before))
    return _encoded(ids, mask)


def _encoded(ids: Sequence[int], mask: Sequence[bool]) -> Encoded:
    return Encoded(tuple(ids), (False, *mask[1:]) if mask else ())


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end of each stretch of ones."""
    edges = [0, *mask, 0]
    starts = [i for i in range(len(mask)) if edges[i + 1] and not edges[i]]
    ends = [i for i in range(1, len(mask) + 1) if edges[i] and not edges[i + 1]]
    return list(zip(starts, ends, strict=True))


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _template(tokenizer: Any) -> str:
    return str(tokenizer.chat_template)
