"""Examples → a data set folder: secrets seen to, duplicates out, parts fixed by the content and a seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from orchd.errors import DatasetUnusable, SecretsFound
from orchd.importers.conversation import Conversation, Example, Part
from orchd.importers.source import ImportLog
from orchd.train.datasets.near import Groups, find_near
from orchd.train.datasets.privacy import KEYS, Finding, masked, redacted, scan
from orchd.train.datasets.store import (
    FINDINGS_FILE,
    INFO_FILE,
    PARTS,
    DatasetInfo,
    Row,
    decoder_of,
    digest_of_content,
    identity,
    texts_of_row,
    to_row,
    with_texts,
)

Split = Literal["auto", "train", "test"]
OnSecrets = Literal["ask", "redact", "drop", "keep"]
MAX_FINDINGS = 10_000
PLACES_TOLD = 3
ID_CHARACTERS = 13
"""Of a conversation's id: enough to tell it from the others of an export."""

CHOSEN_BY_ID: Final = frozenset({"chatgpt", "claude"})
"""Formats whose examples carry the ids that `--id` takes."""

_EXCHANGED: Final = {"user": "assistant", "assistant": "user"}
"""A row's role → who said it, where the user's turns are learnt."""


@dataclass(frozen=True)
class Parts:
    """How the rows are divided: see `orchd.train.specs.ImportSpec`."""

    split: Split = "auto"
    seed: int = 0
    test_share: float = 0.1
    validation_share: float = 0.1

    def sizes(self, rows: int) -> dict[str, int]:
        """Rows for test and validation; the rest is for training."""
        if self.split == "test":
            return {"test": rows, "validation": 0}
        if self.split == "train":
            return {"test": 0, "validation": 0}
        return {
            "test": round(rows * self.test_share),
            "validation": round(rows * self.validation_share),
        }


@dataclass(frozen=True)
class Care:
    """What is done with secrets and personal data (``keys_only``: with keys and passwords alone), and whether of rows
    that are nearly the same one stays."""

    secrets: OnSecrets = "ask"
    keys_only: bool = False
    drop_near: bool = True


CAREFUL: Final = Care()


@dataclass(frozen=True, slots=True)
class _Spooled:
    """Where a row lies in the spool, and what decides between two copies of it."""

    offset: int
    size: int
    content: str
    newness: tuple[int, int]
    group: str
    part: Part
    findings: tuple[Finding, ...]


@dataclass
class _Counts:
    duplicates: int = 0
    redacted: int = 0
    dropped: int = 0
    near_duplicates: int = 0
    groups: int = 0
    one_exchange: bool = True

    def of_rows(self) -> dict[str, int]:
        """As `DatasetInfo` has them."""
        return {name: count for name, count in asdict(self).items() if name != "one_exchange"}


def build(
    examples: Iterable[Example],
    log: ImportLog,
    folder: Path,
    parts: Parts,
    name: str,
    care: Care = CAREFUL,
    *,
    made_from: str = "",
    synthetic: bool = False,
    check: Callable[[], None] = lambda: None,
) -> DatasetInfo:
    """Write the data set to ``folder`` (made; must be empty) and return what it holds.

    ``log`` is the one that ``examples`` fills while they are read; ``check`` is called often and may raise to stop.

    Memory grows with the number of rows, not with their text. Of two copies with one id the newer
    stays (or the one with more nodes); of equal contents one, of near duplicates the newest. Rows without an answer to
    learn are counted as skipped. Rows that say their part (of a data set that was exported) keep part and order, and
    are not thinned, unless the data set is ``made_from`` another one. Raises `DatasetUnusable` when nothing is left,
    `SecretsFound` when there are keys and nobody has said what to do.
    """
    if not 0 <= parts.test_share + parts.validation_share < 1:
        raise DatasetUnusable("the shares put aside must leave something to train on", field="split")
    folder.mkdir(parents=True, exist_ok=True)
    spool = folder / "spool.tmp"
    counts = _Counts()
    with spool.open("w+b") as file:
        rows = _spool(examples, log, file, care, counts)
        _check(rows, log, counts, name, care)
        kind = "qa" if log.kind in ("", "chat") and counts.one_exchange else log.kind or "chat"
        if parts.split == "auto" and all(row.part for row in rows):
            divided = _as_said(_thinned(rows, file, kind, counts, check) if made_from and care.drop_near else rows)
        else:
            divided = _divided(rows, file, kind, parts, care, counts, check)
        kept = _write_parts(divided, file, folder)
    spool.unlink()
    found = [one for row in kept for one in row.findings]
    taken, findings = (found, []) if care.secrets == "redact" else ([], found)
    _write_findings(folder, findings)
    info = DatasetInfo(
        id=identity({part: [row.content for row in divided[part]] for part in PARTS}),
        name=name,
        kind=kind,
        format=log.format,
        split=parts.split,
        seed=parts.seed,
        rows=len(kept),
        **{part: len(divided[part]) for part in PARTS},
        skipped=log.skipped,
        not_picked=log.not_picked,
        **counts.of_rows(),
        findings=dict(Counter(one.kind for one in findings)),
        redacted_kinds=dict(Counter(one.kind for one in taken)),
        made_from=made_from,
        synthetic=synthetic,
        learns=log.learns,
    )
    (folder / INFO_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1))
    return info


