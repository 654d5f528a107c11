"""Topics and peers."""

from __future__ import annotations

from orchd.errors import AmbiguousId, ParamsInvalid, TopicInvalid
from orchd.net import BanStatus, Check, Finding, NetworkStats, NetworkStatus, PeerStatus, prometheus
from orchd.net.messages import topic_key
from orchd.net.policy.names import (
    INVITE,
    PRIVATE,
    SECRET_SIZE,
    Invite,
    Kind,
    check_secret,
    invitation,
    kind_of,
    label_of,
    parse_invitation,
    private_name,
    spelled,
)
from orchd.node import Node, in_thread
from orchd.rpc.table import NoParams, Params, Result, method

TOPIC_LIMIT, REASON_LIMIT = 120, 256  # characters
MOST_HOURS = 87_600


class TopicNamed(Params, frozen=True, kw_only=True):
    """`preview` checks everything, says what would be done, and does nothing."""

    topic: str
    preview: bool = False


class TopicRow(Result, frozen=True, kw_only=True):
    """`members` are the peers found under the topic, `adapters` how many were announced. `label` is what to call it in
    commands: a private one's name without its tag."""

    name: str
    label: str
    kind: Kind
    members: int
    adapters: int
    announced_ms: int | None


class Topics(Result, frozen=True, kw_only=True):
    topics: list[TopicRow]


class TopicChanged(Result, frozen=True, kw_only=True):
    """`peers` are connected now, in this topic or not. `invitation` joins again a private topic that was left; `note`
    says why nobody can be found under one that was joined."""

    topic: str
    joined: bool
    peers: int
    invitation: str = ""
    note: str = ""
    preview: bool = False


def check_topic(topic: str) -> str:
    if not 1 <= len(topic) <= TOPIC_LIMIT or topic != topic.strip() or not topic.isprintable():
        raise ParamsInvalid(f"{topic[:80]!r} is no topic: 1 to {TOPIC_LIMIT} printable characters", field="topic")
    return topic


def full_name(node: Node, text: str) -> str:
    """A private topic may be called `private/LABEL`. Raises `AmbiguousId`, and as `spelled`."""
    text = spelled(text)
    if not text.startswith(PRIVATE):
        return text
    joined = [topic.name for topic in node.network.topics() if topic.kind is Kind.PRIVATE]
    found = [name for name in joined if f"{PRIVATE}{label_of(name)}" == text]
    if len(found) > 1:
        raise AmbiguousId(f"{text[:80]!r} fits {len(found)} private topics", field="topic")
    return found[0] if found else text


@method(
    "topic.join",
    TopicNamed,
    TopicChanged,
    "Announce this node under a topic and look for others there; an invitation joins a private one.",
)
async def topic_join(node: Node, p: TopicNamed) -> TopicChanged:
    secret: bytes | None
    addresses: tuple[str, ...] = ()
    if p.topic.startswith(INVITE):
        invite = parse_invitation(p.topic)
        topic, secret, addresses = invite.name, invite.secret, invite.addresses
    else:
        topic = check_topic(full_name(node, p.topic))
        secret = await in_thread(node.topics.secret, topic)
    await check_join(node, topic, secret)
    if not p.preview:
        await join(node, topic, secret)
        if addresses:
            await node.network.remember(addresses)
    peers = len(node.network.peers())
    return TopicChanged(topic=topic, joined=True, peers=peers, note=_alone(node, topic), preview=p.preview)


def _alone(node: Node, topic: str) -> str:
    """Which setting keeps others from being found under a topic, if one does."""
    if not node.config.net.enabled:
        return "the network is off (net.enabled is false), so nobody is found until that is changed"
    if kind_of(topic) is Kind.LAN and not node.config.net.mdns:
        return "net.mdns is false, so nobody on this network is found, only who is connected by address"
    return ""


async def check_join(node: Node, name: str, secret: bytes | None) -> None:
    """Raises `TopicInvalid` for what can't be joined."""
    topic_key(name)
    check_secret(name, secret)
    _check_not_meant(name, await in_thread(node.topics.list))


async def join(node: Node, name: str, secret: bytes | None = None) -> None:
    """Now and at every start; a disk that is full changes neither. Raises `TopicInvalid`, `DiskFull`."""
    await check_join(node, name, secret)
    await in_thread(node.topics.add, name, secret)
    await node.network.join(name, secret)


async def follow(node: Node, name: str) -> None:
    """Take part in a topic, or no more, as it is kept: an undo has changed that. Raises `TopicInvalid`."""
    if name in await in_thread(node.topics.list):
        await node.network.join(name, await in_thread(node.topics.secret, name))
    else:
        await node.network.leave(name)


def called(name: str) -> str:
    """A topic as commands take it: a private one's name without its tag."""
    return f"{PRIVATE}{label_of(name)}" if kind_of(name) is Kind.PRIVATE else name


def _check_not_meant(name: str, joined: list[str]) -> None:
    """A private topic's label alone would be the name of a public one. Raises `TopicInvalid`."""
    labels = [label_of(one) for one in joined if kind_of(one) is Kind.PRIVATE]
    if name in joined or kind_of(name) is not Kind.PUBLIC:
        return
    for label in labels:
        if label.casefold() == name.casefold():
            hint = f"Say `{PRIVATE}{label}` for that one; a public topic beside it needs another name."
            raise TopicInvalid(f"{name!r} would be a public topic, and {PRIVATE + label!r} is here", hint=hint)


