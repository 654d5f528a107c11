"""The one door: what every adapter passes before it is in the registry, whoever made it.

Each check is a named function over one `Candidate` that raises a numbered refusal or gives a reason for quarantine.
They run in the order of `CHECKS`, cheap and decisive ones first; further checks come as arguments (averaging brings
one). `RECORD_CHECKS` need the signed record alone, so they run before a byte is fetched; `CONTENT_CHECKS` look at the
files, as they lie in the blob store. A refused adapter leaves nothing behind; a quarantined one stays, with the reason,
and is not used.

The whole files were hashed while they were stored; the chunks are hashed here (`figures`), but for those that were
compared one by one while they came from peers. So every byte is hashed in chunks and as a whole, once each, and what is
passed on to peers in chunks is what was signed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchd.errors import (
    AdapterRevoked,
    AuthorBlocked,
    ClaimRefused,
    DigestMismatch,
    FileListRefused,
    FromTheFuture,
    SizeRefused,
    TensorsRefused,
)
from orchd.records import Manifest, Verified, text_id
from orchd.records.ids import BASE
from orchd.registry import bounds, figures, grams, parts, peft_config, weights
from orchd.registry.bases import Base
from orchd.registry.local_rows import Bound
from orchd.registry.peft_config import PeftConfig

CLOCK_WINDOW_MS = 10 * 60 * 1000  # a manifest may be this far in the future
CONFIG, WEIGHTS, README = "adapter_config.json", "adapter_model.safetensors", "README.md"
SIZE_LIMITS = {CONFIG: peft_config.SIZE_LIMIT, WEIGHTS: 4 << 30, README: 1 << 20}  # bytes
FORMAT = "peft-lora"


@dataclass(frozen=True)
class Known:
    """What this node has decided and heard: why the author is blocked and the adapter revoked (texts, empty for
    neither), and the norms seen for the base by `bounds.key`.
    """

    blocked: str = ""
    revoked: str = ""
    bounds: Mapping[str, Bound] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An adapter at the door: verified manifest, files by name, the base when it is known here, the time.

    `verified` are the files whose chunks are known to be those of the manifest, with their SHA-256. What is read off
    the files is read once, when the first check asks.
    """

    manifest: Verified[Manifest]
    files: Mapping[str, Path]
    base: Base | None
    now_ms: int
    known: Known = Known()
    verified: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def figures(self) -> figures.Figures:
        listed = self.manifest.record.files
        entries = {self.files[entry.path]: entry for entry in listed if entry.path not in self.verified}
        return figures.look(entries, self.files[WEIGHTS])

    @property
    def tensors(self) -> dict[str, weights.Tensor]:
        if self.figures.unreadable:
            raise TensorsRefused(self.figures.unreadable)
        return self.figures.tensors

    @cached_property
    def config(self) -> PeftConfig:
        return peft_config.read(self.files[CONFIG])

    @cached_property
    def by_part(self) -> parts.Parts:
        return parts.sort(self.tensors, self.config)

    @property
    def norms_at_most(self) -> dict[str, float]:
        """What ‖s·B A‖ (Frobenius) is at most, by module: s ‖B‖ ‖A‖, without another look at the numbers."""
        lengths = self.figures.lengths
        return {
            module: self.config.scale_of(module) * lengths.get(a.name, math.inf) * lengths.get(b.name, math.inf)
            for module, (a, b) in self._products().items()
        }

    @property
    def norms(self) -> dict[str, float]:
        """‖s·B A‖ (Frobenius) by module, with the scale s that the settings give it."""
        return self.norms_of(self._products())

    def norms_of(self, modules: Collection[str]) -> dict[str, float]:
        """As `norms`, of these modules alone."""
        wanted = {name: pair for name, pair in self._products().items() if name in modules}
        found = grams.norms(self.files[WEIGHTS], wanted) if wanted else {}
        return {module: self.config.scale_of(module) * norm for module, norm in found.items()}

    def _products(self) -> dict[str, parts.Pair]:
        return {module: pair for module, pair in self.by_part.pairs.items() if grams.makes_product(*pair)}


Check = Callable[[Candidate], str | None]
"""Raises a refusal, or returns the reason for quarantine, or None."""


def judge(candidate: Candidate, checks: Sequence[Check]) -> list[str]:
    """The reasons for quarantine, none for an adapter to admit. Raises the first refusal."""
    return [reason for check in checks if (reason := check(candidate))]


# ---- the record --------------------------------------------------------------------------------------------------


def check_author(candidate: Candidate) -> None:
    if candidate.known.blocked:
        raise AuthorBlocked(f"{candidate.manifest.id} is kept out: {candidate.known.blocked}")


