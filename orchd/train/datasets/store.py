"""The folder of a data set: ``dataset.json``, ``findings.jsonl`` and ``train.jsonl``, ``validation.jsonl``,
``test.jsonl``. A line is a row; all rows of a data set are of one kind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from orchd.errors import DatasetUnusable
from orchd.importers.clean import content_id, digest_of
from orchd.importers.conversation import Completion, Conversation, Example, Message, Part, Passage, Preference
from orchd.importers.read import FORMATS
from orchd.importers.turns import Learn
from orchd.records.ids import DATASET, text_id

PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test")
INFO_FILE: Final = "dataset.json"
FINDINGS_FILE: Final = "findings.jsonl"
FORMAT_VERSION: Final = 2
"""Another one where rows have other digests: `check_content` compares those of this version."""

CHANGED_HINT: Final = (
    "Put its files back as they were (`orchctl train resume JOB` goes on with a training then), or import it again."
)


class DatasetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``dataset.json``. ``train``, ``validation`` and ``test`` are numbers of rows.

    ``kind`` is what the rows are, ``format`` what they were read from. ``duplicates`` and ``near_duplicates`` were
    taken out, ``redacted`` and ``dropped`` count rows; ``findings`` counts what was found by its kind, and
    ``redacted_kinds`` what was taken out. ``made_from`` is the data set that this one was prepared from.
    ``synthetic``: the user says that it is made up, and of nobody. ``learns``: whose turns of conversations are learnt;
    of the user's the rows have the roles exchanged.
    """

    id: str
    name: str
    kind: str
    split: str
    seed: int
    rows: int
    train: int
    validation: int
    test: int
    skipped: int
    duplicates: int
    format: str = ""
    near_duplicates: int = 0
    groups: int = 0
    redacted: int = 0
    dropped: int = 0
    not_picked: int = 0
    findings: dict[str, int] = {}
    redacted_kinds: dict[str, int] = {}
    made_from: str = ""
    synthetic: bool = False
    learns: Learn = "assistant"
    version: int = FORMAT_VERSION


class ChatRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of the kinds ``chat`` and ``qa``."""

    id: str
    messages: tuple[Message, ...]
    title: str = ""
    group: str = ""


class TextRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of the kinds ``text`` and ``code``: all of it is learnt."""

    id: str
    text: str
    title: str = ""
    group: str = ""


class CompletionRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of the kind ``completion``: only ``completion`` is learnt."""

    id: str
    prompt: str
    completion: str
    title: str = ""
    group: str = ""


class PreferenceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A row of the kind ``preference``: ``chosen`` is the better answer to ``messages``."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    title: str = ""
    group: str = ""


Row = ChatRow | TextRow | CompletionRow | PreferenceRow

_ROWS: Final[dict[str, type[Row]]] = {
    "chat": ChatRow,
    "qa": ChatRow,
    "text": TextRow,
    "code": TextRow,
    "completion": CompletionRow,
    "preference": PreferenceRow,
}


def to_row(one: Example) -> Row:
    if isinstance(one, Conversation):
        return ChatRow(one.id, one.messages, one.title, one.group)
    if isinstance(one, Passage):
        return TextRow(one.id, one.text, one.title, one.group)
    if isinstance(one, Completion):
        return CompletionRow(one.id, one.prompt, one.completion, one.title, one.group)
    return PreferenceRow(one.id, one.messages, one.chosen, one.rejected, one.title, one.group)


def to_example(row: Row, kind: str, part: Part = "") -> Example:
    """The row as it was imported, with the part that it is in."""
    about: dict[str, Any] = {"id": row.id, "title": row.title, "group": row.group, "part": part}
    if isinstance(row, ChatRow):
        return Conversation(messages=row.messages, **about)
    if isinstance(row, TextRow):
        return Passage(text=row.text, code=kind == "code", **about)
    if isinstance(row, CompletionRow):
        return Completion(prompt=row.prompt, completion=row.completion, **about)
    return Preference(messages=row.messages, chosen=row.chosen, rejected=row.rejected, **about)


def digest_of_content(row: Row) -> str:
    """What decides whether two rows are the same: everything that can be learnt, nothing about where it came from."""
    if isinstance(row, ChatRow):
        return content_id(row.messages)
    if isinstance(row, TextRow):
        return digest_of("passage", row.text)
    if isinstance(row, CompletionRow):
        return digest_of("completion", row.prompt, row.completion)
    return digest_of("preference", content_id(row.messages), row.chosen, row.rejected)


def texts_of_row(row: Row) -> tuple[tuple[str, str], ...]:
    """Every text of a row with who says it: a role, or prompt, completion, text, chosen or rejected."""
    if isinstance(row, ChatRow):
        return tuple((message.role, message.content) for message in row.messages)
    if isinstance(row, TextRow):
        return (("text", row.text),)
    if isinstance(row, CompletionRow):
        return (("prompt", row.prompt), ("completion", row.completion))
    said = tuple((message.role, message.content) for message in row.messages)
    return (*said, ("chosen", row.chosen), ("rejected", row.rejected))


def with_texts(row: Row, texts: tuple[str, ...]) -> Row:
    """The row with other texts, in the order of `texts_of_row`."""
    if isinstance(row, TextRow):
        return msgspec.structs.replace(row, text=texts[0])
    if isinstance(row, CompletionRow):
        return msgspec.structs.replace(row, prompt=texts[0], completion=texts[1])
    messages = tuple(
        msgspec.structs.replace(message, content=text) for message, text in zip(row.messages, texts, strict=False)
    )
    if isinstance(row, ChatRow):
        return msgspec.structs.replace(row, messages=messages)
    return msgspec.structs.replace(row, messages=messages, chosen=texts[-2], rejected=texts[-1])


def marks_file(folder: Path, fingerprint: str, split: str) -> Path:
    """Where `keep_marks` keeps what a base got on one part of a data set."""
    return folder / f"marks-{fingerprint}-{split}.json"


def keep_marks(folder: Path, fingerprint: str, split: str, made: str) -> None:
    """Take in what a worker made, if it made any. It goes with the data set; where it can't be kept, the base is scored
    again."""
    if not made or not fingerprint:
        return
    target = marks_file(folder, fingerprint, split)
    draft = target.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        shutil.copyfile(made, draft)
        os.replace(draft, target)


def read_info(folder: Path) -> DatasetInfo:
    """Raises `DatasetUnusable`."""
    try:
        info = msgspec.json.decode((folder / INFO_FILE).read_bytes(), type=DatasetInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise DatasetUnusable(f"{folder.name}: {INFO_FILE}: {error}", field="dataset") from error
    if info.version == 1 and info.kind in FORMATS:  # version 1 knew conversations alone, and called their format kind
        return msgspec.structs.replace(info, kind="chat", format=info.kind)
    return info


def read_part(folder: Path, part: str) -> Iterator[Row]:
    """The rows of one of `PARTS`, in the order of the file. Raises `DatasetUnusable`."""
    if part not in PARTS:
        raise DatasetUnusable(f"no such part: {part} (known: {', '.join(PARTS)})", field="split")
    decoder = decoder_of(read_info(folder).kind)
    try:
        with (folder / f"{part}.jsonl").open("rb") as file:
            for line in file:
                yield decoder.decode(line)
    except (OSError, msgspec.DecodeError) as error:
        raise DatasetUnusable(f"{folder.name}: {part}.jsonl: {error}", hint=CHANGED_HINT, field="dataset") from error


def identity(contents: Mapping[str, Sequence[str]]) -> str:
    """``dst_…``: SHA-256 over the sizes of the parts and the digests of their rows' contents, in their order."""
    digest = hashlib.sha256(",".join(f"{part}={len(contents[part])}" for part in PARTS).encode())
    for part in ("test", "validation", "train"):
        for content in contents[part]:
            digest.update(content.encode())
    return text_id(DATASET, digest.digest())


def check_content(folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """Whether a data set of the node, whose folder is called by its id, still has the rows that the id is of: what is
    learnt from it is signed for under that id. ``check`` is called at each row. Raises `DatasetUnusable`."""
    info = read_info(folder)
    if folder.name != info.id or info.version != FORMAT_VERSION:
        return
    contents: dict[str, list[str]] = {part: [] for part in PARTS}
    for part in PARTS:
        for row in read_part(folder, part):
            check()
            contents[part].append(digest_of_content(row))
    if identity(contents) != info.id:
        said = f"the data set {info.name!r} was changed in its folder: its rows are not those that its id is of"
        raise DatasetUnusable(said, hint=CHANGED_HINT, field="dataset")


def decoder_of(kind: str) -> msgspec.json.Decoder[Row]:
    """Reads one line of a data set of this kind."""
    return msgspec.json.Decoder(_ROWS[kind])