@method("topic.leave", TopicNamed, TopicChanged, "Leave a topic.")
async def topic_leave(node: Node, p: TopicNamed) -> TopicChanged:
    joined = {row.name for row in node.network.topics()} | set(await in_thread(node.topics.list))
    topic = p.topic if p.topic in joined else full_name(node, p.topic)  # also a name that could not be joined any more
    if topic not in joined:
        hint = "`orchctl topic list` shows the topics that it is in."
        raise ParamsInvalid(f"this node is not in {p.topic[:80]!r}", hint=hint, field="topic")
    secret = await in_thread(node.topics.secret, topic)
    kept = "" if secret is None else invitation(Invite(label_of(topic), secret, node.network.invite_addresses()))
    if not p.preview:
        await in_thread(node.topics.remove, topic)
        await node.network.leave(topic)
    peers = len(node.network.peers())
    return TopicChanged(topic=topic, joined=False, peers=peers, invitation=kept, preview=p.preview)


class Invitation(Result, frozen=True, kw_only=True):
    """Whoever has `invitation` is a member. `new`: the topic was made for it, or with `preview` would be."""

    topic: str
    invitation: str
    addresses: list[str]
    new: bool
    preview: bool = False


@method("topic.invite", TopicNamed, Invitation, "One line with which others join a private topic; makes it if need be.")
async def topic_invite(node: Node, p: TopicNamed) -> Invitation:
    given = spelled(p.topic)
    label = given.removeprefix(PRIVATE)
    name = full_name(node, PRIVATE + label)
    open_ones = {topic.name for topic in node.network.topics() if topic.kind is not Kind.PRIVATE}
    if given in open_ones or kind_of(given) in (Kind.LAN, Kind.BASE):
        hint = f"Others join it with `orchctl topic join {given}`; a private topic needs another name."
        raise TopicInvalid(f"{given[:80]!r} is not private: nobody needs an invitation", hint=hint, field="topic")
    secret = await in_thread(node.topics.secret, name)
    if new := secret is None:
        secret = node.random_bytes(SECRET_SIZE)
        name = private_name(label, secret)
        await check_join(node, name, secret)
        if not p.preview:
            await join(node, name, secret)
    invite = Invite(label_of(name), secret, node.network.invite_addresses())
    if p.preview:
        return Invitation(
            topic=f"{PRIVATE}{label_of(name)}", invitation="", addresses=list(invite.addresses), new=new, preview=True
        )
    return Invitation(topic=name, invitation=invitation(invite), addresses=list(invite.addresses), new=new)


@method("topic.list", NoParams, Topics, "The topics that this node is in.")
async def topic_list(node: Node, _: NoParams) -> Topics:
    rows = []
    for topic in node.network.topics():
        announced = await in_thread(node.registry.announcements, topic.name)
        rows.append(
            TopicRow(
                name=topic.name,
                label=called(topic.name),
                kind=topic.kind,
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
    """`already`: by which address it was connected before, so that the one that was given was not tried."""

    peer: str
    already: str = ""


@method("net.connect", Address, Connected, "Connect to a peer by its address.")
async def net_connect(node: Node, p: Address) -> Connected:
    already = node.network.way_to(p.address)
    return Connected(peer=await node.network.connect(p.address), already=already)


class Checks(Result, frozen=True, kw_only=True):
    """`ok`: no way that should work has failed."""

    ok: bool
    checks: list[Check]


@method("net.doctor", NoParams, Checks, "Try each way to others: what works, what does not, and what to do.")
async def net_doctor(node: Node, _: NoParams) -> Checks:
    checks = await node.network.examine()
    return Checks(ok=all(check.finding is not Finding.FAILED for check in checks), checks=checks)


class BanWhom(Params, frozen=True, kw_only=True):
    """`subject` is a peer id or an IP address; without `hours` it holds until it is lifted. `preview` only checks."""

    subject: str
    hours: float | None = None
    reason: str = ""
    preview: bool = False


class BanMade(BanStatus, frozen=True, kw_only=True):
    preview: bool = False


@method("net.ban", BanWhom, BanMade, "Have nothing to do with a peer or an IP address.")
async def net_ban(node: Node, p: BanWhom) -> BanMade:
    if p.hours is not None and not 0 < p.hours <= MOST_HOURS:
        raise ParamsInvalid(f"{p.hours} hours; more than 0 and at most {MOST_HOURS} are wanted", field="hours")
    if len(p.reason) > REASON_LIMIT or not p.reason.isprintable():
        raise ParamsInvalid(f"a reason is at most {REASON_LIMIT} printable characters", field="reason")
    seconds = None if p.hours is None else p.hours * 3600
    if p.preview:
        until = None if seconds is None else node.clock() + round(seconds * 1000)
        subject = node.network.bannable(p.subject)
        return BanMade(subject=subject, until_ms=until, reason=p.reason, by_user=True, preview=True)
    made = await node.network.ban(p.subject, seconds, p.reason)
    return BanMade(subject=made.subject, until_ms=made.until_ms, reason=made.reason, by_user=made.by_user)


class UnbanWhom(Params, frozen=True, kw_only=True):
    subject: str


class Unbanned(Result, frozen=True, kw_only=True):
    subject: str


@method("net.unban", UnbanWhom, Unbanned, "Lift a ban, made by hand or for what a peer did.")
async def net_unban(node: Node, p: UnbanWhom) -> Unbanned:
    return Unbanned(subject=await node.network.unban(p.subject))


class StatsHow(Params, frozen=True, kw_only=True):
    prometheus: bool = False


class Stats(Result, frozen=True, kw_only=True):
    """`text` is the same for Prometheus, where that was asked for."""

    stats: NetworkStats
    text: str | None


@method("net.stats", StatsHow, Stats, "What the network has counted since the daemon's start, and how it is now.")
async def net_stats(node: Node, p: StatsHow) -> Stats:
    stats = node.network.stats()
    return Stats(stats=stats, text=prometheus(stats) if p.prometheus else None)