def _check(rows: list[_Spooled], log: ImportLog, counts: _Counts, name: str, care: Care) -> None:
    """Raises `DatasetUnusable` where nothing is left, `SecretsFound`."""
    if not rows:
        raise _nothing_left(log, counts, name)
    _ask_about_keys(rows, log, care)


def _nothing_left(log: ImportLog, counts: _Counts, name: str) -> DatasetUnusable:
    if log.not_picked and not log.skipped:
        hint = "Ask for less; `orchctl dataset validate FILE --list 100` shows what there is to choose from."
        return DatasetUnusable(f"{name}: none of {log.not_picked} fits what was asked for", hint=hint, field="source")
    if counts.dropped:
        hint = "`--redact` takes out what was found and keeps the rows."
        return DatasetUnusable(f"{name}: all rows were dropped for what is in them", hint=hint, field="secrets")
    hint = "A row needs a question and an answer to it (of the assistant)."
    if log.learns == "user":
        hint = "A conversation needs a message that the user wrote."
    first = log.problems[0] if log.problems else None
    why = "" if first is None else f": {f'line {first.line}, ' if first.line else ''}{first.text}"
    detail = f"{name}: no conversation with an answer in it{why}"
    return DatasetUnusable(detail, hint=(first and first.fix) or hint, field="source")


# ---- what is read --------------------------------------------------------------------------------------------


def _spool(examples: Iterable[Example], log: ImportLog, file: IO[bytes], care: Care, counts: _Counts) -> list[_Spooled]:
    """The rows that stay: one of each id, one of each content."""
    by_id: dict[str, _Spooled] = {}
    for example in learnable(examples, log):
        before = by_id.get(example.id)
        newness = (example.updated_ms, example.nodes)
        counts.duplicates += before is not None
        if before is not None and before.newness >= newness:
            continue
        row, findings = _seen_to(to_row(example), log, care, counts)
        if row is None:
            continue
        counts.one_exchange &= not isinstance(example, Conversation) or example.is_one_exchange
        line = msgspec.json.encode(row) + b"\n"
        content = digest_of_content(row)
        by_id[example.id] = _Spooled(file.tell(), len(line), content, newness, example.group, example.part, findings)
        file.write(line)
    by_content = {row.content: row for row in by_id.values()}
    counts.duplicates += len(by_id) - len(by_content)
    return list(by_content.values())


def learnable(examples: Iterable[Example], log: ImportLog) -> Iterator[Example]:
    """Those from which there is something to learn; the others are counted as skipped."""
    for example in examples:
        if example.trainable:
            yield example
        else:
            log.skip("no answer to learn in it", "Add an answer after the question, or leave it out.")


def findings_in(row: Row, log: ImportLog, *, keys_only: bool) -> tuple[Finding, ...]:
    """What is found in a row that was just read; ``log`` says where."""
    exchanged = _EXCHANGED if log.learns == "user" else {}
    return tuple(
        Finding(
            kind=one.kind,
            row=row.id,
            title=row.title,
            file=log.file,
            line=log.line,
            text=number,
            who=exchanged.get(who, who),
            start=one.start,
            end=one.end,
            shown=masked(text[one.start : one.end]),
        )
        for number, (who, text) in enumerate(texts_of_row(row))
        for one in scan(text, keys_only=keys_only)
    )


def _seen_to(row: Row, log: ImportLog, care: Care, counts: _Counts) -> tuple[Row | None, tuple[Finding, ...]]:
    """The row as it may stay (None: it is dropped), and what was found in it."""
    findings = findings_in(row, log, keys_only=care.keys_only)
    if findings and care.secrets == "drop":
        counts.dropped += 1
        return None, ()
    if findings and care.secrets == "redact":
        counts.redacted += 1
        texts = [text for _, text in texts_of_row(row)]
        found = ([one for one in findings if one.text == number] for number in range(len(texts)))
        return with_texts(row, tuple(map(redacted, texts, found))), findings
    return row, findings