def check_revocation(candidate: Candidate) -> None:
    if candidate.known.revoked:
        raise AdapterRevoked(f"{candidate.manifest.id} was {candidate.known.revoked}")


def check_clock(candidate: Candidate) -> None:
    ahead = candidate.manifest.record.created_ms - candidate.now_ms
    if ahead > CLOCK_WINDOW_MS:
        raise FromTheFuture(f"the manifest is dated {ahead / 60_000:.0f} minutes in the future")


def check_sizes(candidate: Candidate) -> None:
    """Before anything is read: how large the files are, and chunk lists that fit."""
    for entry in candidate.manifest.record.files:
        limit = SIZE_LIMITS.get(entry.path)
        if limit is not None and entry.size > limit:
            raise SizeRefused(f"{entry.path} is {entry.size} bytes; at most {limit} are taken")
        if len(entry.chunks) != math.ceil(entry.size / entry.chunk_size):
            raise SizeRefused(f"{entry.path[:80]}: {len(entry.chunks)} chunks do not make {entry.size} bytes")


def check_file_list(candidate: Candidate) -> None:
    """Only names that an adapter has, each once; no other name ever touches the disk."""
    names = [entry.path for entry in candidate.manifest.record.files]
    if len(set(names)) != len(names) or not {CONFIG, WEIGHTS} <= set(names) <= SIZE_LIMITS.keys():
        raise FileListRefused(f"the manifest lists the files {str(names)[:200]}")


def check_came(candidate: Candidate) -> None:
    """Of the files, before one is stored: those that were promised came, and no others."""
    promised = {entry.path for entry in candidate.manifest.record.files}
    if promised != candidate.files.keys():
        raise FileListRefused(f"the manifest lists {sorted(promised)}, {sorted(candidate.files)} came")


# ---- the content -------------------------------------------------------------------------------------------------


def check_digests(candidate: Candidate) -> None:
    if candidate.figures.damage:
        raise DigestMismatch(candidate.figures.damage)


def check_header(candidate: Candidate) -> None:
    """The weights file is safetensors: header, offsets, dtypes."""
    assert candidate.tensors


def check_config(candidate: Candidate) -> None:
    """The settings are known ones, and none names code or a path."""
    assert candidate.config


def check_tensors(candidate: Candidate) -> None:
    """Names, pairs, ranks and shapes are what the settings say, and what the base has."""
    config, found = candidate.config, candidate.by_part
    parts.check_settings(found, config)
    parts.check_shapes(found, config, None if candidate.base is None else candidate.base.shapes)


def check_finite(candidate: Candidate) -> None:
    if candidate.figures.not_finite:
        raise TensorsRefused(f"tensor {candidate.figures.not_finite} holds NaN or infinity")


def check_norms(candidate: Candidate) -> str | None:
    """Quarantines what is far stronger than the adapters seen for this base."""
    base = text_id(BASE, candidate.manifest.record.base.fingerprint)
    near = bounds.perhaps_outside(candidate.known.bounds, base, candidate.norms_at_most)
    return bounds.outside(candidate.known.bounds, base, candidate.norms_of(near)) or None


def check_claims(candidate: Candidate) -> None:
    """What the manifest says about the adapter is what its files show."""
    claim, config, tensors = candidate.manifest.record.adapter, candidate.config, candidate.tensors.values()
    shown = {
        "format": (claim.format, FORMAT),
        "rank": (claim.rank, max([config.rank, *config.rank_pattern.values()])),
        "alpha": (claim.alpha_milli, round(config.alpha * 1000)),
        "rslora": (claim.rslora, config.rslora),
        "target_modules": (claim.target_modules, config.target_modules),
        "parameters": (claim.parameters, sum(tensor.parameters for tensor in tensors)),
        "dtype": ({claim.dtype}, {tensor.dtype for tensor in tensors}),
        "capabilities": (claim.capabilities, config.capabilities),
    }
    for name, (claimed, found) in shown.items():
        if claimed != found:
            raise ClaimRefused(f"the manifest says {name} {claimed}, its files show {found}")


def check_base(candidate: Candidate) -> str | None:
    if candidate.base is None:
        return "the base is not here, so its shapes could not be compared"
    return None


RECORD_CHECKS: tuple[Check, ...] = (check_author, check_revocation, check_clock, check_sizes, check_file_list)
CONTENT_CHECKS: tuple[Check, ...] = (
    check_digests,
    check_header,
    check_config,
    check_tensors,
    check_finite,
    check_norms,
    check_claims,
    check_base,
)
CHECKS = RECORD_CHECKS + CONTENT_CHECKS
