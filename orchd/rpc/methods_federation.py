"""Federations: rounds of training and averaging with others, with no coordinator; the daemon plays them by itself."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from orchd.average.rounds_choice import quiet_ms, usable
from orchd.average.rounds_state import METHOD, Here, Judgement, Phase, Played, State
from orchd.errors import ConsentMissing, FederationUnfit, FederationUnknown, OrchdError
from orchd.federating import base_name
from orchd.federation_work import Terms, terms_of
from orchd.node import Node, in_thread
from orchd.records import Federation, Verified, sign, verify
from orchd.registry.local_rows import FederationHere
from orchd.rpc.methods_network import check_join, check_topic, full_name, join
from orchd.rpc.table import NoParams, Params, Result, method
from orchd.train.leak.figures import limit_in_words

MINUTE_S, WEEK_S = 60, 7 * 86_400
LEAST_S = 5
Outer = Literal["auto", "plain", "momentum", "strength"]
MOMENTUM_PPM, STRENGTH_PPM = 500_000, 1_500_000
OUTER: dict[Outer, Terms] = {
    "auto": Terms(),
    "plain": Terms(momentum_ppm=0),
    "momentum": Terms(momentum_ppm=MOMENTUM_PPM),
    "strength": Terms(momentum_ppm=0, strength_ppm=STRENGTH_PPM),
}
"""The outer step by name: momentum of one half (by itself with four members or more), or one and a half times the
average (`average.md` §3)."""


class FederationRow(Result, frozen=True, kw_only=True):
    """A federation that is known here. `every_s` is the longest that a round waits, in seconds; `steps` those of one
    round. `base` is what its base is called here, empty where it is not. `phase` is empty where it was not joined."""

    id: str
    topic: str
    base: str
    rounds: int
    every_s: int
    min_peers: int
    rank: int
    steps: int
    outer: str
    author: str
    trust: str
    created_ms: int
    joined: bool
    phase: str = ""
    round: int = 0


class FederationMade(FederationRow, frozen=True, kw_only=True):
    """`limit` is what is agreed to by joining. `members`: other nodes that are connected under the topic now."""

    limit: str
    members: int


class MemberRow(Result, frozen=True, kw_only=True):
    """A member that was heard of lately: its newest increment, how far that is, and why it was refused."""

    author: str
    trust: str
    round: int
    state: str
    reason: str


class LossRow(Result, frozen=True, kw_only=True):
    """Losses (nats a token) on the held-out data of `author` with the global before a round, and with its average."""

    author: str
    before: float
    after: float
    worse: bool


class ShareRow(Result, frozen=True, kw_only=True):
    """What an average took of a member: its weight in the recipe, what became of it, and how many rounds late it was.
    Members with the same `vote` are near-copies, and have one together."""

    author: str
    adapter: str
    weight: float
    taken: float
    age: int
    vote: int


class TurnedRow(Result, frozen=True, kw_only=True):
    author: str
    adapter: str
    reason: str


class RoundRow(Result, frozen=True, kw_only=True):
    """A round that is over. `outcome`: adopted, held (the average was worse, so the global before it stays), or taken
    over (made by others while this node was away). `own` is None where there was nothing to measure on."""

    round: int
    outcome: str
    adapter: str
    recipe: str
    seconds: float
    own: LossRow | None
    others: tuple[LossRow, ...]
    shares: tuple[ShareRow, ...]
    refused: tuple[TurnedRow, ...]
    reason: str


class FederationStatus(FederationRow, frozen=True, kw_only=True):
    """`now` says in words what is waited for; `deadline_ms` is when this round takes no more increments, 0 for none.
    `adapter` is the global adapter that this node has now."""

    dataset: str
    now: str
    deadline_ms: int
    adapter: str
    members: tuple[MemberRow, ...]
    history: tuple[RoundRow, ...]
    reason: str


class FederationRows(Result, frozen=True, kw_only=True):
    federations: list[FederationRow]


class FederationCreate(Params, frozen=True, kw_only=True):
    """`every` (seconds) is the longest that a round waits for members: it goes on as soon as all are in. It never goes
    on with fewer than `min_peers` members, this one among them, however long that takes. Each member takes `steps`
    steps in each round, of one schedule over all of them; a `learning_rate` of None is each one's own plan's.
    `outer`: plain, momentum, strength, or auto (momentum with four members or more). With a `dataset` this node joins
    at once, for which it has to `agree` to the limit that the result tells."""

    topic: str
    base: str = "demo"
    rounds: Annotated[int, Meta(ge=1, le=1_000)] = 5
    every: Annotated[int, Meta(ge=LEAST_S, le=WEEK_S)] = 10 * MINUTE_S
    min_peers: Annotated[int, Meta(ge=2, le=500)] = 3
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    outer: Outer = "auto"
    dataset: str | None = None
    agree: bool = False


@method(
    "federation.create", FederationCreate, FederationMade, "Invite a topic to train one adapter together, in rounds."
)
async def federation_create(node: Node, p: FederationCreate) -> FederationMade:
    topic = check_topic(full_name(node, p.topic))
    base = await in_thread(node.registry.base, p.base)
    if p.dataset is not None:
        await in_thread(node.datasets.get, p.dataset)
        _check_agreed(p.agree)
    await check_join(node, topic, await in_thread(node.topics.secret, topic))
    await join(node, topic, await in_thread(node.topics.secret, topic))
    terms = msgspec.structs.replace(
        OUTER[p.outer], steps=p.steps, learning_rate_nano=round((p.learning_rate or 0) * 1e9)
    )
    record = Federation(
        topic=topic,
        base=base.digest,
        rounds=p.rounds,
        cadence_s=p.every,
        min_members=p.min_peers,
        method=METHOD,
        rank=p.rank,
        created_ms=node.clock(),
        author=node.identity.public_key,
        extra={"rounds": msgspec.structs.asdict(terms)},
    )
    signed: Verified[Federation] = await in_thread(partial(sign, record, node.identity))
    await node.network.tell(signed)
    if p.dataset is not None:
        await _join(node, signed, p.dataset)
    return await _made(node, signed)


class FederationJoin(Params, frozen=True, kw_only=True):
    """`federation` is an id, the beginning of one, or a topic that has one alone. Joined again after it was left or
    stopped, it goes on where it was."""

    federation: str
    dataset: str | None = None
    agree: bool = False


@method("federation.join", FederationJoin, FederationMade, "Take part in a federation with one's own data.")
async def federation_join(node: Node, p: FederationJoin) -> FederationMade:
    signed = await in_thread(_find, node, p.federation)
    before = await in_thread(node.registry.local.get, FederationHere, signed.id)
    dataset = p.dataset or (before.dataset if before else None)
    if dataset is None:
        raise FederationUnfit("no data set to train on", hint="Name it with --dataset.", field="dataset")
    if before is None:
        _check_agreed(p.agree)
    await in_thread(node.datasets.get, dataset)
    await in_thread(base_name, node, signed.record)
    topic = signed.record.topic
    await join(node, topic, await in_thread(node.topics.secret, topic))
    await _join(node, signed, dataset)
    return await _made(node, signed)


class FederationNamed(Params, frozen=True, kw_only=True):
    """`federation` is an id, the beginning of one, or a topic; it may be left out where there is only one."""

    federation: str = ""


@method("federation.leave", FederationNamed, FederationRow, "Take part no more; what was published stays so.")
async def federation_leave(node: Node, p: FederationNamed) -> FederationRow:
    row = await in_thread(_joined, node, p.federation)
    await node.federations.leave(row)
    return await in_thread(_row, node, verify(row.envelope, Federation))


@method(
    "federation.status", FederationNamed, FederationStatus, "How far a federation is, who is in it, what came of it."
)
async def federation_status(node: Node, p: FederationNamed) -> FederationStatus:
    row = await in_thread(_joined, node, p.federation, left_too=True)
    return await in_thread(_status, node, row)


@method("federation.list", NoParams, FederationRows, "Federations that were heard of, and those that this node is in.")
async def federation_list(node: Node, _: NoParams) -> FederationRows:
    return FederationRows(federations=[_row(node, one) for one in await in_thread(_known, node)])


# ---- finding ---------------------------------------------------------------------------------------------------------


def _known(node: Node) -> list[Verified[Federation]]:
    """Newest first; those of another form are left out."""
    told = node.registry.index.read("SELECT envelope FROM news WHERE kind = 'federation'")
    joined = node.registry.local.all(FederationHere)
    envelopes = [*(bytes(envelope) for (envelope,) in told), *(row.envelope for row in joined)]
    found = {}
    for envelope in envelopes:
        signed = verify(envelope, Federation)
        try:
            terms_of(signed.record)
        except msgspec.ValidationError:
            continue
        found[signed.id] = signed
    return sorted(found.values(), key=lambda one: (-one.record.created_ms, one.id))


def _find(node: Node, text: str) -> Verified[Federation]:
    known = _known(node)
    fits = [one for one in known if one.id.startswith(text) or one.record.topic == text] if text else known
    return _only(fits, text)


def _joined(node: Node, text: str, *, left_too: bool = False) -> FederationHere:
    rows = {row.id: row for row in node.registry.local.all(FederationHere) if left_too or row.left is None}
    signed = [one for one in _known(node) if one.id in rows]
    fits = [one for one in signed if one.id.startswith(text) or one.record.topic == text] if text else signed
    return rows[_only(fits, text).id]


def _only(fits: list[Verified[Federation]], text: str) -> Verified[Federation]:
    if not fits:
        raise FederationUnknown(f"no federation {text[:80]!r} is here" if text else "no federation is here")
    if len(fits) > 1:
        listed = ", ".join(f"{one.id} ({one.record.topic})" for one in fits[:5])
        raise FederationUnfit(f"which one? {text[:80]!r} fits {listed}", field="federation")
    return fits[0]


def _check_agreed(agree: bool) -> None:
    if not agree:
        raise ConsentMissing(limit_in_words(), field="agree")


async def _join(node: Node, signed: Verified[Federation], dataset: str) -> None:
    found = await in_thread(node.datasets.get, dataset)
    before = await in_thread(node.registry.local.get, FederationHere, signed.id)
    now = node.clock()
    await node.federations.join(
        FederationHere(
            id=signed.id,
            envelope=signed.envelope,
            dataset=found.id,
            agreed=before.agreed if before else now,
            joined=now,
        )
    )


# ---- showing ---------------------------------------------------------------------------------------------------------


async def _made(node: Node, signed: Verified[Federation]) -> FederationMade:
    row = await in_thread(_row, node, signed)
    members = node.network.members([signed.record.topic])
    return FederationMade(**msgspec.structs.asdict(row), limit=limit_in_words(), members=members)


def _row(node: Node, signed: Verified[Federation]) -> FederationRow:
    record, here = signed.record, node.registry.local.get(FederationHere, signed.id)
    terms = terms_of(record)
    state = node.federations.state(signed.id) if here else None
    names = {(one.momentum_ppm, one.strength_ppm): name for name, one in OUTER.items()}
    try:
        base = base_name(node, record)
    except OrchdError:
        base = ""
    return FederationRow(
        id=signed.id,
        topic=record.topic,
        base=base,
        rounds=record.rounds,
        every_s=record.cadence_s,
        min_peers=record.min_members,
        rank=record.rank,
        steps=terms.steps,
        outer=names.get((terms.momentum_ppm, terms.strength_ppm), "its own"),
        author=signed.author,
        trust=node.registry.trust(signed.author),
        created_ms=record.created_ms,
        joined=here is not None and here.left is None,
        phase="" if state is None else str(state.phase),
        round=0 if state is None else min(state.round, record.rounds),
    )


def _status(node: Node, here: FederationHere) -> FederationStatus:
    signed = verify(here.envelope, Federation)
    row, state = _row(node, signed), node.federations.state(here.id)
    dataset = node.datasets.get(here.dataset).name
    runner = node.federations.runners.get(here.id)
    trouble = runner.trouble if runner is not None else ""
    if state is None:
        return FederationStatus(
            **msgspec.structs.asdict(row), dataset=dataset, now="not begun", deadline_ms=0, adapter="", members=(),
            history=(), reason=trouble,
        )  # fmt: skip
    return FederationStatus(
        **msgspec.structs.asdict(row),
        dataset=dataset,
        now=_now(state),
        deadline_ms=0 if state.phase.ended else state.deadline_ms,
        adapter=state.last.adapter,
        members=_members(node, state),
        history=tuple(_round(state, one) for one in state.played),
        reason=trouble or _kept_back(state) or state.reason,
    )


def _kept_back(state: State) -> str:
    """Why what this node learnt in this round takes no part in it; empty when it does."""
    own = (known for known in state.increments.values() if known.increment.author == state.me)
    return next((known.reason for known in own if known.increment.round == state.round and known.reason), "")


def _now(state: State) -> str:
    """What is waited for, in words."""
    there, least = len(usable(state)), state.rules.min_peers
    if state.phase is Phase.TRAINING:
        return f"trains for round {state.round}"
    if state.task:
        return f"makes and measures the average of round {state.round}"
    if state.phase is Phase.GATHERING and there < least:
        return f"waits for members: {there} of {least} are in round {state.round}, and it waits however long it takes"
    if state.phase is Phase.GATHERING:
        until = " or until it is quiet" if state.round == 1 and quiet_ms(state) > state.seen_ms else ""
        return f"takes increments of round {state.round} ({there} are in) until its deadline, all are in{until}"
    if state.phase is Phase.SETTLING:
        return f"compares its average of round {state.round} with the others'"
    if state.phase is Phase.CLOSING:
        return "the last round is over; a heavier average of it may still come"
    return {Phase.DONE: "over", Phase.STOPPED: "stopped here"}[state.phase]


def _members(node: Node, state: State) -> tuple[MemberRow, ...]:
    newest = {}
    for known in sorted(state.increments.values(), key=lambda one: one.increment.round):
        newest[known.increment.author] = known
    words = {Here.HEARD: "announced", Here.ASKED: "being fetched", Here.HERE: "here", Here.REFUSED: "refused"}
    return tuple(
        MemberRow(
            author=author,
            trust=node.registry.trust(author),
            round=known.increment.round,
            state=words[known.state],
            reason=known.reason,
        )
        for author, known in sorted(newest.items())
    )


def _round(state: State, played: Played) -> RoundRow:
    return RoundRow(
        round=played.round,
        outcome=str(played.outcome),
        adapter=played.adapter,
        recipe=played.recipe,
        seconds=(played.ended_ms - played.began_ms) / 1_000,
        own=None if played.own is None else _loss(state.me, played.own),
        others=tuple(_loss(author, told) for author, told in played.others),
        shares=tuple(
            ShareRow(
                author=one.author,
                adapter=one.adapter,
                weight=one.weight_ppm / 1e6,
                taken=one.taken_ppm / 1e6,
                age=one.age,
                vote=one.vote,
            )
            for one in played.shares
        ),
        refused=tuple(TurnedRow(author=one.author, adapter=one.adapter, reason=one.reason) for one in played.turned),
        reason=played.reason,
    )


def _loss(author: str, told: Judgement) -> LossRow:
    return LossRow(author=author, before=told.before, after=told.after, worse=told.worse)