def _ask_about_keys(rows: list[_Spooled], log: ImportLog, care: Care) -> None:
    """Raises `SecretsFound` where there are keys and nobody has said what to do with them."""
    if care.secrets != "ask":
        return
    keys = [one for row in rows for one in row.findings if one.kind in KEYS]
    if not keys:
        return
    told = "; ".join(f"{one.kind} {one.shown} in {_place(one, log.format)}, {one.who}" for one in keys[:PLACES_TOLD])
    more = f" and {len(keys) - PLACES_TOLD} more" if len(keys) > PLACES_TOLD else ""
    many = "a key or password" if len(keys) == 1 else f"{len(keys)} keys or passwords"
    raise SecretsFound(f"{many} in what would be learnt: {told}{more}", field="secrets")


def _place(one: Finding, format: str) -> str:
    """Where somebody finds it again: an export of chats is one long line, and its conversations are chosen by id."""
    if format in CHOSEN_BY_ID:
        return f"{one.title!r} (`--id {one.row[:ID_CHARACTERS]}`)"
    return f"{one.file or one.title}{f' line {one.line}' if one.line else ''}"


def _write_findings(folder: Path, findings: list[Finding]) -> None:
    lines = (msgspec.json.encode(one) + b"\n" for one in findings[:MAX_FINDINGS])
    (folder / FINDINGS_FILE).write_bytes(b"".join(lines))


# ---- how it is divided ---------------------------------------------------------------------------------------


def _as_said(rows: list[_Spooled]) -> dict[str, list[_Spooled]]:
    """The parts as the rows say them, in their order."""
    return {part: [row for row in rows if row.part == part] for part in PARTS}


def _thinned(
    rows: list[_Spooled], spool: IO[bytes], kind: str, counts: _Counts, check: Callable[[], None]
) -> list[_Spooled]:
    """The rows without near duplicates; the first of them stays."""
    near = set(find_near(len(rows), _reader(rows, spool, kind), Groups(len(rows)), check))
    counts.near_duplicates = len(near)
    return [row for number, row in enumerate(rows) if number not in near]


def _reader(rows: list[_Spooled], spool: IO[bytes], kind: str) -> Callable[[int], str]:
    """Gives what is said in the row of a number, without standing instructions."""
    decoder = decoder_of(kind)

    def text_of(number: int) -> str:
        spool.seek(rows[number].offset)
        row = decoder.decode(spool.read(rows[number].size))
        return "\n".join(text for who, text in texts_of_row(row) if who != "system")

    return text_of


def _divided(
    rows: list[_Spooled],
    spool: IO[bytes],
    kind: str,
    parts: Parts,
    care: Care,
    counts: _Counts,
    check: Callable[[], None],
) -> dict[str, list[_Spooled]]:
    """The parts. ``counts`` gets the number of groups, and of near duplicates that were left out.

    A group (rows of one document, or related ones) is never divided. Groups come in an order that their contents and
    the seed decide; each goes to the test part while there is room for all of it, then to validation, else to training.
    """
    rows.sort(key=lambda row: ([-one for one in row.newness], row.content))
    together = Groups(len(rows))
    near = set(find_near(len(rows), _reader(rows, spool, kind), together, check))
    first_of: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row.group:
            together.join(first_of.setdefault(row.group, number), number)
    members: dict[int, list[_Spooled]] = {}
    for number, row in enumerate(rows):
        if not (care.drop_near and number in near):
            members.setdefault(together.find(number), []).append(row)
    groups = [sorted(group, key=lambda row: _rank(parts.seed, row.content)) for group in members.values()]
    groups.sort(key=lambda group: _rank(parts.seed, group[0].content))
    sizes = parts.sizes(sum(map(len, groups)))
    found: dict[str, list[_Spooled]] = {part: [] for part in PARTS}
    for group in groups:
        fits = [part for part in ("test", "validation") if len(found[part]) + len(group) <= sizes[part]]
        found[fits[0] if fits else "train"].extend(group)
    counts.groups, counts.near_duplicates = len(groups), len(near) if care.drop_near else 0
    return found


def _rank(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()


def _write_parts(divided: dict[str, list[_Spooled]], spool: IO[bytes], folder: Path) -> list[_Spooled]:
    """All rows that were written."""
    for part in PARTS:
        with (folder / f"{part}.jsonl").open("wb") as file:
            for row in divided[part]:
                spool.seek(row.offset)
                file.write(spool.read(row.size))
    return [row for part in PARTS for row in divided[part]]
