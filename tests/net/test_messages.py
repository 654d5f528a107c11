"""The words of the exchange protocol, and the pure parts beside them."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchd.errors import PeerMisbehaved, TopicInvalid
from orchd.net import messages
from orchd.net.messages import Frames, GetManifest, GetRange, Hello, Push, Range, topic_key
from orchd.net.policy.repair import Differs, Listed, Same, Sum
from orchd.net.policy.rounds import ANNOUNCE_AT_ONCE, Rounds
from orchd.net.topics import provider_key

DIGEST = bytes(range(32))
REQUESTS = [
    Hello(topics=(DIGEST,)),
    Push(records=(b"signed", b"")),
    messages.Reconcile(sets=(messages.TopicParts(DIGEST, (Same(b"x"), Sum(b"y", bytes(16)), Listed(b"", (DIGEST,)))),)),
    messages.GetRecords(topics=(DIGEST,), ids=(DIGEST,)),
    GetManifest(adapter=DIGEST),
    messages.OpenBulk(adapter=DIGEST),
    GetRange(adapter=DIGEST, blob=DIGEST, offset=0, length=messages.RANGE_LIMIT),
]
REPLIES = [
    Hello(topics=()),
    messages.Done(),
    messages.Reconciled(sets=(messages.TopicParts(DIGEST, (Differs(b"", (DIGEST,), (DIGEST,)),)),)),
    messages.RecordsAre(records=(b"x",)),
    messages.ManifestIs(envelope=b"signed"),
    Range(length=messages.RANGE_LIMIT),
    messages.BulkAt(port=65_535, token=DIGEST, certificate=DIGEST),
    messages.Failed(reason=messages.BUSY),
]


def body_of(frame: bytes) -> bytes:
    frames = Frames(messages.REPLY_LIMIT)
    frames.feed(frame)
    body = frames.next()
    assert body is not None
    assert frames.next() is None
    return body


@pytest.mark.parametrize("request_", REQUESTS)
def test_requests_come_back(request_: messages.Request) -> None:
    assert messages.decode_request(body_of(messages.encode(request_))) == request_


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_come_back(reply: messages.Reply) -> None:
    assert messages.decode_reply(body_of(messages.encode(reply))) == reply


@pytest.mark.parametrize(
    "value",
    [
        {"op": "hello"},
        {"op": "hello", "topics": [], "more": 1},
        {"op": "hello", "topics": [b"short"]},
        {"op": "hello", "topics": ["x" * 32]},
        {"op": "hello", "topics": [DIGEST] * (messages.TOPICS_LIMIT + 1)},
        {"op": "push", "records": [b"x" * (messages.RECORD_LIMIT + 1)]},
        {"op": "push", "records": [b""] * (messages.RECORDS_LIMIT + 1)},
        {"op": "reconcile", "sets": [[DIGEST, [[4, b""]]]]},
        {"op": "reconcile", "sets": [[DIGEST, [[0, b"x" * 33]]]]},
        {"op": "reconcile", "sets": [[DIGEST, [[1, b"", b"short"]]]]},
        {"op": "reconcile", "sets": [[DIGEST, [[2, b"", [b"short"]]]]]},
        {"op": "reconcile", "sets": [[DIGEST, [[0, b""]] * 2049]]},
        {"op": "reconcile", "sets": [[DIGEST]]},
        {"op": "reconcile", "sets": [[DIGEST, []]] * (messages.TOPICS_LIMIT + 1)},
        {"op": "get_records", "topics": [], "ids": []},
        {"op": "get_records", "topics": [], "ids": [DIGEST] * (messages.RECORDS_LIMIT + 1)},
        {"op": "range", "adapter": DIGEST, "blob": DIGEST, "offset": -1, "length": 1},
        {"op": "range", "adapter": DIGEST, "blob": DIGEST, "offset": 0, "length": 0},
        {"op": "range", "adapter": DIGEST, "blob": DIGEST, "offset": 0, "length": messages.RANGE_LIMIT + 1},
        {"op": "range", "adapter": DIGEST, "blob": DIGEST, "offset": 1.5, "length": 1},
        {"op": "delete", "adapter": DIGEST},
        {"op": "done"},
        {},
        [],
        None,
    ],
)
def test_what_is_no_request(value: object) -> None:
    with pytest.raises(PeerMisbehaved):
        messages.decode_request(msgspec.msgpack.encode(value))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_reply):
        with suppress(PeerMisbehaved):
            decode(data)


def test_nesting_is_refused() -> None:
    with pytest.raises(PeerMisbehaved):
        messages.decode_request(b"\x91" * 100_000)


@given(st.lists(st.sampled_from(REQUESTS), max_size=5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_frames_cut_however_they_come(sent: list[messages.Request], rng: random.Random) -> None:
    stream = b"".join(map(messages.encode, sent))
    frames, got = Frames(messages.REQUEST_LIMIT), []
    while stream:
        cut = rng.randint(1, len(stream))
        frames.feed(stream[:cut])
        stream = stream[cut:]
        while (body := frames.next()) is not None:
            got.append(messages.decode_request(body))
    assert got == sent
    assert frames.waiting == 0


def test_a_frame_that_says_it_is_large_is_refused_before_it_comes() -> None:
    frames = Frames(100)
    frames.feed(b"\x00\x00\x00\x65")
    with pytest.raises(PeerMisbehaved, match="101 bytes"):
        frames.next()


def test_topic_keys() -> None:
    """The keys of the specification: SHA-256 of `orchd/topic/` and the name, on the DHT as a multihash."""
    assert topic_key("a").hex() == "8bcc6c095ffceee65a12fcbb1b961f879e57440124e2b9a73bdae98d820c5a9f"
    assert provider_key("a") == b"\x12\x20" + topic_key("a")
    assert topic_key("a") != topic_key("b")
    with pytest.raises(TopicInvalid):
        topic_key("")


def test_raw_bytes_between_frames() -> None:
    frames = Frames(messages.REPLY_LIMIT)
    frames.feed(messages.encode(Range(length=5)) + b"hel")
    assert messages.decode_reply(frames.next() or b"") == Range(length=5)
    assert frames.take(5) == b"hel"
    frames.feed(b"lo" + messages.encode(messages.Done()))
    assert frames.take(2) == b"lo"
    assert messages.decode_reply(frames.next() or b"") == messages.Done()


# ---- when to announce and look up ----------------------------------------------------------------------------------


def rounds() -> Rounds:
    return Rounds(600.0, 60.0, random.Random(0))


def test_a_joined_topic_is_due_at_once_then_at_intervals() -> None:
    plan = rounds()
    assert plan.next_at() == float("inf")
    plan.joined("t", 100.0)
    assert plan.to_announce(100.0) == ["t"]
    assert plan.to_announce(639.0) == []
    assert plan.to_announce(701.0) == ["t"]


def test_lookups_slow_down() -> None:
    plan, now, times = rounds(), 0.0, []
    plan.joined("t", now)
    for _ in range(12):
        assert plan.to_look_up(now) == ["t"]
        times.append(now)
        plan.to_announce(now)
        now = plan._due["t"].lookup_at
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] < 1.2
    assert 50 < pauses[-1] < 70


def test_a_new_peer_in_a_small_network_gets_our_records() -> None:
    plan = rounds()
    plan.joined("t", 0.0)
    plan.to_announce(0.0), plan.to_look_up(0.0)
    plan.new_peer(10.0, network_size=3)
    assert plan.to_announce(10.0) == ["t"]
    plan.new_peer(10.5, network_size=4)  # a crowd arriving does not make us announce for each
    assert plan.to_announce(10.5) == []
    assert plan.to_announce(12.0) == ["t"]
    plan.new_peer(50.0, network_size=21)
    assert plan.to_announce(50.0) == []


def test_an_announcement_that_nobody_took_is_due_again() -> None:
    plan = rounds()
    plan.joined("t", 0.0)
    plan.to_announce(0.0), plan.to_look_up(0.0)
    plan.retry_announce("t", 0.0)
    assert plan.to_announce(2.0) == ["t"]
    plan.left("t")
    plan.retry_announce("t", 2.0)
    assert plan.next_at() == float("inf")


def test_many_topics_are_announced_no_faster_than_servers_take_them() -> None:
    plan = rounds()
    for number in range(20):
        plan.joined(f"t{number}", 0.0)
    assert len(plan.to_announce(0.0)) == ANNOUNCE_AT_ONCE
    assert plan.to_announce(10.0) == []
    assert len(plan.to_announce(11.5)) == ANNOUNCE_AT_ONCE
    assert len(plan.to_announce(23.0)) == 4
