"""An invitation is a secret: it need not stand on the command line."""

from __future__ import annotations

import io

import pytest

from orchd.cli.nouns import adapter, topic
from orchd.cli.nouns.net import human_connected, human_status
from orchd.cli.run import parser


def test_an_invitation_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("orchd-topic-1.AAAA\nmore\n"))
    assert parser("topic").parse_args(["join", "-"]).topic == "orchd-topic-1.AAAA"
    assert parser("topic").parse_args(["join", "our-group"]).topic == "our-group"


def test_private_topics_are_called_by_their_label() -> None:
    left = topic.human_leave({"topic": "private/us/72ug", "peers": 0, "invitation": "orchd-topic-1.AAAA"})
    assert left.startswith("left private/us; `orchctl undo private/us` joins it again.")
    assert left.endswith("\norchd-topic-1.AAAA")
    assert topic.human_leave({"topic": "ours", "peers": 0, "invitation": ""}) == "left ours"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((3, 1), "announced x on ours (3 connected now), private/us (1 connected now)"),
        ((0, 0), "announced x on ours, private/us (nobody else is there yet; who joins later hears of it)"),
    ],
)
def test_each_topic_that_was_published_under_has_its_own_count(counts: tuple[int, int], said: str) -> None:
    topics = ("ours", "private/us/72ug")
    under = [{"topic": name, "members": count} for name, count in zip(topics, counts, strict=True)]
    shown = {"adapter": {"name": "x"}, "topics": topics, "under": under, "members": max(counts)}
    measured = shown | {"forgot": {"above": False}}
    assert adapter.human_published(measured) == said
    assert adapter.human_published(shown).startswith(f"{said}\nits manifest does not say what it unlearnt")


def test_an_address_that_was_not_tried_is_not_said_to_work() -> None:
    assert human_connected({"peer": "12D3", "already": ""}) == "connected to 12D3"
    told = human_connected({"peer": "12D3", "already": "/ip4/192.0.2.7/tcp/4001"})
    assert told == "12D3 is connected already, by /ip4/192.0.2.7/tcp/4001; this address was not tried"


def test_a_list_says_which_topics_are_announced() -> None:
    row = {"label": "ours", "kind": "public", "members": 1, "adapters": 0, "announced_ms": None}
    told = topic.human_list({"topics": [row, row | {"label": "lan/flat", "kind": "lan"}]}).splitlines()
    assert told[1].endswith("not yet")
    assert told[2].endswith("never: this network only")


def test_one_member_is_one() -> None:
    status = dict.fromkeys(("error", "restarts"), None) | {"state": "running", "peer_id": "12D3", "addresses": []}
    counts = {"peers": 1, "members": 1, "dht_peers": 1, "bans": []}
    shown = human_status(status | counts | {"topics": [{"name": "a", "members": 1}, {"name": "b", "members": 2}]})
    assert "a (1 member), b (2 members)" in shown
