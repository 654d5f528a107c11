"""A town of nodes that come and go for some hours, a fifth of them hostile; what came of it."""

from __future__ import annotations

import hashlib
import math
import statistics
from dataclasses import dataclass

from orchd.net.messages import topic_key
from orchd.net.policy.names import is_open, private_name
from tests.sim import works
from tests.sim.net import Net
from tests.sim.node import Node
from tests.sim.villains import KINDS, Sybil, Villain
from tests.sim.world import Peer, World

#: Nodes that always stay and take part in no topic: whom everybody has in the settings.
BOOTSTRAP = 3
#: Seconds: the median of a stay and of an absence; how much stays differ (of the logarithm).
STAY_S, AWAY_S, SPREAD = 3600.0, 3600.0, 0.8
#: A node is owed an adapter when it stays so long, in one go, after the author has been there with it for as long.
OWED_S = 900.0
#: Bytes of an adapter, and bytes a second that a node gives.
SIZES, SPEEDS = (250_000, 60_000_000), (500_000.0, 10_000_000.0)
HOUR = 3600.0


@dataclass(frozen=True)
class Town:
    """What is simulated."""

    nodes: int = 1000
    topics: int = 20
    private: int = 2
    adapters: int = 200
    revocations: int = 10
    hours: float = 6.0
    hostile: float = 0.2
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """`owed` pairs of an adapter and an honest node that wants it, of which so many were `reached`; `late` are those
    that were not. `digest` is of all that happened."""

    owed: int
    reached: int
    late: tuple[tuple[str, Peer], ...]
    forged: int
    leaked: int
    revoked_and_kept: int
    median_s: float
    p95_s: float
    events: int
    digest: str

    @property
    def share(self) -> float:
        """Per cent."""
        return 100.0 * self.reached / max(1, self.owed)


