"""The manifest: the signed record that describes one adapter. Its id is the adapter's id.

Figures are integers in a stated unit: losses in micro-nats a token, shares in parts per million, times in
milliseconds since 1970. Digests and keys are 32 raw bytes. No path, host or user name and no text of the data.
`docs/SPEC-manifest.md` is the format for other implementations.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

MANIFEST_TYPE = "application/vnd.orchd.manifest.v1+msgpack"
MANIFEST_LIMIT = 1 << 20  # bytes of an envelope
MICRO = 1_000_000  # micro-nats in a nat, parts per million in 1
CHUNK_SIZE = 65_536  # bytes; one chunk is hashed, sent and checked at a time
LARGE_CHUNK_SIZE = 262_144  # bytes, for files above `LARGE_FILE`
LARGE_FILE = 16 << 20  # bytes

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Digest
Count = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=4_000)]
Name = Annotated[str, Meta(min_length=1, max_length=120)]
Label = Annotated[str, Meta(max_length=120)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class BaseRef(_Record, frozen=True, kw_only=True):
    """The base an adapter is for; only the fingerprint decides, the rest is for people."""

    fingerprint: Digest
    hint: Label
    architecture: Label


class AdapterInfo(_Record, frozen=True, kw_only=True):
    """What the adapter is. `alpha_milli` is alpha × 1000; `parameters` counts numbers, not bytes."""

    format: Label
    rank: Annotated[int, Meta(ge=1, le=1024)]
    alpha_milli: Annotated[int, Meta(ge=0, le=2**40)]
    rslora: bool
    target_modules: tuple[Label, ...]
    dtype: Label
    parameters: Count
    capabilities: tuple[Label, ...]


class FileEntry(_Record, frozen=True, kw_only=True):
    """One file: size in bytes, SHA-256 of the whole and of each chunk."""

    path: Label
    size: Count
    sha256: Digest
    chunk_size: Annotated[int, Meta(ge=4_096, le=4 << 20)]
    chunks: tuple[Digest, ...]


class Training(_Record, frozen=True, kw_only=True):
    """How a trained adapter was made. `initial` is the adapter it went on from, `relative_to` makes it an increment.

    `data_commitment` is a salted hash of the data set's content: it can prove later what was used, and tells nothing
    now.
    """

    method: Label
    initial: Digest | None
    relative_to: Digest | None
    examples: Count
    tokens: Count
    steps: Count
    seed: Count
    software: Label
    data_commitment: Digest


class Metric(_Record, frozen=True, kw_only=True):
    """A measurement by the author. `loss` is in micro-nats a token, and so is `loss_interval`, half of the 95 %
    interval of its difference to the base's; shares such as `exact_match` and `preferred` are in parts per million."""

    metric: Label
    value: Annotated[int, Meta(ge=0, le=2**53)]
    base_value: Annotated[int, Meta(ge=0, le=2**53)] | None
    examples: Count
    split: Label


NOT_MEASURED = "not measured"
"""`Leak.method` where there was too little to measure; `auc_ppm` is 0 then."""


class Leak(_Record, frozen=True, kw_only=True):
    """How much of the training data the adapter gives away. `auc_ppm`: membership inference, 500,000 is chance."""

    method: Label
    auc_ppm: Annotated[int, Meta(ge=0, le=MICRO)]
    verdict: Label


class LeakExtra(msgspec.Struct, frozen=True, kw_only=True):
    """`extra.leak`: the figures behind the verdict. Runs are tokens, the others rows; `canaries` were learnt, `emitted`
    of them are said word for word. `synthetic`: the author says that the data is of nobody."""

    members: Count = 0
    heldout: Count = 0
    interval_ppm: Count = 0
    longest_run: Count = 0
    heldout_run: Count = 0
    canaries: Count = 0
    emitted: Count = 0
    synthetic: bool = False


class Leaf(_Record, frozen=True, kw_only=True):
    id: Digest
    weight_ppm: Annotated[int, Meta(ge=-(10**9), le=10**9)]


class Lineage(_Record, frozen=True, kw_only=True):
    """Which leaves an average came from. `rank` is the one that was asked for.

    `residual_ppm` is what truncation to the rank cut off, `tolerance_ppm` what the bytes may be off by besides,
    both as shares of the exact average's Frobenius norm.
    """

    recipe: Digest
    method: Label
    rank: Annotated[int, Meta(ge=1, le=1024)]
    strength_ppm: Annotated[int, Meta(ge=0, le=10**9)]
    leaves: tuple[Leaf, ...]
    previous: Digest | None
    outer: Digest | None
    residual_ppm: Annotated[int, Meta(ge=0, le=MICRO)]
    tolerance_ppm: Annotated[int, Meta(ge=0, le=MICRO)]


class Round(_Record, frozen=True, kw_only=True):
    federation: Digest
    number: Count


class Routing(_Record, frozen=True, kw_only=True):
    """Centroid and spread of the training prompts in the base's hidden states, times `scale`."""

    layer: Count
    scale: Annotated[int, Meta(ge=1, le=2**40)]
    centroid: tuple[int, ...]
    spread: tuple[int, ...]


class Manifest(_Record, frozen=True, kw_only=True):
    name: Name
    description: Text
    licence: Label
    tags: tuple[Label, ...]
    created_ms: Count
    author: Key
    base: BaseRef
    adapter: AdapterInfo
    files: tuple[FileEntry, ...]
    training: Training | None
    evaluation: tuple[Metric, ...]
    leak: Leak | None
    lineage: Lineage | None
    round: Round | None
    routing: Routing | None
    supersedes: Digest | None
    extra: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def leak_extra(self) -> LeakExtra:
        """What `extra` says about the leak report; nothing where it is of another form."""
        try:
            return msgspec.convert(self.extra.get("leak", {}), LeakExtra)
        except msgspec.ValidationError:
            return LeakExtra()


def chunk_size_for(size: int) -> int:
    """The chunk size, in bytes, that orchd writes for a file of `size` bytes."""
    return LARGE_CHUNK_SIZE if size > LARGE_FILE else CHUNK_SIZE
