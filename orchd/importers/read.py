"""See by the shape of records what an export is, and yield its examples: all of one kind."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from orchd.errors import ImportUnreadable
from orchd.importers import chatgpt, claude, flat, named
from orchd.importers.clean import MAX_TEXT_BYTES, digest_of, objects
from orchd.importers.conversation import Completion, Conversation, Example, Message, Passage
from orchd.importers.encoding import SAMPLE_BYTES, encoding_of
from orchd.importers.kinds import Kind, kind_of
from orchd.importers.pick import Pick, texts_of
from orchd.importers.shape import oddities, order_of
from orchd.importers.source import AS_SAVED, ImportLog, Piece, pieces
from orchd.importers.stream import BadRecord
from orchd.importers.turns import Learn, turned

AS_TEXT: Final = "If it is plain text, give `--format text`."

SHOWN_FIELDS: Final = 12
REASONS: Final = 3
"""So many fields of a record, and reasons why nothing came of a file, are named."""

_Parser = Callable[[dict[str, Any]], Example | None]

#: Format → (the key that its records have, the parser).
SHAPES: Final[dict[str, tuple[str, _Parser]]] = {
    "chatgpt": ("mapping", chatgpt.parse),
    "claude": ("chat_messages", claude.parse),
    "openai": ("messages", flat.parse_openai),
    "sharegpt": ("conversations", flat.parse_sharegpt),
    "alpaca": ("instruction", flat.parse_alpaca),
}
NAMED: Final = "jsonl"
FORMATS: Final = (*SHAPES, NAMED, "csv", "text")
KINDS: Final[tuple[str, ...]] = get_args(Kind)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How to read a source. ``auto`` finds out what it is. ``columns`` says in which column of a table (or under which
    key) the question, answer, prompt, completion, text, chosen, rejected or system text is. ``learn``: whose turns of a
    conversation."""

    format: str = "auto"
    kind: str = "auto"
    columns: dict[str, str] = {}
    pick: Pick = Pick()
    learn: Learn = "assistant"


AUTO: Final = Reading()


def read_examples(
    path: Path, log: ImportLog, reading: Reading = AUTO, progress: Callable[[], None] = lambda: None
) -> Iterator[Example]:
    """Stream the examples in ``path`` (JSON, JSONL, CSV, text, code, a zip of an export, a folder; memory stays small).

    ``log`` is filled on the way and ``progress`` called after each record. Examples without text are
    counted as skipped. Raises `ImportUnreadable` when nothing in the file is a known
    record, `ImportTooLarge` when it is bigger than the limits.
    """
    _check(reading)
    log.learns = reading.learn
    found = readable = 0
    others = dict[str, None]()
    for piece in pieces(path, log, reading.format, reading.kind):
        progress()
        if isinstance(piece, BadRecord):
            log.skip(str(piece), "Repair this record, or leave it out.")
            continue
        readable += 1
        for format, example in _examples(piece, reading, log, others):
            found += 1
            log.format = log.format or format
            if fitting := _fitting(example, reading, log):
                yield turned(fitting, reading.learn)
    if not found and not log.format:
        raise _nothing(path, log, reading.format, readable, list(others))


def _check(reading: Reading) -> None:
    for field, given, known in (
        ("format", reading.format, ("auto", *FORMATS)),
        ("kind", reading.kind, ("auto", *KINDS)),
    ):
        if given not in known:
            other = "format" if given in FORMATS else "kind" if given in KINDS else ""
            hint = f"{given} is a {other}: give `--{other} {given}`." if other else None
            listed = ", ".join(known)
            raise ImportUnreadable(
                f"no such {field}: {given[:80]} (known: {listed})",
                hint=hint or f"Give one of {listed}; auto, the default, finds it out.",
                field=field,
            )
    if unknown := [meant for meant in reading.columns if meant not in named.NAMES]:
        hint = f"Say the column of one of {', '.join(named.NAMES)}."
        raise ImportUnreadable(f"columns: nothing is called {unknown[0][:40]!r}", hint=hint, field="columns")


def _examples(piece: Piece, reading: Reading, log: ImportLog, others: dict[str, None]) -> Iterator[tuple[str, Example]]:
    """What is in one record, with the format that it has; ``others`` gets the formats that were not asked for."""
    if isinstance(piece, Passage):
        yield "text", piece
        return
    assert isinstance(piece, dict)
    table = log.file.endswith((".csv", ".tsv")) or reading.format == "csv"
    for one in _unwrapped(piece, reading):
        seen = detect(one, reading)
        if seen is None or (reading.format in SHAPES and seen != reading.format):
            if seen is None:
                log.skip(*_unknown(one, reading))
            else:
                log.skip(f"{seen}, not {reading.format}", f"Leave `--format` out, or give `--format {seen}`.")
            others.update({seen: None} if seen else {})
            continue
        log.format = log.format or ("csv" if table else seen)
        for text, fix in oddities(one, seen):
            log.warn(text, fix)
        example = named.parse(one, reading.columns) if seen == NAMED else SHAPES[seen][1](one)
        if example is None or not any(texts_of(example)):
            fix = "" if example is None else "Give it text, or leave it out."
            log.skip("not to be remembered" if example is None else "empty", fix)
            continue
        yield log.format, example


