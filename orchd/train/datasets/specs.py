"""What the worker functions of data sets take and give. Paths are strings. No torch: the daemon reads it too."""

from __future__ import annotations

from typing import Literal

import msgspec

from orchd.importers.read import Reading
from orchd.importers.turns import Learn
from orchd.jobs.sandbox import Readable
from orchd.train.datasets.privacy import Finding
from orchd.train.datasets.store import DatasetInfo


class ImportSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Read ``source`` (a file or a folder) into a data set.

    ``split``: ``auto`` puts ``test_share`` and ``validation_share`` of the rows aside, ``train`` puts
    none aside, ``test`` makes every row one for scoring only. ``seed`` decides which group of rows goes where.
    ``secrets`` says what is done where keys (``keys_only`` False: or personal data) are found; ``ask`` refuses keys.
    ``synthetic``: the rows are made up, and of nobody.
    """

    source: Readable
    name: str
    reading: Reading = Reading()
    split: Literal["auto", "train", "test"] = "auto"
    seed: int = 0
    test_share: float = 0.1
    validation_share: float = 0.1
    secrets: Literal["ask", "redact", "drop", "keep"] = "ask"
    keys_only: bool = False
    near_duplicates: Literal["drop", "keep"] = "drop"
    synthetic: bool = False


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """``folder`` (relative to the job's working folder) holds ``dataset.json`` and a JSONL file a part."""

    info: DatasetInfo
    folder: str
    warnings: tuple[str, ...]


class ValidateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Read ``source`` as an import would, and keep nothing. ``list``: name up to so many conversations."""

    source: Readable
    reading: Reading = Reading()
    keys_only: bool = False
    list: int = 0


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """``level`` is error where the record would be left out, else warning. ``line`` (from 1; 0: the whole file) is
    where the record begins, ``fix`` what to do."""

    file: str
    line: int
    record: int
    level: str
    text: str
    fix: str


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation to choose: `dataset.import` takes its id, or parts of the others."""

    id: str
    title: str
    messages: int
    updated_ms: int
    model: str


class ValidateResult(msgspec.Struct, frozen=True, kw_only=True):
    """``valid``: no record would be left out, and no key was found. ``issues`` and ``findings`` are the first ones,
    ``errors``, ``warnings`` and ``found`` (kind → number) count all. ``examples`` could be learnt from."""

    valid: bool
    format: str
    kind: str
    records: int
    examples: int
    not_picked: int
    errors: int
    warnings: int
    issues: tuple[Issue, ...]
    found: dict[str, int]
    findings: tuple[Finding, ...]
    conversations: tuple[Listed, ...]


class PrepareSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Make a data set of another one (a folder). Rows stay in their part, unless ``reseed`` divides all anew.

    ``cap`` (0: none) is the most rows a part, drawn by ``seed``; these, or with ``shuffle`` all, are shuffled by it.
    ``min_characters`` and ``max_characters`` (0: none) bound the length of a row; ``languages`` (none: all) and
    ``search`` choose rows. ``learn``: whose turns of the conversations (empty: as it is).
    """

    dataset: Readable
    name: str
    made_from: str
    cap: int = 0
    shuffle: bool = False
    min_characters: int = 0
    max_characters: int = 0
    languages: tuple[str, ...] = ()
    search: str = ""
    learn: Literal["", "assistant", "user"] = ""
    reseed: bool = False
    seed: int = 0
    test_share: float = 0.1
    validation_share: float = 0.1
    secrets: Literal["ask", "redact", "drop", "keep"] = "keep"
    keys_only: bool = False
    near_duplicates: Literal["drop", "keep"] = "drop"


class PreviewSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The first ``limit`` rows of each part of a data set (a folder), as the model of ``base`` (a folder) sees them."""

    base: Readable
    dataset: Readable
    limit: int = 3


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of tokens as text, special tokens written out; ``counts``: they are learnt."""

    text: str
    counts: bool


class PreviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row: all its ``tokens``, and how many of them count in the loss. ``pieces`` shows
    all of it, ``stretches`` counts those that it is learnt in: several where a text is longer than the base takes in, 0
    where a conversation is, which is left out then."""

    split: str
    id: str
    title: str
    tokens: int
    counted: int
    stretches: int
    pieces: tuple[Piece, ...]


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """``context`` is the longest row that the base takes in, in tokens (0: it does not say). ``learns``: whose turns of
    conversations are learnt; of the user's the roles are exchanged."""

    context: int
    learns: Learn = "assistant"
    rows: tuple[PreviewRow, ...]


class StatsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Measure a data set (a folder) in the tokens of ``base`` (a folder)."""

    base: Readable
    dataset: Readable


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows have more than ``length`` tokens."""

    length: int
    rows: int


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows have from ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    rows: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """``tokens`` are all, ``counted`` those that are learnt; ``percentiles`` of tokens a row, by their name (``p50``).

    ``languages`` counts rows by ISO 639-1 code (``?``: none of those known). ``cut`` has the lengths that people train
    with, and the base's own ``context`` (0: it does not say). ``repeated_answers`` are said by another row too.
    """

    rows: int
    train: int
    validation: int
    test: int
    tokens: int
    counted: int
    characters: int
    percentiles: dict[str, int]
    languages: dict[str, int]
    repeated_answers: int
    duplicates: int
    near_duplicates: int
    context: int
    cut: tuple[Cut, ...]
    histogram: tuple[Bar, ...]
