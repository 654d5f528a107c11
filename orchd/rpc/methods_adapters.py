"""Adapters: what is here, what peers offer, publishing, fetching, checking."""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchd import averaging, forgetting, leaks, made_bases, recipes
from orchd.errors import AdapterUnknown, AmbiguousId, ManifestGone, OrchdError, ParamsInvalid
from orchd.forgetting import Forgot
from orchd.jobs import Job, LocalContext
from orchd.net import Transferred
from orchd.net.policy.names import separately
from orchd.node import Node, in_thread
from orchd.notes import LeafName
from orchd.records import MICRO, Announcement, Attestation, Verified, parse_id, sign, verify
from orchd.records.ids import ADAPTER
from orchd.registry import ADMITTED, QUARANTINED, AdapterRow, AnnouncementRow, listing
from orchd.registry.admission import CHECKS, Check
from orchd.registry.attested import Standing, standings
from orchd.registry.local_rows import Received
from orchd.registry.registry import MIN_PREFIX, WHOLE_ID
from orchd.registry.trust import ATTESTATION
from orchd.registry.use import not_admitted
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_network import check_join, check_topic, full_name, join
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import Params, Result, method
from orchd.train.retention_store import is_shipped

MAX_TOPICS = 16
MAX_LISTED = 500


class AdapterList(Params, frozen=True, kw_only=True):
    """`state` is admitted or quarantined; `limit` holds for `adapters` and for `announced`."""

    state: str | None = None
    topic: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LISTED)] = 50


class AdapterRows(Result, frozen=True, kw_only=True):
    """The newest ones: `adapters` are here; `announced` are offered by peers and not here.

    `here` and `offered` are how many there are in all. `adapter.search` goes through those that are here by pages.
    """

    adapters: list[AdapterRow]
    announced: list[AnnouncementRow]
    here: int
    offered: int


@method("adapter.list", AdapterList, AdapterRows, "The newest adapters that are here, and those that peers offer.")
async def adapter_list(node: Node, p: AdapterList) -> AdapterRows:
    if p.state not in (None, ADMITTED, QUARANTINED):
        raise ParamsInvalid(f"state {p.state!r} is not {ADMITTED} or {QUARANTINED}", field="state")
    topic = None if p.topic is None else full_name(node, p.topic)
    found = await in_thread(listing.newest, node.registry, state=p.state, topic=topic, limit=p.limit)
    return AdapterRows(adapters=found.adapters, announced=found.announced, here=found.here, offered=found.offered)


class AttestationRow(Result, frozen=True, kw_only=True):
    """What somebody measured. `value`, `base_value` and `interval` are nats a token, or shares from 0 to 1; `trust` is
    what the evaluator is to this node."""

    id: str
    evaluator: str
    trust: str
    metric: str
    value: float
    base_value: float | None
    interval: float
    examples: int
    created_ms: int


class AdapterShown(AdapterRow, frozen=True, kw_only=True):
    """`author_now` is the key that its author signs with today, `cosigners` are keys beside the author's.

    `leaves` are the names of an average's leaves that are here, `recomputed` says in words whether it was compared with
    them. `attested`: what those whom this node follows make of it together.
    """

    leaves: list[LeafName]
    author_now: str
    cosigners: list[str]
    attestations: list[AttestationRow]
    attested: Standing | None = None
    recomputed: str = ""


@method(
    "adapter.show",
    AdapterNamed,
    AdapterShown,
    "One adapter: what its author signed, what was decided here, and what others say of it.",
)
async def adapter_show(node: Node, p: AdapterNamed) -> AdapterShown:
    return await in_thread(_show, node, p.adapter)


def _show(node: Node, text: str) -> AdapterShown:
    row, registry = node.registry.adapter(text), node.registry
    view = registry.people.view()
    received = list[Received]()
    if row.id in view.attested:
        received = registry.local.where(Received, "kind = ? AND adapter = ?", (ATTESTATION, row.id))
    try:
        cosigners = list(registry.manifests.read(parse_id(row.id, ADAPTER)).cosigners)
    except ManifestGone:
        cosigners = []
    leaves = node.leaf_names([leaf.id for leaf in row.lineage.leaves]) if row.lineage is not None else ()
    return AdapterShown(
        **msgspec.structs.asdict(row),
        leaves=list(leaves),
        author_now=view.newest(row.author),
        cosigners=cosigners,
        attestations=[_attestation(one, view.level(one.author)) for one in received],
        attested=standings(registry, view, [row.id]).get(row.id),
        recomputed=recipes.told(registry, row) if row.lineage is not None else "",
    )


