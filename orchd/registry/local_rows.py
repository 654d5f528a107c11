"""What this node alone knows, as rows: each is a line in the journal and a row in the index.

The first field is the primary key; the table has the same columns. A field that is added later needs a default, so
that the journal's older lines can be read. Times are milliseconds since 1970.
"""

from __future__ import annotations

import msgspec


class LocalRow(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all. A field is text, a number, a truth value, bytes, or a tuple of texts."""


class Verdict(LocalRow, frozen=True, kw_only=True):
    """What admission said about an adapter. `reasons` are for quarantine; none admits it."""

    adapter: str
    reasons: tuple[str, ...]
    origin: str
    received: int


class Pin(LocalRow, frozen=True, kw_only=True):
    """An adapter that is never thrown out to make room."""

    adapter: str


class Release(LocalRow, frozen=True, kw_only=True):
    """An adapter that the user let out of quarantine by hand."""

    adapter: str
    since: int


class Trash(LocalRow, frozen=True, kw_only=True):
    """An adapter that the user has removed and may have back."""

    adapter: str
    since: int


class Rot(LocalRow, frozen=True, kw_only=True):
    """A blob (hexadecimal SHA-256) that is not what it should be. `what` is damaged or missing."""

    blob: str
    what: str
    since: int


class Run(LocalRow, frozen=True, kw_only=True):
    """Which data set an adapter was trained on, in which job. `salt` (32 bytes) opens its `data_commitment`."""

    adapter: str
    dataset: str
    job: str
    salt: bytes


class Dataset(LocalRow, frozen=True, kw_only=True):
    """`train`, `validation`, `test` and `skipped` are rows."""

    id: str
    name: str
    kind: str
    train: int
    validation: int
    test: int
    skipped: int
    warnings: tuple[str, ...]
    created: int


class DatasetTrash(LocalRow, frozen=True, kw_only=True):
    """A data set that the user has deleted and may have back: its files are still there."""

    dataset: str
    since: int


class TopicJoined(LocalRow, frozen=True, kw_only=True):
    name: str
    joined: int


class JobRow(LocalRow, frozen=True, kw_only=True):
    """`spec`, `result` and `error` are JSON texts."""

    id: str
    kind: str
    state: str
    title: str
    spec: str
    result: str | None
    error: str | None
    created: int
    started: int | None
    finished: int | None


class Deployment(LocalRow, frozen=True, kw_only=True):
    """An adapter made usable in a target.

    `blob` is the SHA-256 (hexadecimal) of its GGUF; `adapter` None stands for the plain base.
    `parity` is the verdict of the proof as JSON text; `state` is ready, rolling_back or rolled_back; `was` is the
    adapter that it was rolled back from, for `reason`. `made` (its proven answers and the like) and `before` (the
    deployment that answered under the name before it) are JSON texts or empty; `also` are further blobs that it needs.
    """

    name: str
    adapter: str | None
    target: str
    state: str
    base: str
    blob: str
    size: int
    quantize: str
    parity: str | None
    created: int
    was: str = ""
    reason: str = ""
    made: str = ""
    before: str = ""
    also: tuple[str, ...] = ()


class Preference(LocalRow, frozen=True, kw_only=True):
    """How often the user preferred which of two deployed files, asked blindly. `pair` is both SHA-256 (hexadecimal),
    the smaller first, with a blank between."""

    pair: str
    first: int
    second: int
    neither: int
    since: int


class OwnAnnouncement(LocalRow, frozen=True, kw_only=True):
    """An announcement by this node. Its number is never used twice."""

    digest: str
    seq: int
    envelope: bytes


class Setting(LocalRow, frozen=True, kw_only=True):
    """A policy that the user has set."""

    key: str
    value: str


class Trust(LocalRow, frozen=True, kw_only=True):
    """What the user thinks of an author or a peer. `kind` is author or peer, `verdict` follow, allow or block."""

    subject: str
    kind: str
    verdict: str
    note: str
    auto_update: bool
    since: int


class Received(LocalRow, frozen=True, kw_only=True):
    """A signed record of somebody. `kind` is revocation, attestation, rotation, equivocation or manifest.

    `topics` are those that it came under, where that matters.
    """

    digest: str
    kind: str
    adapter: str
    author: str
    envelope: bytes
    since: int
    topics: tuple[str, ...] = ()


class BaseHere(LocalRow, frozen=True, kw_only=True):
    """A base that the user has added, and the fingerprint that it had then."""

    name: str
    path: str
    since: int
    fingerprint: str


class BaseLink(LocalRow, frozen=True, kw_only=True):
    """Two fingerprints that the user says are one base."""

    fingerprint: str
    same_as: str
    since: int


class Bound(LocalRow, frozen=True, kw_only=True):
    """Norms seen for one module of one base: their number, and mean and squared deviations of the logarithm.

    `key` is the base's fingerprint, a blank and the module.
    """

    key: str
    count: int
    mean_log: float
    m2_log: float


class Succession(LocalRow, frozen=True, kw_only=True):
    """A newer version that was let in. Deployments of `was`, the one before it, are still to go over to it."""

    adapter: str
    was: str
    since: int


class RecipeCheck(LocalRow, frozen=True, kw_only=True):
    """What came of recomputing somebody else's average from its leaves: shares of their exact average's length."""

    adapter: str
    holds: bool
    relative_error: float
    tolerance: float
    since: int


class FederationHere(LocalRow, frozen=True, kw_only=True):
    """A federation that this node has joined. `agreed` to the leak limit, and `left`, are times."""

    id: str
    envelope: bytes
    dataset: str
    agreed: int
    joined: int
    left: int | None = None


class RouteLesson(LocalRow, frozen=True, kw_only=True):
    """A routed request that the user corrected: its vector (`serve.routes.Lesson`), the name of its base, and the
    adapter that answers what is like it, empty for the plain base. `key` is a digest of base and vector."""

    key: str
    base: str
    adapter: str
    vector: bytes
    since: int


TABLES: dict[type[LocalRow], str] = {
    Verdict: "verdict",
    Pin: "pin",
    Release: "release",
    Trash: "trash",
    Rot: "rot",
    Run: "run",
    Dataset: "dataset",
    DatasetTrash: "dataset_trash",
    TopicJoined: "topic",
    JobRow: "job",
    Deployment: "deployment",
    Preference: "preference",
    OwnAnnouncement: "own_announcement",
    Setting: "setting",
    Trust: "trust",
    Received: "received",
    BaseHere: "base_here",
    BaseLink: "base_link",
    Bound: "bound",
    Succession: "succession",
    RouteLesson: "route_lesson",
    RecipeCheck: "recipe_check",
    FederationHere: "federation",
}
"""The table of each."""
