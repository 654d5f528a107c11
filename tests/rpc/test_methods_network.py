"""Topics and peers through their methods, on real networks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from orchd.cli.nouns.topic import human_leave
from orchd.config import Config, NetConfig
from orchd.errors import (
    AddressInvalid,
    AmbiguousId,
    InviteInvalid,
    NotBanned,
    NothingToUndo,
    ParamsInvalid,
    TopicInvalid,
)
from orchd.identity import Identity
from orchd.net.host import peer_id_of
from orchd.net.policy.names import INVITE, parse_invitation
from orchd.node import Node
from orchd.records import Announcement, verify
from orchd.registry.own import Topics
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish
from orchd.rpc.methods_network import (
    Address,
    BanWhom,
    StatsHow,
    TopicNamed,
    UnbanWhom,
    join,
    net_ban,
    net_connect,
    net_doctor,
    net_peers,
    net_stats,
    net_status,
    net_unban,
    topic_invite,
    topic_join,
    topic_leave,
    topic_list,
)
from orchd.rpc.methods_registry import RegistryUndo, registry_undo
from orchd.rpc.table import NoParams
from tests.net.support import Cluster, Peer, cluster, now_ms, until


def node_of(peer: Peer, **settings: bool) -> Node:
    """The parts of a node that these methods use, and its two steps at the start."""
    made = SimpleNamespace(
        network=peer.network,
        registry=peer.registry,
        identity=peer.identity,
        clock=now_ms,
        topics=Topics(peer.registry.local, now_ms),
        random_bytes=os.urandom,
        datasets=SimpleNamespace(list=list),
        deployments=SimpleNamespace(list=list),
        config=Config(net=NetConfig(**settings)),  # type: ignore[arg-type]
    )
    node = cast(Node, made)
    made.join_topics = lambda: Node.join_topics(node)
    made.join_base_topics = lambda: Node.join_base_topics(node)
    return node


async def two(made: Cluster) -> tuple[Peer, Peer]:
    """Nodes that do not know each other."""
    return await made.start("a", bootstrap=()), await made.start("b", bootstrap=())


async def test_one_line_is_all_that_a_new_member_needs(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await two(made)
        invited = await topic_invite(node_of(a), TopicNamed(topic="family"))
        assert (invited.new, invited.topic.startswith("private/family/")) == (True, True)
        assert invited.addresses == a.network.addresses()
        again = await topic_invite(node_of(a), TopicNamed(topic="private/family"))
        assert (again.new, again.invitation) == (False, invited.invitation)
        joined = await topic_join(node_of(b), TopicNamed(topic=invited.invitation))
        assert joined.topic == invited.topic
        await until(lambda: b.network.topics()[0].members == 1, "met by the addresses of the invitation")
        (row,) = (await topic_list(node_of(a), NoParams())).topics
        assert (row.label, row.kind, row.name) == ("private/family", "private", invited.topic)
        passed_on = await topic_invite(node_of(b), TopicNamed(topic="family"))
        assert parse_invitation(passed_on.invitation).secret == parse_invitation(invited.invitation).secret


async def test_membership_lasts_over_a_restart_until_the_topic_is_left(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        node = node_of(a)
        invited = await topic_invite(node, TopicNamed(topic="family"))
        await topic_join(node, TopicNamed(topic="open"))
        a.network._context.topics.clear()  # as after a start
        await node.join_topics()
        assert [topic.name for topic in a.network.topics()] == ["open", invited.topic]
        left = await topic_leave(node, TopicNamed(topic="private/family"))
        assert (left.topic, left.joined) == (invited.topic, False)
        assert node.topics.list() == ["open"]
        assert node.topics.secret(invited.topic) is None
        assert [data["topic"] for data in a.events.of("topic.left")] == [invited.topic]


async def test_a_topic_that_can_not_be_joined_again_does_not_stop_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        node = node_of(a)
        for name in ("private/lost/abc", "open"):
            node.topics.add(name)
        await node.join_topics()
        assert [topic.name for topic in a.network.topics()] == ["open"]
        assert "private/lost/abc" in caplog.text


async def test_words_that_can_not_be(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        node = node_of(a)
        await topic_join(node, TopicNamed(topic="open"))
        for name in ("open", "lan/flat", "base/x"):
            with pytest.raises(TopicInvalid, match="not private"):
                await topic_invite(node, TopicNamed(topic=name))
        with pytest.raises(TopicInvalid):
            await topic_invite(node, TopicNamed(topic="private/a/b"))
        with pytest.raises(TopicInvalid, match="name is not enough"):
            await topic_join(node, TopicNamed(topic="private/family/abc"))
        with pytest.raises(InviteInvalid):
            await topic_join(node, TopicNamed(topic=INVITE + "AAAA"))
        assert node.topics.list() == ["open"]
        for number in range(2):
            invite = await topic_invite(node_of(made.make(f"other{number}")), TopicNamed(topic="family"))
            await topic_join(node, TopicNamed(topic=invite.invitation))
        with pytest.raises(AmbiguousId, match="2 private topics"):
            await topic_leave(node, TopicNamed(topic="private/family"))


async def test_a_private_topic_s_label_alone_does_not_make_a_public_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        node = node_of(a)
        family = (await topic_invite(node, TopicNamed(topic="family"))).topic
        manifest = a.make()
        for name in ("family", "Family"):
            with pytest.raises(TopicInvalid, match="'private/family' is here"):
                await adapter_publish(node, AdapterPublish(adapter=manifest.id, topics=[name]))
            with pytest.raises(TopicInvalid, match="'private/family' is here"):
                await topic_join(node, TopicNamed(topic=name))
        a.network._context.topics.clear()  # as where the network is off
        with pytest.raises(TopicInvalid, match="'private/family' is here"):
            await topic_join(node, TopicNamed(topic="family"))
        for name in ("Private/family", "LAN/flat"):
            with pytest.raises(TopicInvalid, match="almost like"):
                await adapter_publish(node, AdapterPublish(adapter=manifest.id, topics=[name]))
        assert node.topics.list() == [family]


async def test_a_piece_of_an_invitation_is_not_joined(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        node = node_of(made.make("a"))
        line = (await topic_invite(node_of(made.make("b")), TopicNamed(topic="family"))).invitation
        for wrong in (line[1:], line.capitalize(), line[len(line) // 2 :]):
            with pytest.raises(InviteInvalid):
                await topic_join(node, TopicNamed(topic=wrong))
        assert node.topics.list() == []
        node.topics.add(line[1:])  # as an earlier orchd did
        await node.join_topics()
        await topic_leave(node, TopicNamed(topic=line[1:]))
        assert node.topics.list() == []


async def test_a_refused_name_is_not_kept_and_one_form_of_it_is_for_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apart, whole = "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    async with cluster(tmp_path) as made:
        a = made.make("a")
        node = node_of(a)
        await topic_join(node, TopicNamed(topic=apart))
        assert node.topics.list() == [whole]
        with pytest.raises(TopicInvalid):
            await join(node, apart)
        assert node.topics.list() == [whole]
        node.topics.add(apart)  # as an earlier orchd did
        await node.join_topics()
        assert "is forgotten" in caplog.text
        assert node.topics.list() == [whole]
        assert (await topic_leave(node, TopicNamed(topic=apart))).topic == whole


async def test_who_leaves_a_private_topic_can_come_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        node = node_of(await made.start("a", bootstrap=()))
        invited = await topic_invite(node, TopicNamed(topic="family"))
        left = await topic_leave(node, TopicNamed(topic="private/family"))
        assert left.invitation == invited.invitation
        assert (await topic_join(node, TopicNamed(topic=left.invitation))).topic == invited.topic
        await topic_join(node, TopicNamed(topic="open"))
        assert (await topic_leave(node, TopicNamed(topic="open"))).invitation == ""


async def test_leaving_and_joining_can_be_undone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await two(made)
        node = node_of(a)
        invited = await topic_invite(node, TopicNamed(topic="family"))
        await topic_join(node_of(b), TopicNamed(topic=invited.invitation))
        await topic_join(node, TopicNamed(topic="open"))
        left = await topic_leave(node, TopicNamed(topic="private/family"))
        assert "`orchctl undo private/family` joins it again" in human_leave(msgspec.to_builtins(left))
        shown = await registry_undo(node, RegistryUndo(what="private/family", preview=True))
        assert (shown.act, shown.about, names(a)) == ("topic.leave", ["private/family"], ["open"])
        undone = await registry_undo(node, RegistryUndo(what="private/family"))
        assert (undone.keys, undone.about) == ((invited.topic,), ["private/family"])
        assert names(a) == ["open", invited.topic]
        assert node.topics.secret(invited.topic) == parse_invitation(invited.invitation).secret
        await until(lambda: a.network.topics()[1].members == 1, "it proves the secret again")
        undone = await registry_undo(node, RegistryUndo())
        assert (undone.act, names(a), node.topics.list()) == ("topic.join", [invited.topic], [invited.topic])
        with pytest.raises(NothingToUndo):
            await registry_undo(node, RegistryUndo(what="private/fam"))


def names(peer: Peer) -> list[str]:
    return [topic.name for topic in peer.network.topics()]


async def test_a_peer_that_is_connected_already_is_said_to_be(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await two(made)
        address = b.network.addresses()[0]
        first = await net_connect(node_of(a), Address(address=address))
        assert (first.peer, first.already) == (b.network.peer_id, "")
        again = await net_connect(node_of(a), Address(address=f"/ip4/127.0.0.1/tcp/1/p2p/{b.network.peer_id}"))
        assert (again.peer, again.already) == (b.network.peer_id, address.partition("/p2p/")[0])


async def test_members_are_counted_under_each_topic_and_once_over_all(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await two(made)
        for peer, topic in ((a, "both"), (b, "both"), (a, "mine")):
            await topic_join(node_of(peer), TopicNamed(topic=topic))
        await topic_join(node_of(a), TopicNamed(topic="both-too"))
        await topic_join(node_of(b), TopicNamed(topic="both-too"))
        await a.network.connect(b.network.addresses()[0])
        await until(lambda: a.network.members(["both", "both-too"]) == 1, "met")
        manifest = a.make()
        topics = ["both", "both-too", "mine"]
        published = await adapter_publish(node_of(a), AdapterPublish(adapter=manifest.id, topics=topics))
        assert published.members == 1
        assert [(one.topic, one.members) for one in published.under] == [("both", 1), ("both-too", 1), ("mine", 0)]


async def test_the_doctor_does_not_count_this_node_s_own_address(tmp_path: Path) -> None:
    def own(name: str) -> str:
        key = Identity.from_seed(name.encode().ljust(32, b"\0")).public_key
        return f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_of(key)}"

    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        alone = await made.start("b", bootstrap=(own("b"),))
        both = await made.start("c", bootstrap=(own("c"), a.network.addresses()[0]))
        assert (await findings(alone))["peers of the settings"][:2] == ("warning", "none but this node itself")
        assert (await findings(both))["peers of the settings"][:2] == ("ok", "1 of 1 reached")


async def test_closed_topics_are_announced_each_alone(tmp_path: Path) -> None:
    """Members of one must not read the name of another in a record."""
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        node = node_of(a)
        family = (await topic_invite(node, TopicNamed(topic="family"))).topic
        manifest = a.make()
        topics = ["open", "private/family", "lan/flat", "also-open"]
        published = await adapter_publish(node, AdapterPublish(adapter=manifest.id, topics=topics))
        assert published.topics == ["open", family, "lan/flat", "also-open"]
        told = a.registry.news.after(published.topics, 0, "", 10)
        named = {verify(known.envelope, Announcement).record.topics for known in told}
        assert named == {("open", "also-open"), (family,), ("lan/flat",)}
        assert len(published.announcements) == 3
        assert sorted(node.topics.list()) == sorted(published.topics)


@pytest.mark.parametrize("share", [False, True])
async def test_topics_of_bases_only_if_the_user_says_so(tmp_path: Path, share: bool) -> None:
    async with cluster(tmp_path) as made:
        a = made.make("a")
        await node_of(a, share_bases=share).join_topics()
        (base,) = a.registry.bases()
        assert [topic.name for topic in a.network.topics()] == ([f"base/{base.fingerprint}"] if share else [])
        assert NetConfig().share_bases is False


async def test_bans_by_their_methods(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a")
        node = node_of(a)
        ban = await net_ban(node, BanWhom(subject="192.0.2.7", hours=2, reason="noise"))
        assert ban.until_ms is not None
        assert abs(ban.until_ms - now_ms() - 7_200_000) < 60_000
        assert [one.subject for one in (await net_status(node, NoParams())).bans] == ["192.0.2.7"]
        assert (await net_unban(node, UnbanWhom(subject="192.0.2.7"))).subject == "192.0.2.7"
        with pytest.raises(NotBanned):
            await net_unban(node, UnbanWhom(subject="192.0.2.7"))
        for hours in (0.0, -1.0, 1e9, float("nan")):
            with pytest.raises(ParamsInvalid):
                await net_ban(node, BanWhom(subject="192.0.2.7", hours=hours))
        with pytest.raises(ParamsInvalid):
            await net_ban(node, BanWhom(subject="192.0.2.7", reason="x" * 257))
        with pytest.raises(AddressInvalid):
            await net_ban(node, BanWhom(subject="nobody"))


async def test_figures_by_their_methods(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await two(made)
        await a.network.connect(b.network.addresses()[0])
        shown = await net_stats(node_of(a), StatsHow())
        assert (shown.text, shown.stats.gauges["peers"]) == (None, 1)
        assert "orchd_net_peers 1\n" in str((await net_stats(node_of(a), StatsHow(prometheus=True))).text)
        (peer,) = (await net_peers(node_of(a), NoParams())).peers
        assert (peer.peer, peer.inbound, peer.score) == (b.network.peer_id, False, 0)
        assert peer.bytes_out > 0


async def findings(peer: Peer) -> dict[str, tuple[str, str, str]]:
    checks = (await net_doctor(node_of(peer), NoParams())).checks
    return {check.name: (str(check.finding), check.found, check.next) for check in checks}


async def test_the_doctor_of_a_lonely_node(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        found = await findings(a)
        assert {name: finding for name, (finding, _, _) in found.items()} == {
            "listening": "warning",
            "peers of the settings": "off",
            "remembered peers": "off",
            "local network": "off",
            "DHT": "failed",
            "topics": "off",
            "reachable from outside": "unknown",
            "through relays": "unknown",
            "hole punching": "unknown",
            "relaying for others": "ok",
        }
        assert all(todo for finding, _, todo in found.values() if finding in ("warning", "failed", "unknown"))


async def test_the_doctor_tries_every_way(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a = await made.start("a", bootstrap=())
        dead = await made.start("dead", bootstrap=())
        gone = dead.network.addresses()[0]
        made.stop(dead)
        await until(lambda: made.stopped(dead))
        b = await made.start("b", bootstrap=(a.network.addresses()[0], gone))
        await b.network.join("open")
        await b.network.join("lan/flat")
        await until(lambda: b.network.topics()[1].announced_at, "announced")
        await until(lambda: b.network.stats().gauges["remembered_peers"], "remembered")
        found = await findings(b)
        finding, what, todo = found["peers of the settings"]
        assert (finding, what.startswith("1 of 2 reached; ")) == ("warning", True)
        assert dead.network.peer_id in what
        assert todo
        assert found["remembered peers"][0] == "ok"
        assert found["DHT"][0] == "ok"
        assert found["topics"][:2] == ("ok", "1 of 1 announced on the DHT; members connected: 0")
        made.stop(a)
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        found = await findings(b)
        assert found["peers of the settings"][0] == "failed"
        assert found["remembered peers"][0] == "warning"


async def test_the_doctor_of_a_network_that_is_off_or_down(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        off = await findings(await made.start("off", enabled=False))
        assert off["network"][0] == "off"
        down = made.make("down")
        down.network._error = "ListenFailed: port 1"
        assert (await findings(down))["network"][:2] == ("failed", "ListenFailed: port 1")
