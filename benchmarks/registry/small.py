"""A small registry to be killed and starved: thirty signed adapters at its door, and everything it says about itself.

`facts` is what the registry holds as a flat map, to be compared with what was acknowledged; `half` is what should never
be seen: an adapter without its files, a manifest without its row, a file that nothing has, left over from a crash.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchd.errors import OrchdError
from orchd.identity import Identity
from orchd.records import BaseRef, Training, sign, text_id, verify
from orchd.records.ids import ADAPTER
from orchd.records.manifest import Manifest
from orchd.registry import Registry, rebuild
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.bases import load
from orchd.registry.describe import adapter_info, file_entries
from orchd.registry.local_rows import (
    Bound,
    Deployment,
    JobRow,
    OwnAnnouncement,
    Pin,
    Received,
    Release,
    Rot,
    Setting,
    TopicJoined,
    Trash,
    Trust,
    Verdict,
)
from orchd.registry.trust import BLOCK, REVOCATION
from tests.helpers import lora_tensors, manifest, write_adapter, write_base

ME, BOB, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
AUTHORS = {person.author: person for person in (ME, BOB, MALLORY)}
COUNT, TRAINED_ON = 30, 6
NOW_MS = 1_780_000_000_000  # when all of it was signed: in the past, since collecting garbage looks at files' times
#: Every file that may lie below a data folder, between two runs.
EXPECTED = re.compile(
    r"registry\.db(\.wal)?(\.damaged-\d+)?|journal\.log(\.(torn|damaged)-\d+)?|backups/registry\.db\.backup-\d{8}"
    r"|blobs/[0-9a-f]{2}/[0-9a-f]{64}|manifests/[0-9a-f]{2}/[0-9a-f]{64}"
    r"|adapters/adp_[a-z2-7]{52}/adapter_(config\.json|model\.safetensors)"
)
Facts = dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """An adapter at the door. `parent` is the one that training went on from."""

    id: str
    author: str
    folder: Path
    parent: str | None

    @property
    def envelope(self) -> bytes:
        return (self.folder / "envelope").read_bytes()

    @property
    def files(self) -> dict[str, Path]:
        return {name: self.folder / name for name in (CONFIG, WEIGHTS)}


def make_pool(place: Path) -> None:
    """Write the base and the adapters below `place`."""
    write_base(place / "base")
    base = load("tiny", place / "base")
    made: list[tuple[str, bytes]] = []
    listed: list[dict[str, Any]] = []
    for number in range(COUNT):
        author = (ME, ME, BOB, MALLORY)[number % 4]
        folder = write_adapter(place / "pool" / str(number), tensors=lora_tensors(number))
        parent = made[number - COUNT + TRAINED_ON] if number >= COUNT - TRAINED_ON else None
        claim = manifest(
            name=f"adapter-{number}",
            author=author.public_key,
            base=BaseRef(fingerprint=base.digest, hint="tiny", architecture=base.architecture),
            adapter=adapter_info(folder),
            files=file_entries(folder),
            created_ms=NOW_MS,
            training=_training(parent[1] if parent else None),
        )
        signed = sign(claim, author)
        (folder / "envelope").write_bytes(signed.envelope)
        made.append((signed.id, signed.digest))
        listed.append({"id": signed.id, "author": author.author, "parent": parent[0] if parent else None})
    (place / "pool.json").write_text(json.dumps(listed), encoding="utf-8")


def _training(initial: bytes | None) -> Training:
    return Training(
        method="sft",
        initial=initial,
        relative_to=None,
        examples=300,
        tokens=9_000,
        steps=100,
        seed=0,
        software="orchd",
        data_commitment=b"\x04" * 32,
    )


def read_pool(place: Path) -> dict[str, Offer]:
    listed = json.loads((place / "pool.json").read_text(encoding="utf-8"))
    return {
        one["id"]: Offer(one["id"], one["author"], place / "pool" / str(number), one["parent"])
        for number, one in enumerate(listed)
    }


def open_registry(place: Path, data: Path | None = None) -> Registry:
    """The pool's base is known to it."""
    return Registry.open(data or place / "data", clock, ME.author, {"tiny": place / "base"})


def clock() -> int:
    return time.time_ns() // 1_000_000


