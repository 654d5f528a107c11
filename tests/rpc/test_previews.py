"""--dry-run of what concerns the network: everything is checked, nothing is done, and it is said what would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchd.cli.nouns import topic as words
from orchd.cli.nouns.adapter import human_published
from orchd.cli.nouns.net import human_status
from orchd.cli.run import load
from orchd.errors import NetworkDown, OrchdError, ParamsInvalid, TopicInvalid
from orchd.node import Node
from orchd.records import text_id
from orchd.records.ids import ADAPTER
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish
from orchd.rpc.methods_network import (
    Address,
    BanWhom,
    TopicNamed,
    net_ban,
    net_connect,
    net_status,
    topic_invite,
    topic_join,
    topic_leave,
)
from orchd.rpc.table import NoParams
from tests.net.support import cluster
from tests.rpc.test_methods_network import node_of


def shown(noun: str, verb: str, result: Any) -> str:
    command = next(one for one in load(noun) if one.verb == verb)
    return command.human({name: getattr(result, name) for name in result.__struct_fields__})


def names(node: Node) -> list[str]:
    return [topic.name for topic in node.network.topics()]


async def test_what_can_not_be_done_is_refused_and_nothing_else_is_done(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        node, manifest = node_of(a), a.make()
        for subject in ("", "foo", "127.0.0.0/8", "127.0.0.1", a.network.peer_id):
            with pytest.raises(OrchdError):
                await net_ban(node, BanWhom(subject=subject, preview=True))
        for wrong in ("a\nb", "x" * 61, "a/b"):
            with pytest.raises(TopicInvalid):
                await topic_invite(node, TopicNamed(topic=wrong, preview=True))
        with pytest.raises(ParamsInvalid):
            await topic_leave(node, TopicNamed(topic="nosuch", preview=True))
        for wrong in ("private/x", "LAN/x"):
            with pytest.raises(TopicInvalid):
                await topic_join(node, TopicNamed(topic=wrong, preview=True))
            with pytest.raises(TopicInvalid):
                await adapter_publish(node, AdapterPublish(adapter=manifest.id, topics=["ours", wrong], preview=True))
        banned = await net_ban(node, BanWhom(subject="192.0.2.7", hours=1, reason="r", preview=True))
        assert shown("net", "ban", banned).startswith("would ban 192.0.2.7, until ")
        assert shown("topic", "join", await topic_join(node, TopicNamed(topic="ours", preview=True))).startswith(
            "would join ours"
        )
        invited = await topic_invite(node, TopicNamed(topic="family", preview=True))
        assert words.human_invite({"topic": invited.topic, "new": invited.new, "preview": True, "invitation": ""}) == (
            "would make private/family"
        )
        assert invited.invitation == ""
        published = await adapter_publish(node, AdapterPublish(adapter=manifest.id, topics=["ours"], preview=True))
        assert (published.joins, published.announcements) == (["ours"], [])
        told = {"adapter": {"name": "a-0"}, "topics": ["ours"], "under": [], "members": 0, "joins": ["ours"]}
        said = human_published(told | {"preview": True})
        assert "; would join ours for it\nits manifest does not say what it unlearnt" in said
        assert (names(node), a.network.bans(), a.registry.announcements()) == ([], [], [])
        await topic_invite(node, TopicNamed(topic="family"))
        left = await topic_leave(node, TopicNamed(topic="private/family", preview=True))
        assert shown("topic", "leave", left).startswith("would leave private/family; `orchctl undo` or")
        assert len(names(node)) == 1, "it was not left"


async def test_a_network_that_is_off_says_so_everywhere(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a", enabled=False)
        node = node_of(a, enabled=False)
        status = await net_status(node, NoParams())
        plain = {name: getattr(status, name) for name in status.__struct_fields__} | {"topics": []}
        assert "off: net.enabled is false" in human_status(plain)
        address = f"/ip4/192.0.2.7/tcp/4001/p2p/{made.make('b').network.peer_id}"
        with pytest.raises(NetworkDown, match=r"net\.enabled is false") as down:
            await net_connect(node, Address(address=address))
        assert "restarted" not in down.value.hint
        with pytest.raises(NetworkDown, match=r"net\.enabled is false"):
            await a.network.fetch(text_id(ADAPTER, bytes(32)))
        joined = await topic_join(node, TopicNamed(topic="ours"))
        assert "net.enabled is false" in shown("topic", "join", joined)
        assert "net connect" not in shown("topic", "join", joined)
        assert (await topic_invite(node, TopicNamed(topic="family"))).addresses == []


async def test_a_lan_topic_without_mdns(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        joined = await topic_join(node_of(a, mdns=False), TopicNamed(topic="lan/flat"))
        assert "net.mdns is false" in shown("topic", "join", joined)
        assert (await topic_join(node_of(a, mdns=True), TopicNamed(topic="lan/flat"))).note == ""
        assert (await topic_join(node_of(a, mdns=False), TopicNamed(topic="ours"))).note == ""


class Said:
    """A context that keeps what is said."""

    def __init__(self, addresses: list[str]) -> None:
        self.result = {"topic": "private/us", "invitation": "LINE", "addresses": addresses, "new": 1, "preview": 0}
        self.out, self.notes = list[str](), list[str]()

    def call(self, method: str, **params: Any) -> Any:
        return self.result

    def show(self, result: Any, human: Any) -> None:
        self.out.append(human(result))

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("addresses", [[], ["/ip4/192.0.2.7/tcp/4001"]])
def test_an_invitation_without_address_says_so_beside_it(addresses: list[str]) -> None:
    said = Said(addresses)
    words.invite(said, None, {"topic": "us"})  # type: ignore[arg-type]
    assert said.out == ["LINE"], "it can be piped"
    assert bool(said.notes) == (not addresses)