class Play:
    """One run."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.world = World(town.seed)
        self.rng = self.world.rng
        self.end = town.hours * HOUR
        self.secrets = {f"club{number}": self.rng.randbytes(32) for number in range(town.private)}
        public = [f"topic{number}" for number in range(town.topics - town.private)]
        closed = [private_name(label, secret) for label, secret in self.secrets.items()]
        self.net = Net(self.world, (*public, *closed))
        self.stays: dict[Peer, list[tuple[float, float]]] = {}
        self._people()
        self.net.settle()
        self._lives()
        self._adapters()

    # ---- who is there -------------------------------------------------------------------------------------------

    def _people(self) -> None:
        town, rng = self.town, self.rng
        hostile = round(town.nodes * town.hostile)
        for number in range(town.nodes):
            if number < hostile:
                kind: type[Node] = KINDS[number % len(KINDS)]
                place = f"203.0.113.{number % (hostile // 3 + 1)}"
            else:
                kind, place = Node, f"10.{number // 256}.{number % 256}.1"
            id = Peer(f"node{number}")
            if kind is Sybil:
                id, place = self._near(self.net.names[0], number), f"198.51.100.{number % 3}"
            joins = 0 if hostile <= number < hostile + BOOTSTRAP else rng.choice((1, 1, 2))
            names = set(rng.sample(self.net.names, joins)) | ({self.net.names[0]} if kind is Sybil else set())
            speed = math.exp(rng.uniform(*map(math.log, SPEEDS)))
            self.net.nodes[id] = kind(self.net, id, place, self._topics(names), self._keys(names, kind), speed)
        everybody = list(self.net.nodes.values())
        self.net.bootstrap = tuple(node.id for node in everybody[hostile : hostile + BOOTSTRAP])
        Sybil.crowd = [node.id for node in everybody if isinstance(node, Sybil)]

    def _near(self, name: str, number: int) -> Peer:
        """A key that is closer to a topic's than nearly all others."""
        key = int.from_bytes(hashlib.sha256(name.encode()).digest())
        names = (f"sybil{number}-{turn}" for turn in range(4000))
        return Peer(min(names, key=lambda text: int.from_bytes(hashlib.sha256(text.encode()).digest()) ^ key))

    def _topics(self, names: set[str]) -> dict[bytes, str]:
        return {topic_key(name): name for name in sorted(names)}

    def _keys(self, names: set[str], kind: type[Node]) -> dict[bytes, bytes]:
        """A villain may know a private topic's name, and not its secret."""
        if issubclass(kind, Villain):
            return {}
        secrets = {private_name(label, secret): secret for label, secret in self.secrets.items()}
        return {topic_key(name): secrets[name] for name in sorted(names) if name in secrets}

    def _lives(self) -> None:
        rng = self.rng
        for node in self.net.nodes.values():
            always = node.id in self.net.bootstrap
            at = 0.0 if always or rng.random() < 0.5 else rng.expovariate(1 / AWAY_S)
            stays = self.stays[node.id] = []
            while at < self.end:
                until = self.end + 1.0 if always else at + STAY_S * rng.lognormvariate(0.0, SPREAD)
                stays.append((at, min(until, self.end)))
                self.world.at(at, node.come)
                self.world.at(until, node.go)
                at = until + AWAY_S * rng.lognormvariate(0.0, SPREAD)

    def _adapters(self) -> None:
        """Each is made in the middle of a stay that goes on for a while."""
        rng, town = self.rng, self.town
        authors = [node for node in self.net.nodes.values() if not node.hostile and node.topics]
        choices = [
            (node, at, until)
            for node in authors
            for at, until in self.stays[node.id]
            if until - at > 2 * OWED_S and at + OWED_S / 2 < self.end - 2 * OWED_S
        ]
        self.made: list[tuple[works.Work, Node, float]] = []
        for number in range(town.adapters):
            node, at, until = rng.choice(choices)
            when = rng.uniform(at + OWED_S / 2, min(until - OWED_S, self.end - 2 * OWED_S))
            names = tuple(sorted(rng.sample(sorted(node.joined), rng.randint(1, len(node.joined)))))
            if not all(map(is_open, names)):
                names = names[:1]
            size = round(math.exp(rng.uniform(*map(math.log, SIZES))))
            work = works.make(works.identity(node.id), f"adapter{number}", size, names, number, self._ms(when))
            self.made.append((work, node, when))
            self.net.followed.add(work.manifest.record.author)
            self.net.peers[work.manifest.record.author] = node.id
            self.world.at(when, self._publish, node, work)
        for work, node, _ in rng.sample(self.made, min(town.revocations, len(self.made))):
            at, until = self.stays[node.id][-1]
            when = rng.uniform(at, until)
            self.world.at(when, self._revoke, node, work)

    def _ms(self, when: float) -> int:
        return self.world.now_ms + int(when * 1000)

    def _publish(self, node: Node, work: works.Work) -> None:
        self.net.works[work.id] = work
        node.made(work)

    def _revoke(self, node: Node, work: works.Work) -> None:
        if work.id in self.net.works and node.online:
            self.net.revoked_at[work.id] = self.world.now
            node.take_back(works.revoke(works.identity(node.id), work.id, self.world.now_ms))

    # ---- what came of it ----------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self.world.run(self.end)
        owed = self._owed()
        took = sorted(self._after(adapter, peer) for adapter, peer in owed if self._after(adapter, peer) >= 0)
        names = {work.id: work.manifest.record.name for work, _, _ in self.made}
        late = tuple((names[adapter], peer) for adapter, peer in owed if self._after(adapter, peer) < 0)
        story = repr((sorted(self.net.admitted_at.items()), sorted(self.net.heard_at.items()), self.world.events))
        return Outcome(
            owed=len(owed),
            reached=len(owed) - len(late),
            late=late,
            forged=len(self.net.forged),
            leaked=len(self.net.leaks),
            revoked_and_kept=self._revoked_and_kept(),
            median_s=statistics.median(took) if took else 0.0,
            p95_s=took[len(took) * 95 // 100] if took else 0.0,
            events=self.world.events,
            digest=hashlib.sha256(story.encode()).hexdigest(),
        )

    def _owed(self) -> list[tuple[bytes, Peer]]:
        """An adapter that was revoked is owed to nobody."""
        return [
            (work.id, node.id)
            for work, author, when in self.made
            for node in self.net.nodes.values()
            if work.id not in self.net.revoked_at
            and not node.hostile
            and node is not author
            and not node.joined.keys().isdisjoint(work.announcement.record.topics)
            and self._stays_from(node.id, when + OWED_S) is not None
        ]

    def _stays_from(self, peer: Peer, out: float) -> float | None:
        """From when on a node is there for long enough with an adapter that has been out since then."""
        begins = (max(at, out) for at, until in self.stays[peer] if until - max(at, out) >= OWED_S)
        return next(begins, None)

    def _after(self, adapter: bytes, peer: Peer) -> float:
        """Seconds that the adapter took, counted from when the node was there and it was out; -1 for never.

        One that came after the node's first long enough stay has not come in time, and counts as never.
        """
        came = self.net.admitted_at.get((adapter, peer))
        when = next(when for work, _, when in self.made if work.id == adapter)
        begin = self._stays_from(peer, when + OWED_S)
        if came is None or begin is None or came > begin + OWED_S:
            return -1.0
        there = max([at for at, until in self.stays[peer] if at <= came <= until + 1.0], default=0.0)
        return came - max(there, when)

    def _revoked_and_kept(self) -> int:
        """Honest nodes that were there for long enough after a revocation and still have the adapter."""
        return sum(
            adapter in node.shelf.adapters
            for adapter, when in self.net.revoked_at.items()
            for node in self.net.nodes.values()
            if not node.hostile and self._stays_from(node.id, when + OWED_S) is not None
        )
