"""One repair with one peer, from the first question to the last record: sans-I/O.

`Dealings.talk` says step by step what to ask, what to keep and what to give, and is told what came of it. Whoever
drives it has the streams, the records and the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from orchd.errors import PeerMisbehaved
from orchd.net.messages import (
    BUSY,
    RECORDS_LIMIT,
    TOPICS_LIMIT,
    Failed,
    GetRecords,
    Reconcile,
    Reconciled,
    RecordsAre,
    TopicParts,
)
from orchd.net.policy.gossip import Recent, Shares
from orchd.net.policy.repair import Ids, Part, Reconciliation, Sum, respond
from orchd.net.policy.rounds import Peer
from orchd.records import Record, Verified

#: Comparisons a second that one peer may ask for, and at once.
COMPARE_RATE, COMPARE_BURST = 20.0, 300.0
#: Ids remembered of records that were given and not kept (of a blocked author, say), and of those given to one peer.
REFUSED, GIVEN = 8192, 4096
#: What was not kept is asked for again after so many seconds: a clock may be right, or a block lifted, by then.
REFUSED_S = 3600.0

P = TypeVar("P", bound=Peer)


class Ask(NamedTuple):
    """Put this question; send its answer."""

    request: Reconcile | GetRecords


class Take(NamedTuple):
    """Keep these, as far as they are to be kept; send how many were new. After that `ids` knows them."""

    records: Sequence[Verified[Record]]


class Give(NamedTuple):
    """Bring the peer these records under a topic, as far as they are here; send how many they were."""

    topic: bytes
    ids: Sequence[bytes]


class Outcome(NamedTuple):
    """Records that were kept, and that were given; and whether the peer named records that it then did not give."""

    taken: int = 0
    given: int = 0
    withheld: bool = False


Step = Ask | Take | Give
Talk = Generator[Step, Any, Outcome]


class Dealings(Generic[P]):
    """Of one node with all. `ids` gives what is here under a topic that `peer` may hear of, `check` the records in
    envelopes; it raises `PeerMisbehaved` when a signature does not hold."""

    def __init__(
        self,
        ids: Callable[[P, bytes], Ids],
        check: Callable[[P, Iterable[bytes]], list[Verified[Record]]],
    ) -> None:
        self._ids, self._check = ids, check
        self._refused: Recent[bytes] = Recent(REFUSED)
        self._given: dict[P, Recent[bytes]] = {}
        self._shares: Shares[P] = Shares(COMPARE_RATE, COMPARE_BURST)

    def lost(self, peer: P) -> None:
        """The last connection has ended."""
        self._given.pop(peer, None)

    # ---- asking -------------------------------------------------------------------------------------------------

    def talk(self, peer: P, keys: Collection[bytes], now: float) -> Talk:
        """About these topics, all at once first, then those alone that differ. Raises `PeerMisbehaved`."""
        taken = given = 0
        withheld = False
        answer: Reconciled = yield Ask(Reconcile(sets=self._first(peer, sorted(keys)[:TOPICS_LIMIT])))
        for one in answer.sets:
            if one.parts and one.topic in keys:
                outcome = yield from self._about(peer, one.topic, one.parts, now)
                taken, given = taken + outcome.taken, given + outcome.given
                withheld |= outcome.withheld
        return Outcome(taken, given, withheld)

    def _first(self, peer: P, keys: Iterable[bytes]) -> tuple[TopicParts, ...]:
        return tuple(TopicParts(key, Reconciliation(self._ids(peer, key)).first()) for key in keys)

    def _about(self, peer: P, topic: bytes, parts: Sequence[Part], now: float) -> Talk:
        """Whoever offers what nobody wants is asked seldom: only what was kept counts."""
        found = Reconciliation(self._ids(peer, topic))
        found.first()
        question = found.next(parts)
        while question:
            answer: Reconciled = yield Ask(Reconcile(sets=(TopicParts(topic, question),)))
            if [one.topic for one in answer.sets] != [topic]:
                raise PeerMisbehaved(f"{peer} was asked about one topic and answered about others")
            question = found.next(answer.sets[0].parts)
        need = [id for id in found.need if now - self._refused.since(id, float("-inf")) > REFUSED_S]
        outcome = yield from self._get(peer, topic, need, now)
        given = self._given.setdefault(peer, Recent(GIVEN))
        have = [id for id in found.have if id not in given]
        for batch in _batches(have):
            yield Give(topic, batch)
            for id in batch:
                given.add(id, now)
        return Outcome(outcome.taken, len(have), outcome.withheld)

    def _get(self, peer: P, topic: bytes, ids: Sequence[bytes], now: float) -> Talk:
        """Those that are not kept are not asked for again for a while, of nobody; whoever names records and gives none
        of them is asked for no more this time."""
        taken = 0
        for batch in _batches(ids):
            left = set(batch)
            while left:
                answer: RecordsAre = yield Ask(GetRecords(topics=(topic,), ids=tuple(sorted(left))))
                records = self._check(peer, answer.records)
                came = {record.digest for record in records}
                if not came <= left:
                    raise PeerMisbehaved(f"{peer} was asked for some records and gave others")
                if not came:
                    return Outcome(taken, withheld=True)
                taken += yield Take(records)
                left -= came
            here = self._ids(peer, topic)
            for id in batch:
                if id not in here:
                    self._refused.renew(id, now)
        return Outcome(taken)

    # ---- answering ----------------------------------------------------------------------------------------------

    def answer(self, peer: P, request: Reconcile, visible: Mapping[bytes, Ids], now: float) -> Reconciled | Failed:
        """What is here under topics that the peer may hear of; of others nothing is said. Raises `PeerMisbehaved`."""
        check_question(peer, request)
        if not self._shares.take(peer, now):
            return Failed(reason=BUSY)
        return Reconciled(
            sets=tuple(
                TopicParts(one.topic, respond(visible[one.topic], one.parts))
                for one in request.sets
                if one.topic in visible
            )
        )


def check_question(peer: Peer, request: Reconcile) -> None:
    """Raises `PeerMisbehaved`."""
    if len(request.sets) > 1 and any(len(one.parts) > 1 or not _is_sum(one.parts) for one in request.sets):
        raise PeerMisbehaved(f"{peer} asks about several topics at once, and for more than their fingerprints")


def _is_sum(parts: Sequence[Part]) -> bool:
    return all(isinstance(part, Sum) for part in parts)


def _batches(ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), RECORDS_LIMIT):
        yield list(ids[start : start + RECORDS_LIMIT])
