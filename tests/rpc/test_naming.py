"""What a text stands for where something is to be fetched or left, and what is said of one that stands for nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchd.config import Config
from orchd.errors import AdapterUnknown, AddressInvalid, AmbiguousId, OrchdError, ParamsInvalid, SubjectInvalid
from orchd.net.host import listen_address
from orchd.node import Node
from orchd.records import sign, text_id
from orchd.records.announcement import Announcement
from orchd.records.ids import ADAPTER
from orchd.registry import versions
from orchd.registry.own import Topics
from orchd.rpc.deciding import subject_of
from orchd.rpc.methods_adapters import _resolve_offered
from orchd.rpc.methods_network import TopicNamed, topic_join, topic_leave
from tests.helpers import ALICE, NOW_MS, Lab

OFFERED = text_id(ADAPTER, bytes([7] * 32))
TWIN = text_id(ADAPTER, bytes([7] * 31 + [8]))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    lab = Lab(tmp_path)
    for number, last in enumerate((7, 8)):
        made = Announcement(
            author=ALICE.public_key,
            manifest=bytes([7] * 31 + [last]),
            base=bytes(32),
            topics=("ours",),
            seq=number + 1,
            created_ms=NOW_MS,
            size=1,
        )
        lab.registry.record_announcement(sign(made, ALICE), "peer")
    return cast(Node, SimpleNamespace(registry=lab.registry))


def test_an_announced_adapter_is_meant_by_the_beginning_of_its_id(node: Node) -> None:
    assert _resolve_offered(node, OFFERED) == OFFERED
    unheard = text_id(ADAPTER, bytes(32))
    assert _resolve_offered(node, unheard) == unheard, "a peer may have what was announced before this node came"
    with pytest.raises(AmbiguousId, match=TWIN):
        _resolve_offered(node, OFFERED[:12])


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("my-style", AdapterUnknown, "no adapter 'my-style' is here, and what peers announce has no names"),
        ("adp_zzzzzzzz", AdapterUnknown, "nobody has announced one that begins so"),
        ("adp_bk7", AdapterUnknown, "'adp_bk7' is too short: 4 characters after `adp_` are the least"),
        (OFFERED + "x", ParamsInvalid, "is no id"),
    ],
)
def test_what_can_not_be_fetched_is_said_to_be_so(node: Node, text: str, error: type[OrchdError], told: str) -> None:
    with pytest.raises(error) as refused:
        _resolve_offered(node, text)
    assert told in refused.value.message


def test_how_much_of_a_key_is_enough_is_told(node: Node) -> None:
    with pytest.raises(SubjectInvalid, match="8 characters after `key_` are the least"):
        subject_of(node, ALICE.author[:10])
    with pytest.raises(ParamsInvalid, match="4 characters after `key_` are the least"):
        versions.named(node.registry.index, node.registry.people.view(), "style", "key_q5z")


class FakeNetwork:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def join(self, name: str, secret: bytes | None = None) -> None:
        self.told.append(f"join {name}")

    def topics(self) -> list[Any]:
        return []

    async def leave(self, name: str) -> None:
        self.told.append(f"leave {name}")

    def peers(self) -> list[Any]:
        return []


async def test_a_topic_that_was_not_joined_can_not_be_left(tmp_path: Path) -> None:
    network = FakeNetwork()
    topics = Topics(Lab(tmp_path).registry.local, lambda: NOW_MS)
    node = cast(Node, SimpleNamespace(network=network, topics=topics, config=Config()))
    with pytest.raises(ParamsInvalid, match="this node is not in 'nosuch'") as refused:
        await topic_leave(node, TopicNamed(topic="nosuch"))
    assert "orchctl topic list" in refused.value.hint
    assert (await topic_join(node, TopicNamed(topic="ours"))).peers == 0
    assert not (await topic_leave(node, TopicNamed(topic="ours"))).joined
    assert network.told == ["join ours", "leave ours"]


@pytest.mark.parametrize("text", ["/ip4/127.0.0.1/tcp/22222222", "/ip4/1.2.3.4/udp/5", "port 4001"])
def test_an_address_to_listen_on_has_no_peer_in_it(text: str) -> None:
    with pytest.raises(AddressInvalid) as refused:
        listen_address(text)
    assert (refused.value.field, "/ip4/0.0.0.0/tcp/4001: no /p2p/" in refused.value.hint) == ("net.listen", True)
