"""The process that gets killed: opens the registry, says what it finds, and acts on it until it dies.

On `out` it writes a JSON line before each act (`begin`, with what the act is about to change) and one after it has
returned (`done`): from then on the act is acknowledged, and may not be lost. None as a value means that a fact goes,
`ANY` that it is not known beforehand.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.registry import small
from benchmarks.registry.small import AUTHORS, BOB, MALLORY, ME, Facts, Offer
from orchd.errors import OrchdError
from orchd.records import Announcement, Revocation, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import Registry, index, local, rebuild, upkeep
from orchd.registry.local import delete, put
from orchd.registry.local_rows import Bound, Deployment, JobRow, Setting, Trust, Verdict
from orchd.registry.own import Deployments, Topics
from orchd.registry.trust import ALLOW, AUTHOR, BLOCK, FOLLOW, PREFIX
from tests.helpers import MODULES

ANY = "?"
#: Small enough that kills meet a journal being written anew, and a log of the database being closed.
COMPACT_SIZE, CHECKPOINT_SIZE = 16 << 10, "256KB"
GRACE_MS = 5_000  # how long what is on its way to a row may take, on a busy machine


def live(place: Path, seed: int, out: int) -> None:
    """Until it is killed."""
    local.COMPACT_SIZE = COMPACT_SIZE
    upkeep.GRACE_MS = GRACE_MS
    index.SETTINGS["checkpoint_threshold"] = CHECKPOINT_SIZE
    registry = small.open_registry(place)
    rng = random.Random(seed)
    found = small.facts(registry)
    _say(
        out,
        {
            "found": found,
            "states": small.states(registry),
            "next_seq": registry.next_seq(),
            "half": small.half(registry) + small.left_over(registry.data),
            "notices": registry.notices,
        },
    )
    if rng.random() < 0.4:
        threading.Thread(target=_beside, args=(registry, rng.random()), daemon=True).start()
    actor = Actor(registry, small.read_pool(place), found, rng, out)
    while True:
        actor.act()


def _say(out: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


def _beside(registry: Registry, seed: float) -> None:
    """What the daemon does by itself while it is used."""
    rng = random.Random(seed)
    while True:
        work = rng.choice((upkeep.backup, upkeep.scrub, rebuild.rebuild, upkeep.collect))
        with suppress(OrchdError):
            work(registry)


@dataclass
class Actor:
    """`known` is what the registry must hold, by what was acknowledged."""

    registry: Registry
    pool: dict[str, Offer]
    known: Facts
    rng: random.Random
    out: int

    def __post_init__(self) -> None:
        #: What each act that can be undone has changed, and what was there before.
        self.undoable: list[tuple[Facts, Facts]] = []
        self.numbers = 0

    def act(self) -> None:
        acts: tuple[tuple[Callable[[], None], int], ...] = (
            (self.admit, 8),
            (self.remove, 3),
            (self.undo, 3),
            (self.pin, 2),
            (self.release, 2),
            (self.trust, 3),
            (self.revoke, 1),
            (self.policy, 1),
            (self.announce, 3),
            (self.topic, 1),
            (self.deploy, 2),
            (self.job, 1),
            (self.collect, 2),
            (self.backup, 1),
            (self.rebuild, 1),
        )
        self.rng.choices([act for act, _ in acts], [weight for _, weight in acts])[0]()

    @contextmanager
    def doing(self, name: str, changes: Facts, *, undoable: bool = False) -> Iterator[Facts]:
        """Tell of an act before and after it; what it yields may be made more exact. A refusal is no act."""
        before = {key: self.known.get(key) for key in changes}
        _say(self.out, {"begin": name, "changes": changes})
        exact = dict(changes)
        yield exact
        _say(self.out, {"done": name, "changes": exact})
        for key, value in exact.items():
            self.known.pop(key, None)
            if value is not None:
                self.known[key] = value
        if undoable:
            self.undoable.append((exact, before))

    def here(self, *, trashed: bool = False) -> list[Offer]:
        return [
            offer
            for id, offer in self.pool.items()
            if f"verdict {id}" in self.known and (f"trash {id}" in self.known) is trashed
        ]

    def one(self, offers: list[Offer]) -> Offer | None:
        return self.rng.choice(offers) if offers else None

    # ---- adapters ------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """One that is not here, or was removed."""
        blocked = {key.split()[1] for key, value in self.known.items() if key.startswith("trust ") and value == BLOCK}
        wanted = [
            offer
            for id, offer in self.pool.items()
            if f"trash {id}" in self.known or (f"verdict {id}" not in self.known and f"revoked {id}" not in self.known)
        ]
        offer = self.one([offer for offer in wanted if offer.author not in blocked])
        if offer is None:
            return
        changes: Facts = {f"trash {offer.id}": None}
        if f"verdict {offer.id}" not in self.known:
            changes |= {f"verdict {offer.id}": ANY, **dict.fromkeys(self.bounds(), ANY)}
        with self.doing("admit", changes) as exact:
            self.registry.admit(offer.envelope, offer.files, origin="fetched")
            verdict = self.registry.local.get(Verdict, offer.id)
            assert verdict is not None
            if f"verdict {offer.id}" in changes:
                exact[f"verdict {offer.id}"] = list(verdict.reasons)
                exact |= dict.fromkeys(self.bounds())
                exact |= {f"bound {row.key}": row.count for row in self.registry.local.all(Bound)}

    def bounds(self) -> list[str]:
        base = self.registry.base("tiny").fingerprint
        return [f"bound {base} {module}" for module in MODULES]

    def remove(self) -> None:
        if offer := self.one(self.here()):
            with self.doing("remove", {f"trash {offer.id}": True}, undoable=True):
                self.registry.remove(offer.id)

    def pin(self) -> None:
        if offer := self.one(self.here()):
            pinned = f"pin {offer.id}" not in self.known
            with self.doing("pin", {f"pin {offer.id}": True if pinned else None}, undoable=True):
                self.registry.pin(offer.id, pinned)

    def release(self) -> None:
        due = small.due_states(self.pool, self.known)
        kept = [
            offer
            for id, offer in self.pool.items()
            if due.get(id) == "quarantined"
            and small.due_states(self.pool, self.known | {f"release {id}": True})[id] == "admitted"
        ]
        if offer := self.one(kept):
            with self.doing("release", {f"release {offer.id}": True}, undoable=True):
                self.registry.release(offer.id)

    def undo(self) -> None:
        """What this process did last, where nothing has changed it since."""
        while self.undoable:
            after, before = self.undoable.pop()
            if all(self.known.get(key) == value for key, value in after.items()):
                with self.doing("undo", before):
                    self.registry.undo()
                return
            self.undoable.clear()

    # ---- people --------------------------------------------------------------------------------------------------

    def trust(self) -> None:
        author = self.rng.choice((BOB, MALLORY)).author
        verdict = self.rng.choice((FOLLOW, ALLOW, BLOCK, None))
        if verdict == self.known.get(f"trust {author}"):
            return
        row = Trust(subject=author, kind=AUTHOR, verdict=verdict or "", note="", auto_update=False, since=small.clock())
        with self.doing(f"trust.{verdict}", {f"trust {author}": verdict}, undoable=True):
            change = put(row) if verdict else delete(Trust, author)
            self.registry.local.act(f"trust.{verdict}", change, undoable=True)
            self.registry.people.forget()
            self.registry.restand()

    def policy(self) -> None:
        value = "off" if self.known.get("setting policy.quarantine") == "strangers" else "strangers"
        with self.doing("policy", {"setting policy.quarantine": value}, undoable=True):
            row = Setting(key=PREFIX + "quarantine", value=value)
            self.registry.local.act("trust.policy", put(row), undoable=True)
            self.registry.people.forget()
            self.registry.restand()

    def revoke(self) -> None:
        offers = [offer for offer in self.here() if f"revoked {offer.id}" not in self.known]
        if (offer := self.one(offers)) and self.rng.random() < 0.5:
            author = AUTHORS[offer.author]
            record = Revocation(
                manifest=parse_id(offer.id, ADAPTER), reason="wrong", created_ms=small.clock(), author=author.public_key
            )
            with self.doing("revoke", {f"revoked {offer.id}": True}):
                assert self.registry.news.take(sign(record, author), "").new

    def announce(self) -> None:
        offers = [offer for offer in self.here() if offer.author == ME.author]
        if offer := self.one(offers):
            signed = None

            def make(seq: int) -> Any:
                nonlocal signed
                record = Announcement(
                    manifest=parse_id(offer.id, ADAPTER),
                    topics=("topic",),
                    size=1,
                    created_ms=small.clock(),
                    base=bytes(32),
                    author=ME.public_key,
                    seq=seq,
                )
                signed = sign(record, ME)
                _say(self.out, {"signed": signed.id, "seq": seq})
                return signed

            with self.doing("announce", {}) as exact:
                self.registry.announce(make, "peer")
                assert signed is not None
                exact[f"announced {signed.id}"] = signed.record.seq

    # ---- what else is kept here ----------------------------------------------------------------------------------

    def topic(self) -> None:
        name = self.rng.choice(("one", "two", "three"))
        topics = Topics(self.registry.local, lambda: small.clock())
        if f"topic {name}" in self.known:
            with self.doing("leave", {f"topic {name}": None}):
                topics.remove(name)
        else:
            with self.doing("join", {f"topic {name}": True}):
                topics.add(name)

    def deploy(self) -> None:
        name = self.rng.choice(("first", "second", "third"))
        deployments = Deployments(self.registry.local)
        if f"deployment {name}" in self.known and self.rng.random() < 0.5:
            with self.doing("deployment.remove", {f"deployment {name}": None}):
                deployments.remove(name)
            return
        with self.registry.blobs.writer(64) as writer:
            writer.write(self.rng.randbytes(64))
            blob = writer.commit().hex()
        row = Deployment(
            name=name,
            adapter=None,
            target="embedded",
            state="ready",
            base="tiny",
            blob=blob,
            size=64,
            quantize="",
            parity=None,
            created=small.clock(),
        )
        with self.doing("deployment.put", {f"deployment {name}": blob}):
            deployments.put(row)

    def job(self) -> None:
        self.numbers += 1
        id = f"job-{small.clock()}-{self.numbers}"
        row = JobRow(
            id=id,
            kind="train",
            state="done",
            title="t",
            spec="{}",
            result="x" * self.rng.randrange(4_000),
            error=None,
            created=small.clock(),
            started=None,
            finished=None,
        )
        with self.doing("job", {f"job {id}": "done"}):
            self.registry.local.act("job.done", put(row))

    # ---- upkeep --------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """The trash is emptied, and with an adapter go the decisions about it."""
        gone = [offer.id for offer in self.here(trashed=True)]
        kinds = ("verdict", "trash", "pin", "release")
        with self.doing("gc", {f"{kind} {id}": None for id in gone for kind in kinds}):
            upkeep.collect(self.registry, empty_trash=True)

    def backup(self) -> None:
        with self.doing("backup", {}):
            upkeep.backup(self.registry)

    def rebuild(self) -> None:
        with self.doing("rebuild", {}):
            rebuild.rebuild(self.registry)