def _attestation(row: Received, trust: str) -> AttestationRow:
    record = verify(row.envelope, Attestation).record
    return AttestationRow(
        id=row.digest,
        evaluator=row.author,
        trust=trust,
        metric=record.metric,
        value=record.value / MICRO,
        base_value=None if record.base_value is None else record.base_value / MICRO,
        interval=record.interval / MICRO,
        examples=record.examples,
        created_ms=record.created_ms,
    )


class AdapterPublish(Params, frozen=True, kw_only=True):
    """`preview` checks everything, says what would be done, and does nothing. `despite_leak`: also where the leak
    report is above the limit, or can't be made. `despite_forgetting`: also what has unlearnt much of what its base
    knew. `candidate`: the name of an average that one's own data did not find better, announced all the same."""

    adapter: str
    topics: list[str]
    despite_forgetting: bool = False
    preview: bool = False
    despite_leak: bool = False
    candidate: str = ""


class PublishedUnder(Result, frozen=True, kw_only=True):
    topic: str
    members: int


class Published(Result, frozen=True, kw_only=True):
    """`members`: other nodes that are connected under any of the topics now, `under`: under each of them. Open topics
    share an announcement, and each private or LAN one has its own, which names no other. `joins`: topics that this
    node was not in before. `forgot` is None where nobody has measured it."""

    adapter: AdapterRow
    announcements: list[str]
    topics: list[str]
    members: int
    under: list[PublishedUnder]
    joins: list[str]
    preview: bool = False
    forgot: Forgot | None = None


@method(
    "adapter.publish", AdapterPublish, Published, "Sign an announcement of an adapter and tell the topic's members."
)
async def adapter_publish(node: Node, p: AdapterPublish) -> Published:
    if not 1 <= len(p.topics) <= MAX_TOPICS:
        raise ParamsInvalid(f"{len(p.topics)} topics; 1 to {MAX_TOPICS} are wanted", field="topics")
    topics = tuple(dict.fromkeys(check_topic(full_name(node, topic)) for topic in p.topics))
    row = await in_thread(node.registry.adapter, p.adapter)
    if row.state != ADMITTED:
        raise await in_thread(not_admitted, node.registry, row)
    await in_thread(made_bases.check_publishable, node.registry, row)
    await in_thread(averaging.check_announced, node, row, p.candidate)
    await in_thread(leaks.check, node, row, despite=p.despite_leak)
    demo = is_shipped(row.base)
    told = forgetting.check(row, demo=demo, accepted=p.despite_forgetting)
    joined = {topic.name for topic in node.network.topics()}
    joins = [topic for topic in topics if topic not in joined]
    for topic in joins:
        await check_join(node, topic, None)
    signed = []
    if not p.preview:
        for topic in joins:
            await join(node, topic)
        signed = [await in_thread(_announce, node, row, names) for names in separately(topics)]
    for announcement in signed:
        await node.network.tell(announcement)
    shown = await in_thread(node.registry.adapter, row.id)
    return Published(
        adapter=shown,
        announcements=[one.id for one in signed],
        topics=list(topics),
        members=node.network.members(topics),
        under=[PublishedUnder(topic=topic, members=node.network.members([topic])) for topic in topics],
        joins=joins,
        preview=p.preview,
        forgot=told,
    )


def _announce(node: Node, row: AdapterRow, topics: tuple[str, ...]) -> Verified[Announcement]:
    manifest = node.registry.manifest(row.id)

    def make(seq: int) -> Verified[Announcement]:
        record = Announcement(
            manifest=manifest.digest,
            topics=topics,
            size=manifest.record.size,
            created_ms=node.clock(),
            base=manifest.record.base.fingerprint,
            author=node.identity.public_key,
            seq=seq,
        )
        return sign(record, node.identity)

    return node.registry.announce(make, node.network.peer_id)


class AdapterFetch(Params, frozen=True, kw_only=True):
    """`peers` restricts it to these peer ids. `adapter` is a whole id, or the beginning of an announced one."""

    adapter: str
    peers: tuple[str, ...] = ()


class Fetched(Result, frozen=True, kw_only=True):
    adapter: AdapterRow
    new: bool


@method("adapter.fetch", AdapterFetch, JobStarted, "Fetch an adapter from peers, check every chunk, and admit it.")
async def adapter_fetch(node: Node, p: AdapterFetch) -> JobStarted:
    adapter = await in_thread(_resolve_offered, node, p.adapter)
    return JobStarted(job=(await start_fetch(node, adapter, p.peers)).id)


