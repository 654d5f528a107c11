"""Adapters out to a bundle and in from one, with everything that is known of what they were made from.

What comes in goes through the same door as what a peer sends. Records come first, so that a revoked adapter never
stands admitted, not even for a moment. Once more changes nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from orchd.errors import OrchdError
from orchd.records import Attestation, KeyRotation, Manifest, Record, Revocation, Verified, text_id, verify_any
from orchd.records.ids import ADAPTER
from orchd.registry import bundle
from orchd.registry.admission import CONTENT_CHECKS, check_base, judge
from orchd.registry.describe import file_entries
from orchd.registry.local import put
from orchd.registry.local_rows import Received, Verdict
from orchd.registry.news import receive
from orchd.registry.registry import Admission, Registry
from orchd.registry.standing import QUARANTINED
from orchd.registry.trust import ATTESTATION, REVOCATION, ROTATION

IMPORTED = "imported"
MAX_ATTESTATIONS = 1_000  # of one adapter in a bundle
Progress = Callable[[int, int], None]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """`size` is the file's, in bytes. `ancestors` are manifests without files, `records` what is known of them all."""

    path: str
    size: int
    adapter: str
    ancestors: tuple[str, ...]
    records: tuple[str, ...]


class TurnedAway(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter of a bundle that was refused, and why."""

    id: str
    code: int
    message: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a bundle: ids of records that were new here, and the adapters, one by one."""

    admissions: tuple[Admission, ...]
    refused: tuple[TurnedAway, ...]
    records: tuple[str, ...]


def export(registry: Registry, id: str, path: Path, *, replace: bool = False) -> Exported:
    """Write an adapter with its lineage and what is known about it to `path`.

    Raises `AdapterUnknown`, `OutputExists`, `BlobUnknown`, `DigestMismatch` for a file that has rotted, `DiskFull`.
    """
    adapter = registry.manifest(id)
    ancestors = _ancestors(registry, adapter)
    records = _known_about(registry, adapter, ancestors)
    blobs = {entry.sha256: registry.blobs.path(entry.sha256) for entry in adapter.record.files}
    for digest in blobs:
        registry.blobs.size(digest)  # told by its number where it is missing
    size = bundle.write(path, [adapter, *ancestors, *records], blobs, replace=replace)
    return Exported(
        path=str(path),
        size=size,
        adapter=adapter.id,
        ancestors=tuple(ancestor.id for ancestor in ancestors),
        records=tuple(record.id for record in records),
    )


def _ancestors(registry: Registry, adapter: Verified[Manifest]) -> list[Verified[Manifest]]:
    """The manifests of all ancestors that are here."""
    found: dict[bytes, Verified[Manifest]] = {}
    waiting = sorted(bundle.parents(adapter.record))
    while waiting:
        digest = waiting.pop()
        id = text_id(ADAPTER, digest)
        if digest not in found and digest != adapter.digest and registry.has_adapter(id):
            found[digest] = registry.manifest(id)
            waiting.extend(sorted(bundle.parents(found[digest].record)))
    return list(found.values())


def _known_about(
    registry: Registry, adapter: Verified[Manifest], ancestors: list[Verified[Manifest]]
) -> list[Verified[Record]]:
    """Revocations of any of them by its author, attestations of the adapter, and rotations of everybody's keys."""
    view, found = registry.people.view(), list[Verified[Record]]()
    for manifest in (adapter, *ancestors):
        for revoked in _received(registry, REVOCATION, manifest.id):
            if revoked.of(Revocation) and view.same(manifest.author, revoked.author):
                found.append(revoked)
    attested = [record for record in _received(registry, ATTESTATION, adapter.id) if record.of(Attestation)]
    found += attested[:MAX_ATTESTATIONS]
    rotations = [record for record in _received(registry, ROTATION, "") if record.of(KeyRotation)]
    people = bundle.persons({record.author for record in (adapter, *ancestors, *found)}, rotations)
    return [*found, *(rotation for rotation in rotations if rotation.author in people)]


def _received(registry: Registry, kind: str, adapter: str) -> Iterator[Verified[Record]]:
    for row in registry.local.where(Received, "kind = ? AND adapter = ?", (kind, adapter)):
        yield verify_any(row.envelope)


def take_in(registry: Registry, path: Path, progress: Progress = lambda done, total: None) -> Imported:
    """Let in the adapters of a bundle, and what it tells about them.

    Nothing is kept of a bundle that is refused as a whole. When no adapter of it can be let in, the first one's refusal
    is raised; what the bundle told of revocations stays.
    """
    with bundle.opened(path) as found, _copied(registry, found, progress) as folder:
        told = [record for record in (*found.ancestors, *found.records) if receive(registry, record)]
        admissions: list[Admission] = []
        refused: list[OrchdError] = []
        away: list[TurnedAway] = []
        for adapter in found.adapters:
            files = {entry.path: folder / entry.sha256.hex() for entry in adapter.record.files}
            try:
                admissions.append(registry.admit(adapter.envelope, files, origin=IMPORTED))
            except OrchdError as error:
                refused.append(error)
                away.append(TurnedAway(id=adapter.id, code=error.code, message=error.message))
    if refused and not admissions:
        raise refused[0]
    records = tuple(record.id for record in told if not record.of(Manifest))
    return Imported(admissions=tuple(admissions), refused=tuple(away), records=records)


@contextmanager
def _copied(registry: Registry, found: bundle.Bundle, progress: Progress) -> Iterator[Path]:
    """A folder with the bundle's blobs, checked, which is gone afterwards; starting clears what a crash leaves."""
    registry.blobs.check_room(2 * found.size)
    with staging(registry) as folder:
        done = 0
        for digest, member in found.blobs.items():
            found.copy_blob(digest, folder / digest.hex())
            done += member.size
            progress(done, found.size)
        yield folder


@contextmanager
def staging(registry: Registry) -> Iterator[Path]:
    """An empty folder for files on their way to the door."""
    folder = Path(tempfile.mkdtemp(dir=registry.data / "adapters", prefix=".import-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def imported_before(
    registry: Registry, folder: Path, *, name: str, description: str, licence: str, base: bytes
) -> Admission | None:
    """The adapter of this node that has the same files and says the same about them; None when there is none yet."""
    rows = registry.index.read(
        "SELECT digest FROM adapter WHERE name = ? AND author = ? ORDER BY created DESC", (name, registry.author)
    )
    if not rows:
        return None
    files = file_entries(folder)
    for (id,) in rows:
        record = (manifest := registry.manifest(id)).record
        told = record.description, record.licence, record.base.fingerprint, record.files
        if told == (description, licence, base, files):
            places = {entry.path: folder / entry.path for entry in files}
            return registry.admit(manifest.envelope, places, origin=IMPORTED)
    return None


def judge_again(registry: Registry, fingerprint: str) -> list[str]:
    """A base has come, or two were linked: look again at what was quarantined for want of it. Ids of what is let out.

    Only the reason that the base is not here goes; what else was said stays, and what the base shows is added.
    """
    same = sorted(registry.known_bases.same(fingerprint))
    rows = registry.index.read(
        "SELECT digest FROM adapter WHERE state = ? AND base IN (SELECT unnest(?::VARCHAR[])) ORDER BY digest",
        (QUARANTINED, same),
    )
    waiting = [row[0] for row in rows]
    for id in waiting:
        if (verdict := registry.local.get(Verdict, id)) is not None:
            _judge_one(registry, verdict)
    changed = registry.restand(waiting)
    return [change.id for change in changed if change.after != QUARANTINED]


def _judge_one(registry: Registry, verdict: Verdict) -> None:
    manifest = registry.manifest(verdict.adapter)
    now_ms = max(registry.clock(), manifest.record.created_ms)
    candidate = registry.candidate(manifest, registry.files(manifest.id), now_ms)
    missing = check_base(replace(candidate, base=None))
    if candidate.base is None or missing not in verdict.reasons:
        return
    reasons = [reason for reason in verdict.reasons if reason != missing]
    try:
        reasons += judge(candidate, CONTENT_CHECKS)
    except OrchdError as error:
        reasons.append(error.message)
    reasons = list(dict.fromkeys(reasons))
    registry.local.act("adapter.judge", put(msgspec.structs.replace(verdict, reasons=tuple(reasons))))
