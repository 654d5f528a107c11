"""What a job keeps for the time when its worker is done (a note), and what it ends as, as RPC clients get it."""

from __future__ import annotations

from typing import Any

import msgspec

from orchd.average.gate_specs import GateReport
from orchd.average.rules import MEAN
from orchd.average.specs import ModulePreview
from orchd.importers.turns import Learn
from orchd.made_bases import MadeBase
from orchd.registry import AdapterRow, DatasetRow
from orchd.serve.targets import Carried
from orchd.train.leak.figures import LeakReport
from orchd.train.specs import Diagnosis, Forgetting, Score

NO_LICENCE = "NOASSERTION"  # SPDX: the author has not said


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a job keeps for the time when its worker is done."""


class ImportNote(_Note, frozen=True, kw_only=True):
    """`named`: the user chose the data set's name; else it is the file's."""

    named: bool


class DatasetShown(DatasetRow, frozen=True, kw_only=True):
    """A data set. `train`, `validation`, `test` and what follows them are rows.

    `kind` is what the rows are, `format` what they were read from. `duplicates` and `near_duplicates` were left out,
    `not_picked` not wanted; `redacted` and `dropped` for what was found in them. `findings` counts what was found and
    kept, by kind, `redacted_kinds` what was taken out. `groups` (documents, or rows that are nearly the same) were
    never divided, by `seed`. `synthetic`: the user says that the rows are of nobody. `learns`: whose turns of
    conversations are learnt.
    """

    format: str
    split: str
    seed: int
    groups: int
    duplicates: int
    near_duplicates: int
    not_picked: int
    redacted: int
    dropped: int
    findings: dict[str, int]
    made_from: str
    synthetic: bool
    learns: Learn
    redacted_kinds: dict[str, int]


class RoundNote(_Note, frozen=True, kw_only=True):
    """A round of a federation (`fed_…`) that something is made in; `start` is the recipe of the global before it."""

    federation: str
    number: int
    start: str = ""


class TrainNote(_Note, frozen=True, kw_only=True):
    name: str
    description: str
    base: str
    dataset: str
    initial: str | None
    licence: str = NO_LICENCE
    tags: tuple[str, ...] = ()
    supersedes: str | None = None
    #: What a checkpoint that it went on from had behind it.
    earlier_steps: int = 0
    earlier_tokens: int = 0
    round: RoundNote | None = None


class AverageNote(_Note, frozen=True, kw_only=True):
    """`leaves` are in the order of the job's adapters; `missing` should be in it too, and could not be had."""

    name: str
    base: str
    leaves: tuple[str, ...]
    method: str
    rank: int
    licence: str = NO_LICENCE
    tags: tuple[str, ...] = ()
    supersedes: str | None = None
    missing: tuple[str, ...] = ()


class VerifyNote(_Note, frozen=True, kw_only=True):
    adapter: str


class DeployNote(_Note, frozen=True, kw_only=True):
    name: str
    adapter: str | None
    target: str
    base: str
    force: bool
    was: str = ""
    reason: str = ""
    carried: Carried | None = None


class Trained(_Note, frozen=True, kw_only=True):
    """What came out: an `adapter`, or a `base` and maybe the adapter that was made from it, which lacks `residual_ppm`
    of the difference (None: it was trained as one). `scores` are of the base then.

    `stopped` says why it ended, after `epochs` times through the examples and `steps` steps; the adapter is that of
    `best_step`. `again` is the command of the training that answers the `diagnosis`, empty where nothing is to be
    changed. `doubts` say why the training was not worth its time, where it was not."""

    adapter: AdapterRow | None
    scores: tuple[Score, ...]
    train_loss: float
    seconds: float
    stopped: str
    steps: int
    best_step: int
    epochs: float
    skipped: int
    validation_loss: float | None
    diagnosis: Diagnosis
    again: str = ""
    base: MadeBase | None = None
    residual_ppm: int | None = None
    leak: LeakReport | None = None
    forgetting: Forgetting | None = None
    doubts: tuple[str, ...] = ()


class LeafName(_Note, frozen=True, kw_only=True):
    id: str
    name: str


class Averaged(_Note, frozen=True, kw_only=True):
    """`residual_ppm` is what the rank cut off, a share of the exact average's length (Frobenius norm).

    `cosines[i][j]` are between the `leaves` i and j. `votes` are the places of those that had one vote together, and
    `coefficients_ppm` what became of the weights `weights_ppm`; empty where the method counts none, or gives no
    weighted sum. `missing` leaves should be in it and could not be had. `gate` is what one's own data decided, and
    `refused` are those that it left out.
    """

    adapter: AdapterRow
    recipe: str
    residual_ppm: int
    cosines: tuple[tuple[float, ...], ...]
    seconds: float
    leaves: tuple[LeafName, ...] = ()
    method: str = MEAN
    strength_ppm: int = 1_000_000
    weights_ppm: tuple[int, ...] = ()
    coefficients_ppm: tuple[int, ...] = ()
    votes: tuple[tuple[int, ...], ...] = ()
    missing: tuple[str, ...] = ()
    gate: GateReport | None = None
    refused: tuple[LeafName, ...] = ()
    modules: tuple[ModulePreview, ...] = ()


class AverageVerified(_Note, frozen=True, kw_only=True):
    """`recipe_matches`: the digest in the lineage is that of its leaves, method, rank, strength and dtype."""

    adapter: AdapterRow
    recipe: str
    recipe_matches: bool
    relative_error: float
    tolerance: float
    holds: bool
    detail: str


class Before(_Note, frozen=True, kw_only=True):
    """What a rollback would bring back. `adapter` is an id, empty for the plain base, and `name` what it is called."""

    adapter: str
    name: str
    target: str
    quantize: str
    created_ms: int


class DeploymentRow(_Note, frozen=True, kw_only=True):
    """A deployment as it is shown. `adapter` is None for the plain base; `size` in bytes.

    `was` is the adapter that it was rolled back from, and `reason` why. `note` is what there is to know of who answers.
    `before` answered under the name until then and can be had back (None: nothing can). `asked` says how it is asked.
    """

    name: str
    adapter: AdapterRow | None
    target: str
    state: str
    base: str
    sha256: str
    size: int
    quantize: str
    parity: Any
    created_ms: int
    was: str = ""
    reason: str = ""
    note: str = ""
    before: Before | None = None
    asked: str = ""