# ---- what is there -------------------------------------------------------------------------------------------------


def facts(registry: Registry) -> Facts:
    """Everything that was decided, received or let in."""
    local = registry.local
    found: Facts = {f"verdict {row.adapter}": list(row.reasons) for row in local.all(Verdict)}
    found |= {f"pin {row.adapter}": True for row in local.all(Pin)}
    found |= {f"release {row.adapter}": True for row in local.all(Release)}
    found |= {f"trash {row.adapter}": True for row in local.all(Trash)}
    found |= {f"rot {row.blob}": row.what for row in local.all(Rot)}
    found |= {f"trust {row.subject}": row.verdict for row in local.all(Trust)}
    found |= {f"revoked {row.adapter}": True for row in local.where(Received, "kind = ?", (REVOCATION,))}
    found |= {f"setting {row.key}": row.value for row in local.all(Setting)}
    found |= {f"topic {row.name}": True for row in local.all(TopicJoined)}
    found |= {f"deployment {row.name}": row.blob for row in local.all(Deployment)}
    found |= {f"announced {row.digest}": row.seq for row in local.all(OwnAnnouncement)}
    found |= {f"job {row.id}": row.state for row in local.all(JobRow)}
    found |= {f"bound {row.key}": row.count for row in local.all(Bound)}
    found |= {f"base {base.name}": base.fingerprint for base in registry.bases() if base.name != "tiny"}
    return found


def states(registry: Registry) -> dict[str, str]:
    """Of every adapter that can be seen, trash included."""
    return dict(registry.index.read("SELECT digest, state FROM adapter"))


def due_states(pool: Mapping[str, Offer], known: Facts) -> dict[str, str]:
    """The states that adapters must have, worked out from the facts alone."""
    found = {}
    for id, offer in pool.items():
        if (reasons := known.get(f"verdict {id}")) is None:
            continue
        if known.get(f"trash {id}"):
            found[id] = "removed"
            continue
        stranger = offer.author != ME.author and f"trust {offer.author}" not in known
        kept = reasons or (stranger and known.get("setting policy.quarantine") == "strangers")
        kept = kept and f"release {id}" not in known
        revoked = f"revoked {id}" in known or f"revoked {offer.parent}" in known
        blocked = known.get(f"trust {offer.author}") == BLOCK
        found[id] = "quarantined" if kept or revoked or blocked else "admitted"
    return found


# ---- what should never be seen -------------------------------------------------------------------------------------


def half(registry: Registry) -> list[str]:
    """What a crash must not leave to be seen."""
    found = [f"{id} has a manifest and no row" for id in rebuild.not_indexed(registry)]
    for id in states(registry):
        found += _half_adapter(registry, id)
    pinned = {row.adapter for row in registry.local.all(Pin)}
    shown = {row[0] for row in registry.index.read("SELECT digest FROM adapter WHERE pinned")}
    found += [f"{id} is shown with another pin" for id in shown ^ pinned if registry.has_adapter(id)]
    for row in registry.local.all(Deployment):
        if not registry.blobs.has(bytes.fromhex(row.blob)):
            found.append(f"the deployment {row.name} has no bytes")
    told = {row[0] for row in registry.index.read("SELECT digest FROM news")}
    found += [f"{row.digest} is not told on" for row in registry.local.all(OwnAnnouncement) if row.digest not in told]
    return found


def _half_adapter(registry: Registry, id: str) -> list[str]:
    if registry.local.get(Verdict, id) is None:
        return [f"{id} has no verdict"]
    try:
        signed = verify(registry.manifest(id).envelope, Manifest)
        whole = all(registry.blobs.is_whole(entry.sha256) for entry in signed.record.files)
        folder = registry.adapter_folder(id)
        names = {path.name for path in folder.iterdir()}
    except OrchdError as error:
        return [f"{id}: {error}"]
    if not whole or text_id(ADAPTER, signed.digest) != id:
        return [f"{id} has other bytes than were signed"]
    wanted = {entry.path for entry in signed.record.files}
    return [] if names == wanted else [f"the folder of {id} has {sorted(names)}"]


def left_over(data: Path) -> list[str]:
    """Files that belong to nothing."""
    found = (str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    return [f"{name} was left over" for name in sorted(found) if not EXPECTED.fullmatch(name)]
