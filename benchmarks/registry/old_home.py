"""A data folder as the orchd before the journal left it: flat manifests, blobs, and an index that knows the rest."""

from __future__ import annotations

import hashlib
import random
from importlib import resources
from pathlib import Path

import duckdb

from benchmarks.registry import small
from benchmarks.registry.small import ME, NOW_MS, Facts
from orchd.records import Announcement, Manifest, sign, text_id, verify
from orchd.records.ids import BASE
from orchd.registry.index import SETTINGS

FIRST = "0001_init.sql"
ADAPTERS, STRANGE = 12, "the base it was made for is not here"


def make(place: Path, data: Path, seed: float) -> Facts:
    """Make it in `data`, of the pool below `place`; what has to be there after the first start."""
    rng = random.Random(seed)
    for name in ("manifests", "blobs"):
        (data / name).mkdir(parents=True)
    known: Facts = {}
    with duckdb.connect(str(data / "registry.db"), config=dict(SETTINGS)) as database:
        database.execute("CREATE TABLE migration(number INTEGER PRIMARY KEY, name VARCHAR NOT NULL)")
        database.execute((resources.files("orchd.registry") / "migrations" / FIRST).read_text(encoding="utf-8"))
        database.execute("INSERT INTO migration VALUES (1, ?)", [FIRST])
        offers = list(small.read_pool(place).values())
        for offer in rng.sample(offers[: len(offers) - small.TRAINED_ON], ADAPTERS):
            known |= _adapter(database, data, offer, rng)
        for name in rng.sample(("one", "two", "three"), 2):
            database.execute("INSERT INTO topic VALUES (?, ?)", [name, NOW_MS])
            known[f"topic {name}"] = True
        for number in range(4):
            database.execute(
                "INSERT INTO job VALUES (?, 'train', 'done', 't', '{}', NULL, NULL, ?, NULL, NULL)",
                [f"job-old-{number}", NOW_MS],
            )
            known[f"job job-old-{number}"] = "done"
        known |= _announcements(database, [offer for offer in offers if offer.author == ME.author])
        known |= _deployment(database, data)
    return known


def _adapter(database: duckdb.DuckDBPyConnection, data: Path, offer: small.Offer, rng: random.Random) -> Facts:
    envelope = offer.envelope
    signed = verify(envelope, Manifest)
    record = signed.record
    for name, file in offer.files.items():
        _blob(data, file.read_bytes())
        assert name
    (data / "manifests" / signed.digest.hex()).write_bytes(envelope)
    reason = STRANGE if rng.random() < 0.3 else ""
    values = [
        signed.id,
        envelope,
        record.name,
        signed.author,
        text_id(BASE, record.base.fingerprint),
        record.adapter.rank,
        list(record.adapter.target_modules),
        sum(entry.size for entry in record.files),
        record.created_ms,
        NOW_MS,
        "quarantined" if reason else "admitted",
        reason,
        "fetched",
    ]
    database.execute(f"INSERT INTO adapter VALUES ({', '.join('?' * len(values))})", values)
    return {f"verdict {signed.id}": [reason] if reason else []}


def _blob(data: Path, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    (data / "blobs" / name[:2]).mkdir(exist_ok=True)
    (data / "blobs" / name[:2] / name).write_bytes(content)
    return name


def _announcements(database: duckdb.DuckDBPyConnection, offers: list[small.Offer]) -> Facts:
    known: Facts = {}
    for seq, offer in enumerate(offers[:3], 1):
        manifest = verify(offer.envelope, Manifest)
        record = Announcement(
            manifest=manifest.digest,
            topics=("one",),
            size=1,
            created_ms=NOW_MS,
            base=manifest.record.base.fingerprint,
            author=ME.public_key,
            seq=seq,
        )
        signed = sign(record, ME)
        database.execute(
            "INSERT INTO announcement VALUES (?, ?, ['one'], ?, ?, 1, ?, 'peer', ?, ?, ?)",
            [signed.id, manifest.id, ME.author, seq, "base", NOW_MS, NOW_MS, signed.envelope],
        )
        known[f"announced {signed.id}"] = seq
    return known


def _deployment(database: duckdb.DuckDBPyConnection, data: Path) -> Facts:
    blob = _blob(data, b"gguf")
    database.execute(
        "INSERT INTO deployment VALUES ('first', NULL, 'embedded', 'ready', 'tiny', ?, 4, '', NULL, ?)",
        [blob, NOW_MS],
    )
    return {"deployment first": blob}
