"""Chunks that are here already, in other adapters: what a new version shares with an old one does not travel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchd.errors import OrchdError
from orchd.records import Manifest, Verified, parse_id, text_id
from orchd.records.ids import ADAPTER, BASE
from orchd.registry.registry import Registry

#: Adapters that are looked at: those that it names, and the newest of the same base and author.
RELATIVES = 32
_NAMED = "SELECT digest FROM adapter WHERE digest IN (SELECT unnest($1::VARCHAR[])) ORDER BY created DESC, digest"
_AKIN = "SELECT digest FROM adapter WHERE author = $1 AND base = $2 ORDER BY created DESC, digest LIMIT $3"


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of a blob that is here."""

    blob: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """Nothing when the blob is gone."""
        try:
            with self.blob.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.length)
        except OSError:
            return b""


def places(registry: Registry, manifest: Verified[Manifest], wanted: Collection[bytes]) -> dict[bytes, Place]:
    """Where chunks with these digests are said to lie: a blob may be damaged, so verify what is read."""
    found: dict[bytes, Place] = {}
    for relative in _relatives(registry, manifest):
        for entry in relative.record.files:
            blob = registry.blobs.path(entry.sha256)
            for number, digest in enumerate(entry.chunks):
                if digest in wanted and digest not in found:
                    offset = number * entry.chunk_size
                    found[digest] = Place(blob, offset, min(entry.chunk_size, entry.size - offset))
    return found


def _relatives(registry: Registry, manifest: Verified[Manifest]) -> Iterator[Verified[Manifest]]:
    record = manifest.record
    named = [record.supersedes]
    if record.training is not None:
        named += [record.training.initial, record.training.relative_to]
    ids = [text_id(ADAPTER, digest) for digest in named if digest is not None]
    rows = registry.index.read(_NAMED, (ids,)) if ids else []
    rows += registry.index.read(_AKIN, (manifest.author, text_id(BASE, record.base.fingerprint), RELATIVES))
    for id in list(dict.fromkeys(id for (id,) in rows))[:RELATIVES]:
        try:
            yield registry.manifests.read(parse_id(id, ADAPTER))
        except OrchdError:  # it is damaged here: `registry scrub` tells, and the chunks are fetched
            continue
