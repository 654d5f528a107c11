"""An honest node: the daemon's own policy modules, put together as `orchd/net/{node,news,gossip,repair,company}.py` put
them together, on simulated time and wires. What lasts outlives a stay: shelf, scores, book, freshness."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from orchd.config import NetConfig
from orchd.errors import PeerMisbehaved, SignatureInvalid
from orchd.net.members import Members
from orchd.net.messages import GetRecords, Hello, Reconcile, Reconciled, RecordsAre
from orchd.net.policy.again import Again
from orchd.net.policy.book import Book
from orchd.net.policy.dealing import Ask, Dealings, Outcome, Take, Talk
from orchd.net.policy.gate import Gate as Door
from orchd.net.policy.gate import Knock
from orchd.net.policy.gossip import Gate, Message, Shares, Verdict, is_foreign, may_keep, to_gossip, to_push
from orchd.net.policy.names import is_open
from orchd.net.policy.repair import Freshness, Ids, Schedule
from orchd.net.policy.rounds import ASIDE, SERVERS, UPKEEP_ASIDE, Rounds, Search, aside
from orchd.net.policy.scores import Offence, Scores
from orchd.net.policy.seeking import Seeking, is_enough
from orchd.records import Announcement, Record, Revocation, Verified
from orchd.records.ids import sha256
from tests.sim.fetch import Fetch, GetChunks, GetManifest
from tests.sim.shelf import Shelf
from tests.sim.works import Work, check, record_in
from tests.sim.world import EPOCH_MS, Peer

if TYPE_CHECKING:
    from tests.sim.net import Net

#: As `news.py`, `config.py` and libp2p's gossip have them.
NEWS_RATE, NEWS_BURST = 16.0, 4096.0
ANNOUNCE_S, LOOKUP_S = float(NetConfig().announce_interval_s), float(NetConfig().lookup_interval_s)
DEGREE_LOW, DEGREE, DEGREE_HIGH, LAZY = 4, 6, 12, 3
#: A question that is not answered is given up; remembered peers that are tried at the start; fetches at once.
PATIENCE_S, REMEMBERED_AT_ONCE, FETCHES = 20.0, 8, 4

Then = Callable[[Any], None]
FOREVER = float("inf")


class Node:
    """`topics` are what it takes part in, `secrets` those of the private ones, both by key."""

    hostile = False

    def __init__(
        self, net: Net, id: Peer, place: str, topics: dict[bytes, str], secrets: dict[bytes, bytes], speed: float
    ) -> None:
        self.net, self.id, self.place, self.speed = net, id, place, speed
        self.world, self.rng = net.world, net.world.rng
        self.topics, self.secrets = topics, secrets
        self.joined = dict.fromkeys(sorted(topics.values()))  # a set with an order
        self.shelf, self.scores, self.book = Shelf(), Scores(), Book()
        self.freshness = Freshness(EPOCH_MS)
        self.wanted: Again[bytes] = Again()
        self.online = False
        self.life = 0
        self._begin()

    def _begin(self) -> None:
        """What a stay begins with."""
        self.links: dict[Peer, Node] = {}
        self.shared: dict[Peer, frozenset[str]] = {}
        self.mesh: dict[str, list[Peer]] = {name: [] for name in self.joined if is_open(name)}
        self.stored: dict[str, dict[Peer, float]] = {}
        self.members: Members[Peer] = Members(
            self.id, self.topics, self.secrets.get, lambda peer: False, lambda: self.world.now_ms
        )
        self.gate, self.door = Gate(), Door()
        self.knocks: dict[Peer, Knock] = {}
        self.seeking: Seeking[Peer] = Seeking(self.rng)
        self.rounds = Rounds(ANNOUNCE_S, LOOKUP_S, self.rng)
        self.schedule = Schedule(self.rng)
        self.dealings: Dealings[Peer] = Dealings(lambda peer, key: self.shelf.ids(self.topics.get(key, "")), check)
        self.shares: Shares[Peer] = Shares(NEWS_RATE, NEWS_BURST)
        self.busy: set[Peer] = set()
        self.fetches: dict[bytes, Fetch] = {}
        self.queue: deque[bytes] = deque()
        self.announced: set[str] = set()
        self._armed = FOREVER

    # ---- staying ------------------------------------------------------------------------------------------------

    def come(self) -> None:
        self.life += 1
        self._begin()
        self.online = True
        now = self.world.now
        for name in self.joined:
            self.rounds.joined(name, now)
        for peer in self.net.bootstrap:
            self.dial(peer)
        for entry in self.book.to_try(REMEMBERED_AT_ONCE, self.rng):
            self.dial(Peer(entry.peer))
        self.arm()

    def go(self) -> None:
        for adapter in (*self.fetches, *self.queue):  # goes on at the next start
            self.wanted.failed(adapter, self.world.now)
        self.online = False
        self.life += 1
        for other in list(self.links.values()):
            other.lost(self.id)
            self.lost(other.id)

    def arm(self) -> None:
        """Wake up when something is due."""
        rounds = self.rounds.next_at() if self.links else FOREVER
        at = max(self.world.now, min(rounds, self.schedule.next_at(), self.wanted.next_at()))
        if at < self._armed:
            self._armed = at
            self.world.at(at, self._tick, self.life)

    def _tick(self, life: int) -> None:
        now = self.world.now
        if life != self.life or now < self._armed:
            return
        self._armed = FOREVER
        if self.links:
            for name in self.rounds.to_announce(now):
                self.net.announce(self, name, self._aside(UPKEEP_ASIDE if name in self.announced else ASIDE))
                self.announced.add(name)
            for name in self.rounds.to_look_up(now):
                self._look_up(name)
        for peer in self.schedule.take_due(now):
            self._repair(Peer(peer))
        for adapter in self.wanted.take_due(now):
            self._fetch(adapter)
        self.arm()

    # ---- company ------------------------------------------------------------------------------------------------

    def is_unwelcome(self, peer: Peer, place: str) -> bool:
        now = self.world.now
        return self.scores.is_banned(peer, now) or self.scores.is_banned(place, now)

    def dial(self, peer: Peer) -> None:
        other = self.net.nodes[peer]
        if peer != self.id and peer not in self.links and not self.is_unwelcome(peer, other.place):
            self.world.soon(other.knock, self, self.life)

    def knock(self, guest: Node, life: int) -> None:
        """Somebody dials this node."""
        if life != guest.life or guest.id in self.links:
            return
        now = self.world.now
        if not self.online:
            guest.seeking.failed(self.id, now)
            guest.book.failed(self.id, self.world.now_ms)
            return
        if self.is_unwelcome(guest.id, guest.place):
            return
        knock, _ = self.door.knock(guest.place, now)
        if knock is None:
            return
        self.door.secured(knock)
        self.knocks[guest.id] = knock
        self.links[guest.id], guest.links[self.id] = guest, self
        self.heard(guest.id, guest.members.hello(self.id), ours=False)
        guest.world.soon(guest.heard, self.id, self.members.hello(guest.id), True)

    def heard(self, peer: Peer, hello: Hello, ours: bool) -> None:
        if peer not in self.links:
            return
        self.members.heard(peer, hello)
        keys = self.members.of(peer)
        names = self.shared[peer] = frozenset(self.topics[key] for key in keys)
        now = self.world.now
        if ours:
            self.book.reached(peer, f"/ip4/{self.links[peer].place}/tcp/4001", self.world.now_ms)
        if not names:
            self.arm()
            return
        for name in sorted(names):
            if is_open(name):
                self._graft(name, peer)
        away = self.freshness.wait_ms(self.world.now_ms) > 0
        self.schedule.met(peer, now, ours=ours or away, topics=keys)
        self.wanted.somebody_came(now)
        self.arm()

    def lost(self, peer: Peer) -> None:
        """The connection has ended."""
        if self.links.pop(peer, None) is None:
            return
        names = self.shared.pop(peer, frozenset())
        self.members.lost(peer)
        self.schedule.lost(peer)
        self.dealings.lost(peer)
        if knock := self.knocks.pop(peer, None):
            self.door.left(knock)
        for name in sorted(names):
            if peer in self.mesh.get(name, ()):
                self.mesh[name].remove(peer)
                self._refill(name)

    def blame(self, peer: Peer, offence: Offence) -> None:
        place = self.net.nodes[peer].place
        self.net.blamed(self, peer)
        for _ in self.scores.blame(peer, place, offence, "", self.world.now):
            for other in [one for one in self.links.values() if self.is_unwelcome(one.id, one.place)]:
                other.lost(self.id)
                self.lost(other.id)

    def _graft(self, name: str, peer: Peer) -> None:
        other = self.links[peer]
        mine, theirs = self.mesh[name], other.mesh.get(name)
        if theirs is not None and len(mine) < DEGREE and len(theirs) < DEGREE_HIGH and peer not in mine:
            mine.append(peer)
            theirs.append(self.id)

    def _refill(self, name: str) -> None:
        if len(self.mesh[name]) < DEGREE_LOW:
            others = sorted(peer for peer, names in self.shared.items() if name in names)
            for peer in self.rng.sample(others, min(DEGREE, len(others))):
                self._graft(name, peer)

    # ---- topics -------------------------------------------------------------------------------------------------

    def _aside(self, most: int) -> list[Peer]:
        return aside(self.links, len(self.net.nodes), self.rng, most)

    def _look_up(self, name: str) -> None:
        servers = self.rounds.servers(name)
        search: Search[Peer, str] = Search(name.encode(), self.id, servers)
        search.also(self._aside(UPKEEP_ASIDE if servers < SERVERS else ASIDE))
        self.net.search(self, name, search)
        self.world.after(self.rng.uniform(0.3, 2.0), self._found, self.life, name, search)

    def _found(self, life: int, name: str, search: Search[Peer, str]) -> None:
        if life != self.life:
            return
        found = {peer: places[0] for peer, places in search.providers.items() if not self.is_unwelcome(peer, places[0])}
        members = {peer: self.links[peer].place for peer, names in self.shared.items() if name in names}
        for peer in self.seeking.choose(found, members, self.links, self.world.now):
            self.dial(peer)
        if is_enough(len(members)):
            self.rounds.enough(name, self.world.now)

    def store(self, name: str, peer: Peer, until: float) -> None:
        """As a server of the DHT."""
        self.stored.setdefault(name, {})[peer] = until

    def providers(self, name: str) -> Iterable[Peer]:
        now = self.world.now
        return [peer for peer, until in self.stored.get(name, {}).items() if until > now]

    # ---- news ---------------------------------------------------------------------------------------------------

    def publish(self, record: Verified[Record], topics: Sequence[str]) -> None:
        """One of our own."""
        self._keep([record], self.id)
        for name in to_gossip(topics, self.joined):
            self.gate.sent(name, sha256(record.envelope), self.world.now)
            self._spread(name, record.envelope, None)
        self._push(record, topics, None)

    def _spread(self, name: str, envelope: bytes, source: Peer | None) -> None:
        digest = sha256(envelope)
        for peer in self.mesh[name]:
            if peer != source:
                self.net.gossip(self, peer, name, envelope, digest)
        self.world.after(1.0, self._tell_lazily, self.life, name, envelope, digest)

    def _tell_lazily(self, life: int, name: str, envelope: bytes, digest: bytes) -> None:
        """Those who are not in the mesh hear of it at the heartbeat, and ask for it."""
        if life == self.life:
            mesh = self.mesh[name]
            others = [peer for peer, names in self.shared.items() if name in names and peer not in mesh]
            for peer in self.rng.sample(others, min(LAZY, len(others))):
                self.net.gossip(self, peer, name, envelope, digest, lazy=True)

    def has_heard(self, name: str, digest: bytes) -> bool:
        """What gossip's IHAVE asks: whether it would ask for this message."""
        return (name, digest) in self.gate._messages

    def hear(self, life: int, peer: Peer, name: str, envelope: bytes, digest: bytes) -> None:
        """A message of gossip."""
        if life != self.life or peer not in self.links or name not in self.mesh:
            return
        now = self.world.now
        message = Message(name, peer, digest)
        verdict = self.gate.message(message, len(envelope), now)
        if verdict is not Verdict.PASS:
            self.net.verdicts[verdict] += 1
            return
        record = record_in(envelope)
        if not isinstance(record, Verified):
            if isinstance(record, SignatureInvalid):
                self.blame(peer, Offence.LIED)
            return
        verdict = self.gate.record(
            message,
            record.record,
            record.digest,
            known=record.digest in self.shelf.records,
            heard_of=record.record.author in self.shelf.authors,
            now=now,
            now_ms=self.world.now_ms,
        )
        self.net.verdicts[verdict] += 1
        if verdict in (Verdict.PASS, Verdict.AGAIN):
            self._spread(name, envelope, peer)
        if verdict is Verdict.PASS:
            for one, topics in self._keep([record], peer):
                for other in to_gossip(topics, self.joined, name):
                    self._spread(other, envelope, peer)
                self._push(one, topics, peer)

    def _push(self, record: Verified[Record], topics: Sequence[str], source: Peer | None) -> None:
        """Members whom gossip does not reach are told straight."""
        if all(is_open(name) and self.mesh.get(name, True) for name in topics):
            return
        for peer in to_push(topics, self.shared, self.rng, self.links if any(self.mesh.values()) else (), source):
            self.world.soon(self.links[peer].pushed, self.id, [record.envelope], False)

    def pushed(self, peer: Peer, envelopes: Sequence[bytes], repair: bool) -> None:
        if peer not in self.links or not self.shares.take(peer, self.world.now, len(envelopes)):
            return
        try:
            records = check(peer, envelopes)
        except PeerMisbehaved:
            self.blame(peer, Offence.MALFORMED)
            return
        self.take(peer, records, repair=repair)

    def take(self, peer: Peer, records: Iterable[Verified[Record]], *, repair: bool) -> int:
        """As `news.take`; how many were new."""
        items = self._keep(sorted(records, key=lambda one: is_foreign(one.record, self.joined)), peer)
        if items:
            self.schedule.spread(peer, self.world.now)
            self.arm()
            if not repair:
                for record, topics in items:
                    self._push(record, topics, peer)
        return len(items)

    def _keep(self, records: Iterable[Verified[Record]], peer: Peer) -> list[tuple[Verified[Record], tuple[str, ...]]]:
        items = []
        for record in records:
            found = record.record
            if is_foreign(found, self.joined) and not (
                isinstance(found, Announcement) and self.shelf.rival(found, record.digest)
            ):
                continue
            if not may_keep(found, self.shelf.authors[found.author], len(self.shelf.records), trusted=peer == self.id):
                continue
            topics = self.shelf.take(record, peer, sorted(self.shared.get(peer, ())))
            if topics is None:
                continue
            self.gate.met(record.digest, self.world.now)
            self.net.kept(self, record)
            items.append((record, topics))
            if isinstance(found, Announcement) and found.author in self.net.followed:
                self._fetch(found.manifest)
        return items

    # ---- repair -------------------------------------------------------------------------------------------------

    def _repair(self, peer: Peer) -> None:
        keys = self.members.of(peer)
        if keys and peer not in self.busy:
            self.busy.add(peer)
            self._advance(self.life, peer, self.dealings.talk(peer, keys, self.world.now), None)

    def _advance(self, life: int, peer: Peer, talk: Talk, answer: Any) -> None:
        """The next step of a conversation, with what came of the one before."""
        if life != self.life:
            return
        try:
            step = talk.send(answer)
            while not isinstance(step, Ask):
                if isinstance(step, Take):
                    step = talk.send(self.take(peer, step.records, repair=True))
                else:
                    envelopes = self.shelf.envelopes(step.ids, self.members.visible(peer, [step.topic]))
                    if peer in self.links:
                        self.world.soon(self.links[peer].pushed, self.id, envelopes, True)
                    step = talk.send(len(envelopes))
        except StopIteration as end:
            outcome: Outcome = end.value
            self._repaired(peer, found=bool(outcome.taken + outcome.given))
            self.freshness.repaired(self.world.now_ms)
        except PeerMisbehaved:
            self._repaired(peer, found=False)
            self.blame(peer, Offence.LIED)
        else:
            wanted = Reconciled if isinstance(step.request, Reconcile) else RecordsAre
            self.ask(peer, step.request, partial(self._answered, life, peer, talk, wanted))

    def _answered(self, life: int, peer: Peer, talk: Talk, wanted: type[Any], answer: Any) -> None:
        if isinstance(answer, wanted):
            self._advance(life, peer, talk, answer)
        elif life == self.life:
            self._repaired(peer, found=False)

    def _repaired(self, peer: Peer, *, found: bool) -> None:
        self.busy.discard(peer)
        self.schedule.done(peer, self.world.now, found=found)
        self.net.repairs += 1
        self.arm()

    # ---- questions ----------------------------------------------------------------------------------------------

    def ask(self, peer: Peer, request: Any, then: Then) -> None:
        """`then` gets the answer, None when there is none."""
        other = self.links.get(peer)
        if other is None:
            self.world.after(0.1, then, None)
        else:
            self.world.soon(other.asked, self, request, then)

    def asked(self, asker: Node, request: Any, then: Then) -> None:
        if asker.id not in self.links:
            self.world.after(1.0, then, None)
            return
        if isinstance(request, GetManifest | GetChunks):
            wait_ms = self.freshness.wait_ms(self.world.now_ms)
            if wait_ms:  # nothing is served that may have been revoked while we were away
                self.world.after(min(wait_ms / 1000, 1.0), self.asked, asker, request, then)
                return
        try:
            reply = self.answer(asker.id, request)
        except PeerMisbehaved:
            self.blame(asker.id, Offence.MALFORMED)
            reply = None
        delay = 0.0
        if isinstance(request, GetChunks):
            delay = request.size / self.speed
        self.world.after(delay + self.rng.uniform(0.02, 0.2), then, reply)

    def answer(self, peer: Peer, request: Any) -> Any:
        if isinstance(request, Reconcile):
            names = self.members.visible(peer, [one.topic for one in request.sets])
            visible: dict[bytes, Ids] = {self.net.keys[name]: self.shelf.ids(name) for name in names}
            reply = self.dealings.answer(peer, request, visible, self.world.now)
            if isinstance(reply, Reconciled):
                self.schedule.done(peer, self.world.now, found=any(one.parts for one in reply.sets))
            return reply
        if isinstance(request, GetRecords):
            names = self.members.visible(peer, request.topics)
            return RecordsAre(records=tuple(self.shelf.envelopes(request.ids, names)))
        if not self.members.may_see(peer, self.shelf.announced.get(request.adapter, ())):
            return None
        if isinstance(request, GetManifest):
            return self.manifest(request.adapter)
        return self.chunks(request)

    def manifest(self, adapter: bytes) -> bytes | None:
        found = self.shelf.manifests.get(adapter)
        return None if found is None else found.envelope

    def chunks(self, request: GetChunks) -> tuple[bytes, ...] | None:
        whole = self.shelf.adapters.get(request.adapter)
        return None if whole is None else whole[request.span.first : request.span.end]

    # ---- adapters -----------------------------------------------------------------------------------------------

    def made(self, work: Work) -> None:
        """This node has made an adapter, and announces it."""
        self.shelf.made(work)
        self.publish(work.announcement, work.announcement.record.topics)

    def take_back(self, revocation: Verified[Revocation]) -> None:
        self.publish(revocation, self.shelf.announced[revocation.record.manifest])

    def _fetch(self, adapter: bytes) -> None:
        """An author whom this node follows has announced it."""
        if adapter in self.shelf.manifests or adapter in self.fetches or adapter in self.queue:
            return
        if len(self.fetches) >= FETCHES:
            self.queue.append(adapter)
            return
        names = self.shelf.announced.get(adapter, ())
        members = [peer for peer, theirs in self.shared.items() if not theirs.isdisjoint(names)]
        self.rng.shuffle(members)
        author = self.net.author_of(adapter)
        members.sort(key=lambda peer: (peer != author, peer != self.shelf.teller.get(adapter)))
        self.fetches[adapter] = Fetch(self, adapter, members)
        self.fetches[adapter].begin()

    def fetched(self, fetch: Fetch) -> None:
        """A fetch has ended."""
        self.fetches.pop(fetch.adapter, None)
        if fetch.manifest is not None and fetch.is_whole:
            self.wanted.forget(fetch.adapter)
            self.shelf.admit(fetch.manifest, fetch.bytes())
            self.net.admitted(self, fetch.adapter)
        else:
            self.wanted.failed(fetch.adapter, self.world.now)
        if self.queue:
            self._fetch(self.queue.popleft())
        self.arm()
