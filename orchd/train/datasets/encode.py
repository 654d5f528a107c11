"""A row → the token ids that the model sees, and which of them count in the loss. One way for training, scoring and
preview."""

from __future__ import annotations

from typing import Any

from orchd.importers.conversation import Message
from orchd.lm.chat import Encoded, encode_conversation, encode_prompt
from orchd.train.datasets.store import ChatRow, CompletionRow, PreferenceRow, Row, TextRow


def encode_row(tokenizer: Any, row: Row) -> Encoded:
    """The row's token ids with everything counted that is to be learnt.

    Conversations go through the base's chat template, and their answers count. Text and code stand alone between the
    base's own begin and end tokens, and all of it counts; of a prompt with its completion, the completion and the end.
    Of a preference the chosen answer counts, as in a conversation. Raises `TemplateUnusable`.
    """
    if isinstance(row, TextRow):
        return _counted_from(1, _plain(tokenizer, row.text))
    if isinstance(row, CompletionRow):
        prompt = tokenizer.encode(row.prompt)
        return _counted_from(len(prompt), [*prompt, *_ids(tokenizer, row.completion), *_end(tokenizer)])
    messages = answered(row)
    counts = [one.counts for one in messages]
    if isinstance(row, PreferenceRow):
        counts = [False] * len(row.messages) + [True]
    return encode_conversation(tokenizer, messages, counts)


def encode_fitting(tokenizer: Any, row: Row, longest: int) -> list[Encoded]:
    """The row as training takes it, in stretches of at most ``longest`` tokens (0: no bound).

    Text and code that are longer are read in several, each of which begins with the last token of the one before, so
    that every token is learnt once. Anything else that is longer is left out: half an answer teaches to stop early.
    """
    whole = encode_row(tokenizer, row)
    if not longest or len(whole.ids) <= longest:
        return [whole]
    if not isinstance(row, TextRow):
        return []
    return [
        _counted_from(1, list(whole.ids[start : start + longest]))
        for start in range(0, len(whole.ids) - 1, longest - 1)
    ]


def answered(row: ChatRow | PreferenceRow) -> tuple[Message, ...]:
    """The messages as they are to be learnt: of a preference, with the chosen answer."""
    if isinstance(row, PreferenceRow):
        return (*row.messages, Message("assistant", row.chosen))
    return row.messages


def answer_of(tokenizer: Any, row: Row) -> tuple[tuple[int, ...], str, int] | None:
    """The last question of a row: its token ids, the answer as text, and the answer's number of tokens; None where it
    has no question."""
    if isinstance(row, TextRow):
        return None
    if isinstance(row, CompletionRow):
        tokens = len(_ids(tokenizer, row.completion)) + len(_end(tokenizer))
        return tuple(tokenizer.encode(row.prompt)), row.completion.strip(), tokens
    messages = answered(row)
    last = next(
        (at for at in range(len(messages) - 1, 0, -1) if messages[at].role == "assistant" and messages[at].counts), None
    )
    if last is None:
        return None
    prompt = encode_prompt(tokenizer, messages[:last])
    only = [False] * last + [True]
    tokens = encode_conversation(tokenizer, messages[: last + 1], only).counted_tokens
    return tuple(prompt), messages[last].content.strip(), tokens


def _counted_from(start: int, ids: list[int]) -> Encoded:
    first = max(1, start)
    return Encoded(tuple(ids), tuple(at >= first for at in range(len(ids))))


def _plain(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer.encode(text), *_end(tokenizer)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