async def start_fetch(node: Node, adapter: str, peers: tuple[str, ...] = (), checks: tuple[Check, ...] = ()) -> Job:
    """The job that brings an adapter, named by its whole id; `checks` come after the door's own.

    One that runs already with nothing else asked of it is the same job.
    """
    note = {"adapter": adapter, "peers": list(peers)}
    if not checks and (running := node.jobs.under_way("fetch", note)) is not None:
        return running

    async def work(context: LocalContext) -> Fetched:
        waited = ""

        def progress(far: Transferred) -> None:
            nonlocal waited
            if far.waits and far.waits != waited:
                waited = far.waits
                context.log(waited)
            waits = {"waits": far.waits} if far.waits else {}
            context.progress(far.done, far.total, "bytes", peers=far.peers, rate=round(far.rate), **waits)

        admission = await node.network.fetch(adapter, peers=peers, progress=progress, checks=checks)
        if admission.new:
            node.tell_admitted(admission)
        return Fetched(adapter=await node.recipes.settled(admission.id), new=admission.new)

    return await node.jobs.submit_local("fetch", f"fetch {adapter[:12]}", work, note=None if checks else note)


def _resolve_offered(node: Node, text: str) -> str:
    """The id of an adapter that is here or was announced. A whole id may be of one that nobody announced yet.

    Raises `AdapterUnknown`, `AmbiguousId`, or `ParamsInvalid` of what is longer than an id.
    """
    try:
        return node.registry.resolve(text)
    except AdapterUnknown as error:
        unknown = error
    if not text.startswith(ADAPTER):
        raise AdapterUnknown(f"{unknown.message}, and what peers announce has no names", field="adapter")
    if len(text) >= WHOLE_ID:
        parse_id(text, ADAPTER)
        return text
    if len(text) < MIN_PREFIX:
        raise unknown
    found = listing.offered(node.registry, text)
    if len(found) > 1:
        raise AmbiguousId(f"{text!r} fits {len(found)} adapters: {', '.join(sorted(found))}", field="adapter")
    if not found:
        raise AdapterUnknown(f"{unknown.message}, and nobody has announced one that begins so", field="adapter")
    return found[0]


class AdapterCheck(Result, frozen=True, kw_only=True):
    name: str
    ok: bool
    detail: str


class AdapterVerified(Result, frozen=True, kw_only=True):
    adapter: AdapterRow
    ok: bool
    checks: list[AdapterCheck]


@method(
    "adapter.verify", AdapterNamed, AdapterVerified, "Check an adapter's signature and bytes again, as they lie here."
)
async def adapter_verify(node: Node, p: AdapterNamed) -> AdapterVerified:
    row = await in_thread(node.registry.adapter, p.adapter)
    checks = await in_thread(_verify, node, row.id)
    return AdapterVerified(adapter=row, ok=all(check.ok for check in checks), checks=checks)


def _verify(node: Node, id: str) -> list[AdapterCheck]:
    manifest = node.registry.manifest(id)
    candidate = node.registry.candidate(manifest, node.registry.files(id), node.clock())
    beside = f", co-signed by {', '.join(manifest.cosigners)}" if manifest.cosigners else ""
    found = [AdapterCheck(name="envelope and signature", ok=True, detail=f"signed by {manifest.author}{beside}")]
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            reason = check(candidate)
            found.append(AdapterCheck(name=name, ok=reason is None, detail=reason or "holds"))
        except FileNotFoundError as error:
            lost = next((name for name, path in candidate.files.items() if str(path) == error.filename), "a file")
            found.append(AdapterCheck(name=name, ok=False, detail=f"{lost} is not here: fetch or import it again"))
        except (OrchdError, OSError) as error:
            found.append(AdapterCheck(name=name, ok=False, detail=str(error)))
    return found


class Removed(Result, frozen=True, kw_only=True):
    """`others`: how many more adapters of this name by this author are here. `deployments` go on answering with it."""

    adapter: str
    name: str
    others: int
    deployments: list[str]


@method("adapter.remove", AdapterNamed, Removed, "Move an adapter to the trash; for 30 days it can be had back.")
async def adapter_remove(node: Node, p: AdapterNamed) -> Removed:
    row = await in_thread(node.registry.adapter, p.adapter)
    await in_thread(node.registry.remove, row.id)
    deployments = await in_thread(node.deployments.list)
    return Removed(
        adapter=row.id,
        name=row.name,
        others=await in_thread(_of_this_name, node, row),
        deployments=[one.name for one in deployments if one.adapter == row.id],
    )


def _of_this_name(node: Node, row: AdapterRow) -> int:
    found = "SELECT count(*) FROM adapter WHERE name = ? AND author = ? AND state <> 'removed'"
    return int(node.registry.index.read(found, (row.name, row.author))[0][0])