def _unknown(record: dict[str, Any], reading: Reading) -> tuple[str, str]:
    """Why nothing is found in a record, and what to do about it."""
    there = ", ".join(list(record)[:SHOWN_FIELDS]) or "nothing"
    if missing := [column for column in reading.columns.values() if column not in record]:
        return f"no column {missing[0][:40]!r}; there is {there}", "Give `--columns` the names that are there."
    wanted = "prompt=NAME,chosen=NAME,rejected=NAME" if reading.kind == "preference" else "question=NAME,answer=NAME"
    fix = f"A record needs texts under names that are known; `--columns {wanted}` tells them."
    return f"no known shape; there is {there}", fix


def detect(record: dict[str, Any], reading: Reading = AUTO) -> str | None:
    """The format of a record, by its keys and never by a file's name."""
    if reading.format in SHAPES and SHAPES[reading.format][0] in record:
        return reading.format
    if named.is_preference(record) or reading.columns:
        return NAMED if named.is_named(record, reading.columns) else None
    seen = next((format for format, (key, _) in SHAPES.items() if key in record), None)
    return seen or (NAMED if named.is_named(record, reading.columns) else None)


def _fitting(example: Example, reading: Reading, log: ImportLog) -> Example | None:
    """The example as one of the kind that is read, if it is wanted; the first one decides where none is given."""
    if not reading.pick.wants(example):
        log.not_picked += 1
        return None
    fitting = as_kind(example, reading.kind)
    kind = kind_of(fitting or example)
    family = "chat" if kind == "qa" else kind
    log.kind = log.kind or (reading.kind if reading.kind != "auto" else family)
    wanted = reading.kind if reading.kind != "auto" else log.kind
    if fitting is None or (reading.kind == "auto" and family != log.kind):
        fix = f"A data set is of one kind; import the {kind} records by themselves with `--kind {kind}`."
        log.skip(f"{kind}, not {wanted}", fix)
        return None
    if any(len(text) > MAX_TEXT_BYTES // 4 and len(text.encode()) > MAX_TEXT_BYTES - 8 for text in texts_of(fitting)):
        log.warn(f"a text was cut at {MAX_TEXT_BYTES // 1_000_000} MB", "Cut it into several examples.")
    if any("\ufffd" in text for text in texts_of(fitting)):
        log.warn("characters that could not be read became U+FFFD", "Save the file as UTF-8, or mend the text.")
    if log.format not in ("chatgpt", "claude") and isinstance(fitting, Conversation):
        for text, fix in order_of(fitting):
            log.warn(text, fix)
    return fitting


def as_kind(example: Example, kind: str) -> Example | None:
    """The same as an example of ``kind``, or None where it can't be one."""
    if kind == "auto":
        return example
    if kind in ("chat", "qa"):
        if isinstance(example, Completion):
            said = (Message("user", example.prompt.strip()), Message("assistant", example.completion.strip()))
            example = Conversation(id=example.id, messages=said, title=example.title, part=example.part)
        fits = isinstance(example, Conversation) and (kind == "chat" or example.is_one_exchange)
        return example if fits else None
    if kind == "completion" and isinstance(example, Conversation) and len(example.messages) == 2:
        prompt, completion = (message.content for message in example.messages)
        id = digest_of("completion", prompt, completion)
        return Completion(id=id, prompt=prompt, completion=completion, title=example.title, part=example.part)
    if kind in ("text", "code") and isinstance(example, Passage):
        return msgspec.structs.replace(example, code=kind == "code")
    return example if kind_of(example) == kind else None


def _unwrapped(record: dict[str, Any], reading: Reading) -> list[dict[str, Any]]:
    """The records inside ``{"conversations": [...]}``, or of an object keyed by id; else itself."""
    inner = objects(record.get("conversations"))
    if inner and any(detect(one) for one in inner):
        return inner
    values = list(record.values())
    if detect(record, reading) is None and values and all(isinstance(one, dict) for one in values):
        return [one for one in values if detect(one, reading)] or [record]
    return [record]


def _nothing(path: Path, log: ImportLog, format: str, readable: int, others: list[str]) -> ImportUnreadable:
    """Why nothing came of a file."""
    if others:
        hint = f"Leave `--format` out, or give `--format {others[0]}`."
        return ImportUnreadable(f"{path.name} is {' and '.join(others)}, not {format}", hint=hint, field="format")
    if path.is_file() and not path.stat().st_size:
        return ImportUnreadable(
            f"{path.name}: nothing to import, it is empty", hint="Give a file with something in it.", field="source"
        )
    if log.records and not readable:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            binary = encoding_of(file.read(SAMPLE_BYTES)) is None
        detail, hint = ("this is binary, no text", AS_SAVED) if binary else ("this is not JSON", AS_TEXT)
        return ImportUnreadable(f"{path.name}: nothing to import, {detail}", hint=hint, field="source")
    reason = "; ".join(log.warnings[:REASONS]) or "no records"
    hint = log.problems[0].fix if log.problems else AS_TEXT
    return ImportUnreadable(f"{path.name}: nothing to import ({reason})", hint=hint or None, field="source")
