"""Whom this node trusts, and the records by which authors speak about adapters: revoking, attesting, co-signing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from orchd.errors import AdapterRevoked, KeyUnchanged, NotTheAuthor, ParamsInvalid, SubjectInvalid, SubjectUnknown
from orchd.identity import Identity
from orchd.measuring import AttestNote, evaluation
from orchd.node import Node, in_thread
from orchd.records import KeyRotation, Manifest, Revocation, Verified, cosign, sign, verify
from orchd.registry import ADMITTED, AdapterRow
from orchd.registry.local import Change, delete, put
from orchd.registry.local_rows import Setting, Trust
from orchd.registry.trust import (
    ALLOW,
    AUTHOR,
    BLOCK,
    CHOICES,
    FOLLOW,
    MOST_ATTESTATIONS,
    PEER,
    PREFIX,
    SELF,
    Policies,
    View,
)
from orchd.registry.use import not_admitted
from orchd.rpc.deciding import Affected, Changed, heard_of, of_rows, restand, subject_of, tell_trust_changed
from orchd.rpc.methods_jobs import JobStarted
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.table import NoParams, Params, Result, method

NOTE_LIMIT, REASON_LIMIT = 200, 500  # characters


class TrustRow(Result, frozen=True, kw_only=True):
    """A verdict on an author (`key_…`) or a peer (`12D3Koo…`). `now` is the key that the author signs with today."""

    subject: str
    kind: str
    verdict: str
    note: str
    auto_update: bool
    since_ms: int
    now: str
    adapters: int


class KeyChange(Result, frozen=True, kw_only=True):
    """An author's key that changed. `trust` is what the new one inherits; `contested`: the old key names two heirs, so
    neither inherits anything."""

    old: str
    new: str
    created_ms: int
    received_ms: int
    trust: str
    contested: bool


class TrustList(Result, frozen=True, kw_only=True):
    """`equivocators` have signed two different records with one number."""

    subjects: list[TrustRow]
    policies: Policies
    key_changes: list[KeyChange]
    equivocators: list[str]


@method("trust.list", NoParams, TrustList, "Whom this node follows, allows and blocks, its policies, and changed keys.")
async def trust_list(node: Node, _: NoParams) -> TrustList:
    return await in_thread(_trust_list, node)


def _trust_list(node: Node) -> TrustList:
    view = node.registry.people.view()
    count = dict(
        node.registry.index.read("SELECT author, count(*) FROM adapter WHERE state <> 'removed' GROUP BY author")
    )
    changes = [
        KeyChange(
            old=change.old,
            new=change.new,
            created_ms=change.created,
            received_ms=change.received,
            trust=view.level(change.new),
            contested=change.old in view.contested,
        )
        for change in view.changes
    ]
    return TrustList(
        subjects=[_row(row, view, count) for row in node.registry.local.all(Trust)],
        policies=view.policies,
        key_changes=changes,
        equivocators=sorted(view.equivocators | view.contested),
    )


def _row(row: Trust, view: View, count: dict[str, int]) -> TrustRow:
    return TrustRow(
        subject=row.subject,
        kind=row.kind,
        verdict=row.verdict,
        note=row.note,
        auto_update=row.auto_update,
        since_ms=row.since,
        now=view.newest(row.subject),
        adapters=sum(count.get(key, 0) for key in view.keys_of(row.subject)),
    )


class Subject(Params, frozen=True, kw_only=True):
    """`subject`: an author's key or its beginning, a peer's id, or an adapter that is here, whose author is meant."""

    subject: str
    note: str = ""


class Followed(Params, frozen=True, kw_only=True):
    """`auto_update`: fetch what supersedes an adapter of theirs that is here."""

    subject: str
    note: str = ""
    auto_update: bool = False


class Decided(Result, frozen=True, kw_only=True):
    """`changed`: adapters that may do more or less than before, the first 50 of `changed_in_all`; `deployments` of
    them fall back to the base. `heard_of`: something of theirs is or was here, announced or connected. `containing`:
    how many other adapters here, that are admitted, contain one by a blocked author."""

    heard_of: bool
    containing: int
    subject: str
    kind: str
    verdict: str
    changed: list[Affected]
    changed_in_all: int
    deployments: list[str]


@method("trust.follow", Followed, Decided, "Follow an author (policies and updates count on them) or a peer.")
async def trust_follow(node: Node, p: Followed) -> Decided:
    return await _decide(node, p.subject, FOLLOW, p.note, auto_update=p.auto_update)


@method("trust.allow", Subject, Decided, "No longer treat an author or a peer as a stranger, and no more than that.")
async def trust_allow(node: Node, p: Subject) -> Decided:
    return await _decide(node, p.subject, ALLOW, p.note)


@method("trust.block", Subject, Decided, "Keep out everything by an author, or have nothing to do with a peer.")
async def trust_block(node: Node, p: Subject) -> Decided:
    return await _decide(node, p.subject, BLOCK, p.note)


async def _decide(node: Node, text: str, verdict: str, note: str, *, auto_update: bool = False) -> Decided:
    subject, kind = await in_thread(subject_of, node, text)
    if len(note) > NOTE_LIMIT or not note.isprintable():
        raise ParamsInvalid(f"a note is at most {NOTE_LIMIT} printable characters", field="note")
    if auto_update and kind == PEER:
        hint = "Follow the author: `orchctl adapter show` names the one of an adapter."
        raise ParamsInvalid("peers have no adapters to update; authors have", hint=hint, field="auto_update")
    if subject == node.network.peer_id or await in_thread(node.registry.people.level, subject) == SELF:
        hint = "Only others are followed, allowed or blocked."
        raise SubjectInvalid(f"{subject} is this node itself", hint=hint, field="subject")
    row = Trust(subject=subject, kind=kind, verdict=verdict, note=note, auto_update=auto_update, since=node.clock())
    before = await in_thread(_decided, node, subject)
    if [msgspec.structs.replace(one, since=row.since) for one in before] == [row]:  # nothing new, nothing to undo
        return await _told(node, subject, kind, verdict, Changed([], 0), [])
    others = [delete(Trust, one.subject) for one in before if one.subject != subject]
    return await _carry_out(node, f"trust.{verdict}", [put(row), *others], subject, kind, verdict)


def _decided(node: Node, subject: str) -> list[Trust]:
    """What was decided about a peer, or about an author under any of their keys."""
    keys = node.registry.people.view().keys_of(subject)
    return [row for row in node.registry.local.all(Trust) if row.subject in keys]


class SubjectNamed(Params, frozen=True, kw_only=True):
    subject: str


@method("trust.remove", SubjectNamed, Decided, "Forget what was decided about an author or a peer.")
async def trust_remove(node: Node, p: SubjectNamed) -> Decided:
    subject, kind = await in_thread(subject_of, node, p.subject)
    before = await in_thread(_decided, node, subject)
    if not before:
        raise SubjectUnknown(f"nothing was decided about {subject}", field="subject")
    gone = [delete(Trust, row.subject) for row in before]
    return await _carry_out(node, "trust.remove", gone, subject, kind, "")


async def _carry_out(node: Node, act: str, changes: Sequence[Change], subject: str, kind: str, verdict: str) -> Decided:
    await in_thread(partial(node.registry.local.act, act, *changes, undoable=True))
    changed, deployments = await in_thread(restand, node)
    await tell_trust_changed(node, subject, kind, verdict)
    return await _told(node, subject, kind, verdict, changed, deployments)


async def _told(node: Node, subject: str, kind: str, verdict: str, changed: Changed, deployments: list[str]) -> Decided:
    connected = kind == PEER and any(peer.peer == subject for peer in node.network.peers())
    return Decided(
        heard_of=connected or await in_thread(heard_of, node, subject),
        containing=await in_thread(_containing, node, subject) if (kind, verdict) == (AUTHOR, BLOCK) else 0,
        subject=subject,
        kind=kind,
        verdict=verdict,
        changed=changed.named,
        changed_in_all=changed.in_all,
        deployments=deployments,
    )


def _containing(node: Node, author: str) -> int:
    """How many admitted adapters contain one by this author."""
    registry = node.registry
    keys = sorted(registry.people.view().keys_of(author))
    rows = registry.index.read("SELECT digest FROM adapter WHERE author IN (SELECT unnest($1::VARCHAR[]))", (keys,))
    above = sorted(registry.people.containing([id for (id,) in rows]))
    found = "SELECT count(*) FROM adapter WHERE state = 'admitted' AND digest IN (SELECT unnest($1::VARCHAR[]))"
    return int(registry.index.read(found, (above,))[0][0])


class SubjectShown(Result, frozen=True, kw_only=True):
    """One author or peer. `level` is self, followed, allowed, stranger or blocked; `verdict` what was decided, if
    anything; `keys` are all that the author has signed with, and `now` is the newest. `equivocates`: caught signing
    records that contradict each other."""

    subject: str
    kind: str
    level: str
    verdict: str
    note: str
    auto_update: bool
    since_ms: int
    keys: list[str]
    now: str
    equivocates: bool
    adapters: list[Affected]


@method("trust.show", SubjectNamed, SubjectShown, "One author or peer: what was decided, its keys, its adapters here.")
async def trust_show(node: Node, p: SubjectNamed) -> SubjectShown:
    return await in_thread(_show, node, p.subject)


def _show(node: Node, text: str) -> SubjectShown:
    subject, kind = subject_of(node, text)
    view = node.registry.people.view()
    keys = sorted(view.keys_of(subject), key=lambda key: (key == view.newest(subject), key))
    row = next(iter(_decided(node, subject)), None)
    ids = node.registry.index.read(
        "SELECT digest FROM adapter WHERE state <> 'removed' AND author IN (SELECT unnest($1::VARCHAR[]))"
        " ORDER BY created DESC, digest",
        (keys,),
    )
    return SubjectShown(
        subject=subject,
        kind=kind,
        level=SELF if subject == node.network.peer_id else view.level(subject),
        verdict="" if row is None else row.verdict,
        note="" if row is None else row.note,
        auto_update=row is not None and row.auto_update,
        since_ms=0 if row is None else row.since,
        keys=keys if kind == AUTHOR else [],
        now=view.newest(subject) if kind == AUTHOR else subject,
        equivocates=view.equivocated(subject),
        adapters=of_rows(node.registry.rows_of([id for (id,) in ids])),
    )


# ---- policies ----------------------------------------------------------------------------------------------------


class PolicyChange(Params, frozen=True, kw_only=True):
    """What is left out stays. `auto_fetch`: off or followed; `quarantine`: off or strangers; `attestations`: 0 to 100
    distinct followed authors."""

    auto_fetch: str | None = None
    quarantine: str | None = None
    attestations: int | None = None


class PoliciesNow(Result, frozen=True, kw_only=True):
    """`changed`: adapters that may do more or less than before, the first 50 of `changed_in_all`."""

    policies: Policies
    changed: list[Affected]
    changed_in_all: int


@method("trust.policy", PolicyChange, PoliciesNow, "Set or show what is decided without asking.")
async def trust_policy(node: Node, p: PolicyChange) -> PoliciesNow:
    given = {name: value for name, value in msgspec.structs.asdict(p).items() if value is not None}
    for name, choices in CHOICES.items():
        if given.get(name, choices[0]) not in choices:
            raise ParamsInvalid(f"{name} {given[name]!r} is not {' or '.join(choices)}", field=name)
    if not 0 <= given.get("attestations", 0) <= MOST_ATTESTATIONS:
        raise ParamsInvalid(f"attestations are from 0 to {MOST_ATTESTATIONS}", field="attestations")
    changed = await in_thread(_set_policies, node, given) if given else Changed([], 0)
    if given:
        await tell_trust_changed(node, "", "policy", "")
    policies = (await in_thread(node.registry.people.view)).policies
    return PoliciesNow(policies=policies, changed=changed.named, changed_in_all=changed.in_all)


def _set_policies(node: Node, given: dict[str, object]) -> Changed:
    now = msgspec.structs.asdict(node.registry.people.view().policies)
    rows = [put(Setting(key=PREFIX + name, value=str(value))) for name, value in given.items() if value != now[name]]
    if rows:
        node.registry.local.act("trust.policy", *rows, undoable=True)
    return restand(node)[0]


# ---- this node's key ---------------------------------------------------------------------------------------------


class Rotated(Result, frozen=True, kw_only=True):
    """`author` and `peer_id` are the new ones, `old` is the key that has signed the change."""

    author: str
    peer_id: str
    old: str
    rotation: str


@method("identity.rotate", NoParams, Rotated, "Give this node a new key; the old one signs the change.")
async def identity_rotate(node: Node, _: NoParams) -> Rotated:
    async with node.rotating:
        old, path = node.identity, node.paths.identity_file
        try:
            new = await in_thread(Identity.make_next, path)
            signed = sign(KeyRotation(old=old.public_key, new=new.public_key, created_ms=node.clock()), old, new)
            await node.network.tell(signed, wait=True)
            await in_thread(Identity.adopt_next, path, node.clock())
        except OSError as error:
            raise KeyUnchanged(f"the key file {path} could not be changed: {error.strerror}") from None
        node.identity = new
        await in_thread(node.registry.become, new.author)
        await node.network.rekey(new)
    return Rotated(author=new.author, peer_id=node.network.peer_id, old=old.author, rotation=signed.id)


# ---- adapters ----------------------------------------------------------------------------------------------------


class Revoke(Params, frozen=True, kw_only=True):
    """`reason` is signed and told to everybody. `preview` only says what it would reach here."""

    adapter: str
    reason: str = ""
    preview: bool = False


class Revoked(Result, frozen=True, kw_only=True):
    """`affected` and `deployments` are those of this node; others find their own. `revocation` is empty of a preview,
    and `affected` stand as they did."""

    revocation: str
    preview: bool
    adapter: AdapterRow
    affected: list[Affected]
    deployments: list[str]


@method("adapter.revoke", Revoke, Revoked, "Take an adapter of this node back, everywhere and for good.")
async def adapter_revoke(node: Node, p: Revoke) -> Revoked:
    if len(p.reason) > REASON_LIMIT or not p.reason.isprintable():
        raise ParamsInvalid(f"a reason is at most {REASON_LIMIT} printable characters", field="reason")
    row = await in_thread(node.registry.adapter, p.adapter)
    signed = await in_thread(_sign_revocation, node, row, p.reason)
    if not p.preview:
        await node.network.tell(signed)
    ids = await in_thread(_reached, node, row.id)
    rows = await in_thread(node.registry.rows_of, ids)
    deployments = await in_thread(node.deployments.list)
    return Revoked(
        revocation="" if p.preview else signed.id,
        preview=p.preview,
        adapter=next(one for one in rows if one.id == row.id),
        affected=of_rows(rows),
        deployments=[one.name for one in deployments if {one.adapter, one.was} & set(ids)],
    )


def _sign_revocation(node: Node, row: AdapterRow, reason: str) -> Verified[Revocation]:
    if not node.registry.people.view().same(row.author, node.identity.author):
        raise NotTheAuthor(f"{row.name} was made by {row.author}, and only they can revoke it", field="adapter")
    if said := node.registry.people.revocation(row.id, row.author):
        hint = "Whoever has not heard of it does when their node meets one that has."
        raise AdapterRevoked(f"{row.name} ({row.id}) is {said}, already", hint=hint, field="adapter")
    record = Revocation(
        manifest=node.registry.manifest(row.id).digest,
        reason=reason,
        created_ms=node.clock(),
        author=node.identity.public_key,
    )
    return sign(record, node.identity)


def _reached(node: Node, id: str) -> list[str]:
    return [id, *sorted(node.registry.people.containing([id]))]


class Attest(Params, frozen=True, kw_only=True):
    """`metric` is loss or exact_match, on a data set that stays here."""

    adapter: str
    dataset: str
    metric: str = "loss"
    split: str = "test"


@method("adapter.attest", Attest, JobStarted, "Measure somebody's adapter on data of one's own, and sign the figure.")
async def adapter_attest(node: Node, p: Attest) -> JobStarted:
    if p.metric not in ("loss", "exact_match"):
        raise ParamsInvalid(f"metric {p.metric!r} is not loss or exact_match", field="metric")
    row = await in_thread(node.registry.adapter, p.adapter)
    if await in_thread(node.registry.people.level, row.author) == SELF:
        hint = "Others attest it; `orchctl adapter evaluate` measures it for yourself."
        raise NotTheAuthor(
            f"{row.name} is this node's own; its figures are in its manifest", hint=hint, field="adapter"
        )
    spec = await evaluation(node, [row], dataset=p.dataset, split=p.split)
    note = AttestNote(adapter=row.id, metric=p.metric)
    job = await node.jobs.submit("evaluate", spec, title=f"attest {row.name}", note=note)
    return JobStarted(job=job.id)


class Cosigned(Result, frozen=True, kw_only=True):
    adapter: AdapterRow
    cosigners: list[str]


@method("adapter.cosign", AdapterNamed, Cosigned, "Sign an adapter's manifest too, beside its author.")
async def adapter_cosign(node: Node, p: AdapterNamed) -> Cosigned:
    row = await in_thread(node.registry.adapter, p.adapter)
    if row.state != ADMITTED:
        raise await in_thread(not_admitted, node.registry, row)
    if await in_thread(node.registry.people.level, row.author) == SELF:
        hint = "Others co-sign it, if they want to."
        raise NotTheAuthor(f"{row.name} is signed by this node already, as its author", hint=hint, field="adapter")
    return Cosigned(adapter=row, cosigners=await in_thread(_cosign, node, row.id))


def _cosign(node: Node, id: str) -> list[str]:
    """The file of the manifest holds one signature more from now on; so does what peers are given."""
    manifest = verify(cosign(node.registry.manifest(id).envelope, node.identity), Manifest)
    node.registry.manifests.write(manifest)
    return list(manifest.cosigners)
