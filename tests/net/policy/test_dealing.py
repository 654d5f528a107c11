"""One repair with one peer, driven without streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from orchd.errors import PeerMisbehaved
from orchd.identity import Identity
from orchd.net.messages import BUSY, Failed, GetRecords, Reconcile, Reconciled, RecordsAre, TopicParts
from orchd.net.policy.dealing import COMPARE_BURST, REFUSED_S, Ask, Dealings, Give, Outcome, Take
from orchd.net.policy.repair import END, Ids, Listed, Sum
from orchd.records import Announcement, Record, Verified, sign, verify_any

TOPIC = bytes([7]) * 32
ANNA = Identity.from_seed(b"a" * 32)
RECORDS = [
    sign(
        Announcement(
            manifest=bytes(32), topics=("t",), size=1, created_ms=1, base=bytes(32), author=ANNA.public_key, seq=seq
        ),
        ANNA,
    )
    for seq in range(100)
]


@dataclass(frozen=True)
class Name:
    text: str

    def to_bytes(self) -> bytes:
        return self.text.encode()


ME, OTHER = Name("me"), Name("other")


def check(_: Name, envelopes: Iterable[bytes]) -> list[Verified[Record]]:
    return [verify_any(envelope) for envelope in envelopes]


@dataclass
class Side:
    """A node of one topic. `keeps`: whether what it is given is kept; `hides`: ids that it names and does not give."""

    records: dict[bytes, Verified[Record]]
    keeps: bool = True
    hides: frozenset[bytes] = frozenset()
    asked: int = 0
    dealings: Dealings[Name] = field(init=False)

    def __post_init__(self) -> None:
        self.dealings = Dealings(lambda peer, topic: Ids(self.records), check)

    def answer(self, request: Reconcile | GetRecords) -> Reconciled | RecordsAre | Failed:
        if isinstance(request, Reconcile):
            return self.dealings.answer(ME, request, {TOPIC: Ids(self.records)}, 0.0)
        wanted = [self.records[id].envelope for id in request.ids if id in self.records and id not in self.hides]
        return RecordsAre(records=tuple(wanted))

    def take(self, records: Iterable[Verified[Record]]) -> int:
        new = {one.digest: one for one in records if one.digest not in self.records}
        self.records |= new if self.keeps else {}
        return len(new) if self.keeps else 0

    def repair_with(self, other: Side, now: float = 0.0) -> Outcome:
        talk = self.dealings.talk(OTHER, [TOPIC], now)
        step = next(talk)
        try:
            while True:
                if isinstance(step, Ask):
                    self.asked += isinstance(step.request, GetRecords)
                    step = talk.send(other.answer(step.request))
                elif isinstance(step, Take):
                    step = talk.send(self.take(step.records))
                else:
                    assert isinstance(step, Give)
                    step = talk.send(other.take(self.records[id] for id in step.ids))
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def side(records: Iterable[Verified[Record]], **settings: object) -> Side:
    return Side({one.digest: one for one in records}, **settings)  # type: ignore[arg-type]


def test_both_know_the_same_afterwards() -> None:
    mine, theirs = side(RECORDS[:70]), side(RECORDS[30:])
    assert mine.repair_with(theirs) == Outcome(30, 30, False)
    assert mine.records.keys() == theirs.records.keys() == {one.digest for one in RECORDS}
    assert mine.repair_with(theirs) == Outcome()


def test_what_was_not_kept_is_asked_for_again_much_later() -> None:
    mine, theirs = side([], keeps=False), side(RECORDS[:5])
    assert mine.repair_with(theirs, 0.0) == Outcome()
    assert mine.asked == 1
    mine.repair_with(theirs, REFUSED_S)
    assert mine.asked == 1
    mine.keeps = True
    assert mine.repair_with(theirs, REFUSED_S + 1).taken == 5


def test_what_the_other_did_not_keep_is_given_once() -> None:
    mine, theirs = side(RECORDS[:5]), side([], keeps=False)
    assert mine.repair_with(theirs).given == 5
    assert mine.repair_with(theirs).given == 0
    mine.dealings.lost(OTHER)
    assert mine.repair_with(theirs).given == 5


def test_who_names_records_and_gives_none_is_asked_for_no_more() -> None:
    everything = frozenset(one.digest for one in RECORDS)
    mine, theirs = side([]), side(RECORDS, hides=everything)
    assert mine.repair_with(theirs) == Outcome(0, 0, True)
    assert mine.asked == 1
    assert mine.repair_with(side(RECORDS)).taken == len(RECORDS), "another peer has them"


def test_records_that_were_not_asked_for() -> None:
    class Liar(Side):
        def answer(self, request: Reconcile | GetRecords) -> Reconciled | RecordsAre | Failed:
            if isinstance(request, GetRecords):
                return RecordsAre(records=(RECORDS[50].envelope,))
            return super().answer(request)

    with pytest.raises(PeerMisbehaved, match="gave others"):
        side([]).repair_with(Liar({one.digest: one for one in RECORDS[:5]}))


def test_an_answer_about_another_topic() -> None:
    talk = side(RECORDS).dealings.talk(OTHER, [TOPIC], 0.0)
    next(talk)
    talk.send(Reconciled(sets=(TopicParts(TOPIC, (Sum(END, bytes(16)),)),)))
    with pytest.raises(PeerMisbehaved, match="about others"):
        talk.send(Reconciled(sets=(TopicParts(bytes(32), (Sum(END, bytes(16)),)),)))


def test_several_topics_are_compared_by_their_fingerprints_alone() -> None:
    sets = (TopicParts(TOPIC, (Listed(END, ()),)), TopicParts(bytes(32), (Sum(END, bytes(16)),)))
    with pytest.raises(PeerMisbehaved, match="several topics"):
        side(RECORDS).answer(Reconcile(sets=sets))


def test_of_a_topic_that_is_not_shared_nothing_is_said_and_too_many_questions_are_busy() -> None:
    node = side(RECORDS)
    question = Reconcile(sets=(TopicParts(bytes(32), (Sum(END, bytes(16)),)),))
    answers = [node.answer(question) for _ in range(int(COMPARE_BURST) + 1)]
    assert answers[0] == Reconciled(sets=())
    assert answers[-1] == Failed(reason=BUSY)
