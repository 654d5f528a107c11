"""The hostile ones. Each takes part like a node, and does one thing that hurts; none passes honest gossip on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchd.net.messages import GetRecords, Hello, Reconcile, Reconciled, RecordsAre, TopicParts
from orchd.net.policy.names import is_open
from orchd.net.policy.repair import END, Listed, Same, Sum
from orchd.records import Verified, sign
from orchd.records.ids import sha256
from tests.sim import works
from tests.sim.fetch import GetChunks, GetManifest
from tests.sim.node import Node, Then
from tests.sim.world import Peer

#: Seconds between two deeds of one villain.
DEED_S, FLOOD_S = 300.0, 900.0
#: Peers that it tells something under a topic.
REACH = 12
#: A flooder's own announcements, each under a key of its own, to so many peers; and messages that it sends to a peer at
#: once.
SPAM, SPAMMED, FLOOD = 90, 3, 650
#: Messages that a replayer keeps, and sends again at once.
REMEMBERED, REPLAYED = 200, 20


class Villain(Node):
    hostile = True
    kind = "villain"
    pause_s = DEED_S

    def come(self) -> None:
        super().come()
        self.world.after(self.rng.uniform(1.0, self.pause_s), self._again, self.life)

    def _again(self, life: int) -> None:
        if life == self.life:
            self.deed()
            self.world.after(self.pause_s * self.rng.uniform(0.5, 1.5), self._again, life)

    def deed(self) -> None:
        """What it does from time to time."""

    def hear(self, life: int, peer: Peer, name: str, envelope: bytes, digest: bytes) -> None:
        """It passes nothing on."""

    def pushed(self, peer: Peer, envelopes: Sequence[bytes], repair: bool) -> None:
        for record in map(works.record_in, envelopes):
            if isinstance(record, Verified):
                self.net.told(self, record)

    def _repair(self, peer: Peer) -> None:
        self.schedule.done(peer, self.world.now, found=False)

    def _fetch(self, adapter: bytes) -> None:
        pass

    def blame(self, peer: Peer, offence: Any) -> None:
        pass

    def gossip_to_many(self, envelope: bytes, names: Iterable[str], most: int = REACH) -> None:
        for name in names:
            peers = [peer for peer, theirs in self.shared.items() if name in theirs and is_open(name)]
            for peer in self.rng.sample(peers, min(most, len(peers))):
                self.net.gossip(self, peer, name, envelope, sha256(envelope))

    def some_work(self) -> works.Work | None:
        """An honest adapter of one of its topics."""
        known = [
            work
            for work in self.net.works.values()
            if not self.joined.keys().isdisjoint(work.announcement.record.topics)
        ]
        return self.rng.choice(known) if known else None


class Forger(Villain):
    """Says that honest authors have announced other things, that it has what it has not, and gives other bytes."""

    kind = "forger"

    def hear(self, life: int, peer: Peer, name: str, envelope: bytes, digest: bytes) -> None:
        """What is true it tells everybody at once: whoever tells of an adapter is asked for it early."""
        if life == self.life and not self.has_heard(name, digest):
            self.gate.sent(name, digest, self.world.now)
            self.gossip_to_many(envelope, [name], len(self.links))

    def deed(self) -> None:
        work = self.some_work()
        if work is None:
            return
        names = [name for name in work.announcement.record.topics if name in self.joined]
        what = self.rng.randrange(3)
        if what == 0:  # under the author's name
            self.gossip_to_many(works.forged(work.announcement.envelope), names)
        elif what == 1:  # under its own name: it has it too
            own = works.announce(
                works.identity(self.id), work.id, 1, tuple(names), self.rng.randrange(1 << 40), self.world.now_ms
            )
            self.gossip_to_many(own.envelope, names)
        else:  # an adapter that does not exist
            own = works.announce(
                works.identity(self.id),
                self.rng.randbytes(32),
                1,
                tuple(names),
                self.rng.randrange(1 << 40),
                self.world.now_ms,
            )
            self.gossip_to_many(own.envelope, names)

    def answer(self, peer: Peer, request: Any) -> Any:
        if isinstance(request, GetManifest):
            return self._manifest(request.adapter)
        if isinstance(request, GetChunks):
            return tuple(self.rng.randbytes(16) for _ in range(request.span.count))
        return super().answer(peer, request)

    def _manifest(self, adapter: bytes) -> bytes | None:
        work = self.net.works.get(adapter)
        if work is None:
            work = self.some_work()
        if work is None:
            return None
        what = self.rng.random()
        if what < 0.7:  # the true one, to give other bytes afterwards
            return work.manifest.envelope
        if what < 0.85:
            return works.forged(work.manifest.envelope)
        return sign(_own(work.manifest, works.identity(self.id).public_key), works.identity(self.id)).envelope


def _own(manifest: Verified[Any], author: bytes) -> Any:
    import msgspec

    return msgspec.structs.replace(manifest.record, author=author)


class Flooder(Villain):
    """Announces what does not exist under ever new keys, and sends everything many times."""

    kind = "flooder"
    pause_s = FLOOD_S

    def deed(self) -> None:
        names = sorted(name for name in self.joined if is_open(name))
        if not names:
            return
        sharing = [peer for peer, theirs in self.shared.items() if names[0] in theirs]
        chosen = self.rng.sample(sharing, min(SPAMMED, len(sharing)))
        for number in range(SPAM):
            author = works.identity(f"{self.id}/{number}")
            spam = works.announce(author, sha256(author.public_key), 1, tuple(names), 1, 1)
            for peer in chosen:
                self.net.gossip(self, peer, names[0], spam.envelope, sha256(spam.envelope))
        for peer in self.rng.sample(sorted(self.links), min(2, len(self.links))):
            self.world.soon(self._flood, self.links[peer], self.links[peer].life, names[0], spam.envelope)

    def _flood(self, other: Node, life: int, name: str, envelope: bytes) -> None:
        digest = sha256(envelope)
        for _ in range(FLOOD):
            other.hear(life, self.id, name, envelope, digest)


class Replayer(Villain):
    """Sends again what it heard, long after."""

    kind = "replayer"

    def _begin(self) -> None:
        super()._begin()
        self.heard_once: list[tuple[str, bytes]] = getattr(self, "heard_once", [])

    def hear(self, life: int, peer: Peer, name: str, envelope: bytes, digest: bytes) -> None:
        if len(self.heard_once) < REMEMBERED:
            self.heard_once.append((name, envelope))

    def deed(self) -> None:
        for name, envelope in self.rng.sample(self.heard_once, min(REPLAYED, len(self.heard_once))):
            if name in self.joined:
                self.gossip_to_many(envelope, [name])
        for peer in self.rng.sample(sorted(self.links), min(3, len(self.links))):
            self.world.soon(self.links[peer].pushed, self.id, [envelope for _, envelope in self.heard_once[:64]], False)


class Liar(Villain):
    """Lies in repair: knows nothing, knows what is not, answers about something else, gives what nobody asked for."""

    kind = "liar"

    def answer(self, peer: Peer, request: Any) -> Any:
        if isinstance(request, Reconcile):
            return Reconciled(sets=tuple(self._about(one) for one in request.sets))
        if isinstance(request, GetRecords):
            work = self.some_work()
            return RecordsAre(records=() if work is None or self.rng.random() < 0.5 else (work.announcement.envelope,))
        return None

    def _about(self, one: TopicParts) -> TopicParts:
        made_up = tuple(sorted(self.rng.randbytes(32) for _ in range(40)))
        parts: Callable[[], Any] = self.rng.choice(
            [
                lambda: (),
                lambda: (Same(END),),
                lambda: (Listed(END, made_up),),
                lambda: (Listed(END, made_up[::-1]),),
                lambda: (Sum(END, self.rng.randbytes(16)),),
            ]
        )
        return TopicParts(one.topic if self.rng.random() < 0.9 else bytes(32), parts())


class Silent(Villain):
    """Takes connections and questions, and never says anything."""

    kind = "silent"

    def asked(self, asker: Node, request: Any, then: Then) -> None:
        self.world.after(60.0, then, None)


class Sybil(Silent):
    """One of many keys of one owner, around a topic's key: as a server it names the other keys alone, and it swears to
    be a member of every topic, of private ones too."""

    kind = "sybil"
    crowd: Sequence[Peer] = ()

    def store(self, name: str, peer: Peer, until: float) -> None:
        pass

    def providers(self, name: str) -> Iterable[Peer]:
        return self.crowd

    def deed(self) -> None:
        names = tuple(self.net.keys.values())
        for other in list(self.links.values()):
            self.world.soon(other.heard, self.id, Hello(topics=names, proofs=(bytes(32),)), False)


KINDS: tuple[type[Villain], ...] = (Forger, Flooder, Replayer, Liar, Silent, Sybil)
