"""Row `rebuild-100k`: the index over 100,000 adapters made from nothing but manifests, blobs and the journal.

The peer is what a plain script would do on one core: read each manifest, check its digest and signature, decode it,
and put it into SQLite in one transaction. It looks at no blob, keeps no lineage and judges nobody. `cpu` is of all
processes, `again` what `orchctl registry rebuild` takes when an index is there.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from benchmarks.registry import indexed, many
from benchmarks.report import Row, lower_is_better
from orchd.records.envelope import pre_authentication

GOAL_S = 60.0


def rows() -> list[Row]:
    home = indexed.home()
    made, again = home.made, home.again
    peer, peer_cpu = plainly(home.data / "manifests")
    return [
        lower_is_better(
            "rebuild-100k",
            "s",
            made.wall,
            ("verify, into SQLite", peer),
            ("≤ 60 s on two cores", GOAL_S),
            cpu=made.cpu,
            first_process_cpu=made.own_cpu,
            peak_mb=made.peak_mb,
            peer_cpu=peer_cpu,
            again=again.wall,
            again_cpu=again.cpu,
        )
    ]


def plainly(manifests: Path) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    with sqlite3.connect(manifests.parent / "plain.db") as sqlite:
        sqlite.execute("CREATE TABLE adapter(id TEXT PRIMARY KEY, name, author, created, record)")
        for path in manifests.glob("??/*"):
            envelope = msgspec.msgpack.decode(path.read_bytes())
            payload, [signature] = envelope["payload"], envelope["signatures"]
            message = pre_authentication(envelope["type"], payload)
            Ed25519PublicKey.from_public_bytes(signature["key"]).verify(signature["sig"], message)
            record = msgspec.msgpack.decode(payload)
            assert path.name == hashlib.sha256(payload).hexdigest()
            assert record["author"] == signature["key"]
            row = (path.name, record["name"], record["author"], record["created_ms"], msgspec.json.encode(record))
            sqlite.execute("INSERT INTO adapter VALUES (?, ?, ?, ?, ?)", row)
            count += 1
    sqlite.close()
    assert count == many.COUNT
    (manifests.parent / "plain.db").unlink()
    return time.perf_counter() - wall, time.process_time() - cpu
