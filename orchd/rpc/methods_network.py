"""Topics and peers."""

from __future__ import annotations

from orchd.errors import ParamsInvalid
from orchd.net import NetworkStatus, PeerStatus
from orchd.node import Node, in_thread
from orchd.rpc.table import NoParams, Params, Result, method

TOPIC_LIMIT = 120  # characters


class TopicNamed(Params, frozen=True, kw_only=True):
    topic: str


class TopicRow(Result, frozen=True, kw_only=True):
    """`members` are the peers found under the topic, `adapters` how many were announced."""

    name: str
    members: int
    adapters: int
    announced_ms: int | None


class Topics(Result, frozen=True, kw_only=True):
    topics: list[TopicRow]


class TopicChanged(Result, frozen=True, kw_only=True):
    """`peers` are connected now, in this topic or not."""

    topic: str
    joined: bool
    peers: int


def check_topic(topic: str) -> str:
    if not 1 <= len(topic) <= TOPIC_LIMIT or topic != topic.strip() or not topic.isprintable():
        raise ParamsInvalid(f"{topic[:80]!r} is no topic: 1 to {TOPIC_LIMIT} printable characters", field="topic")
    return topic


@method("topic.join", TopicNamed, TopicChanged, "Announce this node under a topic and look for others there.")
async def topic_join(node: Node, p: TopicNamed) -> TopicChanged:
    topic = check_topic(p.topic)
    await in_thread(node.topics.add, topic)
    await node.network.join(topic)
    return TopicChanged(topic=topic, joined=True, peers=len(node.network.peers()))


@method("topic.leave", TopicNamed, TopicChanged, "Leave a topic.")
async def topic_leave(node: Node, p: TopicNamed) -> TopicChanged:
    if p.topic not in await in_thread(node.topics.list):
        hint = "`orchctl topic list` shows the topics that it is in."
        raise ParamsInvalid(f"this node is not in {p.topic[:80]!r}", hint=hint, field="topic")
    await in_thread(node.topics.remove, p.topic)
    await node.network.leave(p.topic)
    return TopicChanged(topic=p.topic, joined=False, peers=len(node.network.peers()))


@method("topic.list", NoParams, Topics, "The topics that this node is in.")
async def topic_list(node: Node, _: NoParams) -> Topics:
    rows = []
    for topic in node.network.topics():
        announced = await in_thread(node.registry.announcements, topic.name)
        rows.append(
            TopicRow(
                name=topic.name,
                members=topic.members,
                adapters=len({row.adapter for row in announced}),
                announced_ms=topic.announced_at,
            )
        )
    return Topics(topics=rows)


@method(
    "net.status", NoParams, NetworkStatus, "The network: its state, addresses, topics, and why it is down if it is."
)
async def net_status(node: Node, _: NoParams) -> NetworkStatus:
    return node.network.status()


class Peers(Result, frozen=True, kw_only=True):
    peers: list[PeerStatus]


@method("net.peers", NoParams, Peers, "The connected peers and the topics shared with them.")
async def net_peers(node: Node, _: NoParams) -> Peers:
    return Peers(peers=node.network.peers())


class Address(Params, frozen=True, kw_only=True):
    """`address` reads like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo..."""

    address: str


class Connected(Result, frozen=True, kw_only=True):
    peer: str


@method("net.connect", Address, Connected, "Connect to a peer by its address.")
async def net_connect(node: Node, p: Address) -> Connected:
    return Connected(peer=await node.network.connect(p.address))
