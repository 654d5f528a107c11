"""Announcements that come many at once, and under which topics records stand when the index was made again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchd.identity import Identity
from orchd.records import Announcement, Attestation, KeyRotation, Record, Revocation, Verified, sign
from orchd.registry.announced import AT_ONCE
from orchd.registry.local import put
from orchd.registry.local_rows import Received, TopicJoined, Trust
from orchd.registry.news import CLOCK_WINDOW_MS, Heard
from orchd.registry.trust import BLOCK
from tests.helpers import ALICE, BOB, MALLORY, Lab

SECRET, OPEN = "private/us/tag", "open"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def announcement(
    author: Identity, seq: int, *topics: str, adapter: bytes = bytes(32), created_ms: int = 1
) -> Verified[Record]:
    record = Announcement(
        manifest=adapter,
        topics=topics or (OPEN,),
        size=1,
        created_ms=created_ms,
        base=bytes(32),
        author=author.public_key,
        seq=seq,
    )
    return sign(record, author)


def revocation(lab: Lab, adapter: bytes, author: Identity = BOB) -> Verified[Record]:
    record = Revocation(manifest=adapter, reason="spoilt", created_ms=lab.now_ms, author=author.public_key)
    return sign(record, author)


def forget_index(lab: Lab) -> None:
    lab.registry.close()
    for file in (lab.root / "data").glob("registry.db*"):
        file.unlink()
    lab.open()


def told(lab: Lab, topic: str) -> set[str]:
    return {one.id for one in lab.registry.news.after([topic], 0, "", 1000)}


def a_mixture(lab: Lab) -> list[Verified[Record]]:
    """What a stranger may give at once: plain ones, the same ones again, two with one number, some that nobody wants,
    and one that is said of an adapter between two announcements of it."""
    adapter = bytes([9]) * 32
    plain = [announcement(BOB, seq, adapter=bytes([seq]) * 32) for seq in range(1, AT_ONCE + 10)]
    twins = [announcement(MALLORY, 5, adapter=bytes([one]) * 32) for one in (1, 2)]
    early = announcement(BOB, 900, created_ms=lab.now_ms + 2 * CLOCK_WINDOW_MS)
    blocked = announcement(Identity.from_seed(bytes([8]) * 32), 1)
    said = [announcement(BOB, 700, adapter=adapter), revocation(lab, adapter)]
    again = announcement(BOB, 701, "elsewhere", adapter=adapter)
    return [
        *plain[:20],
        plain[3],
        *twins,
        *plain[20:],
        early,
        blocked,
        announcement(ALICE, 1),
        *said,
        again,
        *plain[:2],
    ]


def test_many_at_once_are_what_they_are_one_by_one(tmp_path: Path) -> None:
    labs = [Lab(tmp_path / name) for name in ("one", "all")]
    records = a_mixture(labs[0])
    for lab in labs:
        unwanted = Identity.from_seed(bytes([8]) * 32).author
        row = Trust(subject=unwanted, kind="author", verdict=BLOCK, note="", auto_update=False, since=1)
        lab.registry.local.act("block", put(row))
        lab.registry.people.forget()
    one, all_ = (lab.registry for lab in labs)
    singly = [one.news.take(record, "peer", (OPEN,)) for record in records]
    assert all_.news.take_all([Heard(record, "peer", (OPEN,)) for record in records]) == singly
    assert sum(taken.new for taken in singly) == len(records) - 5, "a copy of three, an early one, a blocked one"
    for table, columns in (("announcement", "digest, adapter, topics, author, seq"), ("news", "digest, kind, topics")):
        sql = f"SELECT {columns} FROM {table} ORDER BY digest"
        assert one.index.read(sql) == all_.index.read(sql)
    assert all_.people.equivocated(MALLORY.author)


def test_the_topics_of_an_adapter_that_is_here_grow(lab: Lab) -> None:
    admission = lab.admit(lab.folder())
    digest = lab.registry.manifest(admission.id).digest
    lab.registry.news.take_all([Heard(announcement(BOB, seq, f"t{seq}", adapter=digest), "peer") for seq in (1, 2)])
    assert lab.registry.adapter(admission.id).topics == ("t1", "t2")


def test_what_came_under_a_private_topic_stays_there_when_the_index_is_made_again(lab: Lab) -> None:
    adapter = bytes([7]) * 32
    for name in (SECRET, OPEN):
        lab.registry.local.act("topic.join", put(TopicJoined(name=name, joined=1)))
    attestation = Attestation(
        manifest=adapter,
        evaluator=BOB.public_key,
        metric="loss",
        value=1,
        base_value=None,
        examples=1,
        interval=0,
        created_ms=1,
    )
    rotation = KeyRotation(old=BOB.public_key, new=MALLORY.public_key, created_ms=1)
    secret = [announcement(BOB, 1, SECRET, adapter=adapter), revocation(lab, adapter), sign(attestation, BOB)]
    for record in (*secret, sign(rotation, BOB, MALLORY)):
        assert lab.registry.news.take(record, "peer", (SECRET,)).new
    kept = told(lab, SECRET)
    assert len(kept) == 4
    forget_index(lab)
    assert told(lab, OPEN) == set()
    assert told(lab, SECRET) == kept - {secret[0].id}, "announcements of others are told again by others"


def test_records_journalled_without_topics_go_where_this_node_has_announced(lab: Lab) -> None:
    """As an older orchd has journalled them."""
    mine, other = bytes([6]) * 32, bytes([7]) * 32
    for name in (SECRET, OPEN):
        lab.registry.local.act("topic.join", put(TopicJoined(name=name, joined=1)))
    lab.registry.news.take(announcement(ALICE, 1, SECRET, adapter=mine), "me")
    records = [revocation(lab, mine, ALICE), revocation(lab, other)]
    for record in records:
        lab.registry.news.take(record, "peer", (OPEN,))
    for row in lab.registry.local.all(Received):
        lab.registry.local.act("as before", put(msgspec.structs.replace(row, topics=())))
    forget_index(lab)
    assert told(lab, OPEN) == set()
    assert {id for id in told(lab, SECRET) if id.startswith("rev_")} == {records[0].id}
