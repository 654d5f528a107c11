"""Records with a name for each text: question and answer, prompt and completion, text alone, or an answer preferred
to another. So are CSV tables, many JSONL files, and what `orchctl dataset export` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from orchd.importers import flat
from orchd.importers.clean import clean, content_id, digest_of, objects, part_of
from orchd.importers.conversation import Completion, Conversation, Example, Message, Passage, Preference

#: What is meant → the names that it goes by, the plainest first. Compared in lower case.
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "question": ("question", "query", "user", "human", "input", "pergunta", "entrada"),
    "answer": ("answer", "response", "output", "assistant", "reply", "resposta", "saída", "saida"),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "text": ("text", "content", "texto", "body", "document"),
    "code": ("code", "source_code"),
    "chosen": ("chosen", "preferred", "preferred_output"),
    "rejected": ("rejected", "non_preferred_output"),
    "system": ("system", "system_prompt"),
    "title": ("title", "titulo", "título"),
    "group": ("group", "conversation_id"),
}

Columns = Mapping[str, str]
"""What is meant → the column that the user says it is in."""


def names_of(record: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """What is meant → the record's own name for it."""
    lowered = {key.strip().lower(): key for key in record}
    found = {meant: columns[meant] for meant in columns if columns[meant] in record}
    for meant, names in NAMES.items():
        name = next((lowered[name] for name in names if name in lowered), None)
        if name is not None and meant not in found and name not in found.values():
            found[meant] = name
    return found


def is_named(record: Mapping[str, Any], columns: Columns) -> bool:
    """Whether `parse` finds an example in such a record. One message of a conversation (``role`` and ``content``) is
    none: learnt by itself it would be an answer to nothing."""
    if {"role", "content"} <= {key.strip().lower() for key in record}:
        return False
    names = names_of(record, columns)
    pairs = (("chosen", "rejected"), ("question", "answer"), ("prompt", "completion"), ("prompt", "answer"))
    return any(one in names and other in names for one, other in pairs) or "text" in names or "code" in names


def is_preference(record: Mapping[str, Any]) -> bool:
    """Whether it holds two answers: this comes before all other shapes, whose keys it may have too."""
    return {"chosen", "rejected"} <= record.keys() or {"preferred_output", "non_preferred_output"} <= record.keys()


def parse(record: dict[str, Any], columns: Columns) -> Example:
    """The example in a record that `is_named`; empty texts where it has none."""
    names = names_of(record, columns)

    def text(meant: str) -> str:
        return clean(record.get(names.get(meant, "")))

    about: dict[str, Any] = {"title": text("title"), "group": text("group"), "part": part_of(record)}
    if "chosen" in names and "rejected" in names:
        return _preference(record, names, about)
    question = "question" if "question" in names else "prompt"
    if "answer" in names and question in names:
        said = (Message("user", text(question)), Message("assistant", text("answer")))
        system = (Message("system", text("system")),) if text("system") else ()
        messages = tuple(one for one in (*system, *said) if one.content)
        return Conversation(id=content_id(messages), messages=messages, nodes=2, **about)
    if "completion" in names and "prompt" in names:
        prompt, completion = _as_is(record[names["prompt"]]), _as_is(record[names["completion"]])
        return Completion(id=digest_of("completion", prompt, completion), prompt=prompt, completion=completion, **about)
    meant = "code" if "code" in names else "text"
    whole = _as_is(record.get(names[meant])) if meant == "code" else text(meant)
    return passage(whole, code=meant == "code", **about)


def passage(text: str, *, code: bool, **about: Any) -> Passage:
    return Passage(id=digest_of("passage", text), text=text, code=code, **about)


def _as_is(value: object) -> str:
    """Cleaned, with the blanks at its ends: between a prompt and its completion they are part of the text."""
    inner = clean(value)
    if not isinstance(value, str):
        return inner
    return value[: len(value) - len(value.lstrip())] + inner + value[len(value.rstrip()) :] if inner else ""


def _preference(record: dict[str, Any], names: Mapping[str, str], about: Mapping[str, Any]) -> Preference:
    """Answers as texts, as messages, or as whole conversations that begin alike."""
    chosen, rejected = (_messages(record[names[meant]]) for meant in ("chosen", "rejected"))
    before = _before(record, names) or chosen[:-1]
    answers = (chosen[-1].content if chosen else "", rejected[-1].content if rejected else "")
    digest = digest_of("preference", *(part for one in before for part in (one.role, one.content)), "", *answers)
    return Preference(id=digest, messages=before, chosen=answers[0], rejected=answers[1], **about)


def _before(record: dict[str, Any], names: Mapping[str, str]) -> tuple[Message, ...]:
    inner = record.get("input")
    for holder in (inner if isinstance(inner, dict) else {}, record):
        for key, parser in (("messages", flat.parse_openai), ("conversations", flat.parse_sharegpt)):
            if objects(holder.get(key)):
                return parser(holder).messages
    system = clean(record.get(names.get("system", "")))
    said = record.get(names.get("prompt") or names.get("question") or "instruction")
    if objects(said):
        return _messages(said)
    texts = (("system", system), ("user", clean(said)))
    return tuple(Message(cast(Any, role), text) for role, text in texts if text)


def _messages(value: object) -> tuple[Message, ...]:
    """A text, a message, or a list of messages, of either way of writing them; the last is the answer."""
    if isinstance(value, str | int | float):
        return (Message("assistant", text),) if (text := clean(value)) else ()
    found = objects(value) or objects([value])
    if any("from" in one for one in found):
        return flat.parse_sharegpt({"conversations": found}).messages
    return flat.parse_openai({"messages": [{"role": "assistant", **one} for one in found]}).messages
