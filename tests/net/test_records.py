"""What authors say about adapters, told from node to node: taking back, vouching, changing keys, and lying."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchd.errors import AdapterRevoked, AuthorBlocked, NoProvider, PeerBlocked
from orchd.identity import Identity
from orchd.net import Library
from orchd.records import Attestation, KeyRotation, Leaf, Lineage, Manifest, Revocation, Verified, sign
from orchd.registry import Registry
from orchd.registry.local import put
from orchd.registry.local_rows import Setting, Trust
from orchd.registry.trust import BLOCK, FOLLOW, PREFIX
from tests.net.support import TOPIC, Peer, cluster, joined_cluster, now_ms, until

OTHER = "test/other"


def revocation(author: Peer, adapter: Verified[Manifest], reason: str = "spoilt") -> Verified[Revocation]:
    key = author.identity.public_key
    return sign(Revocation(manifest=adapter.digest, reason=reason, created_ms=now_ms(), author=key), author.identity)


def average(maker: Peer, *leaves: Verified[Manifest], seed: int = 50) -> Verified[Manifest]:
    """An adapter of `maker` that says it is made of these; its bytes are those of `seed`."""
    plain = maker.make(seed)
    lineage = Lineage(
        recipe=bytes(32),
        method="mean",
        rank=4,
        strength_ppm=1_000_000,
        leaves=tuple(Leaf(id=leaf.digest, weight_ppm=500_000) for leaf in sorted(leaves, key=lambda one: one.digest)),
        previous=None,
        outer=None,
        residual_ppm=0,
        tolerance_ppm=0,
    )
    signed = sign(msgspec.structs.replace(plain.record, lineage=lineage, name="average"), maker.identity)
    files = {entry.path: maker.registry.blobs.path(entry.sha256) for entry in signed.record.files}
    assert maker.registry.admit(signed.envelope, files, origin="averaged").verdict == "admitted"
    return signed


async def decide(peer: Peer, subject: str, verdict: str) -> None:
    kind = "author" if subject.startswith("key_") else "peer"
    row = Trust(subject=subject, kind=kind, verdict=verdict, note="", auto_update=False, since=now_ms())
    peer.registry.local.act(f"trust.{verdict}", put(row), undoable=True)
    peer.registry.people.forget()
    peer.registry.restand()
    await peer.network.trust_changed()


def state(peer: Peer, adapter: Verified[Manifest]) -> str:
    return peer.registry.adapter(adapter.id).state


# ---- revocations -------------------------------------------------------------------------------------------------


async def test_a_revocation_reaches_the_adapter_and_all_that_contains_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        once = average(b, leaf, seed=51)
        twice = average(b, once, seed=52)
        await a.network.tell(revocation(a, leaf))
        told = await b.events.wait("adapter.revoked", id=leaf.id)
        assert set(told["affected"]) == {leaf.id, once.id, twice.id}
        assert {state(b, one) for one in (leaf, once, twice)} == {"quarantined"}
        assert "spoilt" in b.registry.adapter(leaf.id).reason
        assert leaf.id in b.registry.adapter(twice.id).reason
        assert state(a, leaf) == "quarantined"


async def test_it_survives_a_restart_and_a_lost_index(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        once = average(b, leaf)
        await a.network.tell(revocation(a, leaf))
        await b.events.wait("adapter.revoked", id=leaf.id)
        made.stop(b)
        await until(lambda: made.stopped(b), "b has stopped")
        b.registry.close()
        for lost in (False, True):
            if lost:
                for file in b.folder.glob("registry.db*"):
                    file.unlink()
            again = Registry.open(b.folder, now_ms, b.identity.author, {"tiny": tmp_path / "base"})
            assert {again.adapter(one.id).state for one in (leaf, once)} == {"quarantined"}
            told = [known.id for known in again.news.after([TOPIC], 0, "", 10)]
            assert (lost and told == []) or any(id.startswith("rev_") for id in told)
            again.close()


async def test_it_may_come_before_the_adapter(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        leaf = a.make()
        await b.network.tell(revocation(a, leaf))
        await a.network.tell(a.announcement(leaf))
        await b.events.wait("adapter.announced", id=leaf.id)
        said = "revoked by whoever announced it: spoilt"
        assert [row.revoked for row in b.registry.announcements(TOPIC)] == [said], (
            "its author's or not, it is not given"
        )
        with pytest.raises(AdapterRevoked, match="spoilt"):
            await b.network.fetch(leaf.id)
        assert not b.registry.has_adapter(leaf.id)
        assert [row.revoked for row in b.registry.announcements(TOPIC)] == ["revoked by its author: spoilt"]


async def test_that_it_was_revoked_is_told_though_nobody_shows_whose_it_was(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, mallory = await joined_cluster(made, 3)
        leaf, other = a.make(), a.make(seed=1)
        await b.network.tell(revocation(a, leaf))
        await b.network.tell(a.announcement(leaf))
        await b.network.tell(revocation(mallory, other, "says mallory"))
        await b.network.tell(mallory.announcement(other))
        await b.network.tell(a.announcement(other))
        shown = {row.adapter: row.revoked for row in b.registry.announcements(TOPIC)}
        assert shown[leaf.id] == "revoked by whoever announced it: spoilt"
        assert shown[other.id] == "", "who says to have made another's adapter can't take it back"
        with pytest.raises(NoProvider, match=r"nobody gives .* it was revoked by whoever announced it: spoilt"):
            await b.network.fetch(leaf.id, peers=[mallory.network.peer_id])


async def test_who_joins_later_pulls_it_and_an_adapter_announced_again_stays_out(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        leaf = await a.publish()
        await a.network.tell(revocation(a, leaf))
        await b.events.wait("adapter.revoked", id=leaf.id)
        c = await made.start("c")
        await c.network.join(TOPIC)
        await c.events.wait("adapter.revoked", id=leaf.id)
        await a.network.tell(a.announcement(leaf))
        await until(lambda: len(c.registry.announcements(TOPIC)) == 2, "announced again")
        with pytest.raises((AdapterRevoked, NoProvider)):
            await c.network.fetch(leaf.id)
        assert not c.registry.has_adapter(leaf.id)


async def test_nobody_revokes_what_another_made(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, mallory = await joined_cluster(made, 3)
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        forged = revocation(mallory, leaf)
        taken = await mallory.network.tell(forged)
        assert taken.new, "the control: mallory does not know whose it is, and passes it on"
        marker = await mallory.publish(seed=9)
        await b.events.wait("adapter.announced", id=marker.id)
        assert not b.registry.news.has(forged.id)
        assert state(b, leaf) == "admitted"


async def test_an_average_whose_leaf_is_not_here(tmp_path: Path) -> None:
    """Whose the leaf was is told by its manifest, which the peer that tells of the revocation still shows."""
    async with cluster(tmp_path) as made:
        a, b, c = await joined_cluster(made, 3)
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        once = average(b, leaf)
        await b.network.tell(b.announcement(once))
        await c.events.wait("adapter.announced", id=once.id)
        await c.network.fetch(once.id)
        await c.network.tell(revocation(c, leaf, "says c, who has not made it"))
        await a.network.tell(revocation(a, leaf))
        await c.events.wait("adapter.revoked", id=leaf.id, known=True)
        assert state(c, once) == "quarantined"
        assert "says c" not in c.registry.adapter(once.id).reason
        assert not c.registry.has_adapter(leaf.id)


async def test_the_files_of_a_revoked_adapter_are_given_to_nobody(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        (a,) = await joined_cluster(made, 1)
        leaf = await a.publish()
        library = Library(a.registry)
        blob = leaf.record.files[-1].sha256
        assert library.read(leaf.digest, blob, 0, 8)
        await a.network.tell(revocation(a, leaf))
        assert library.read(leaf.digest, blob, 0, 8) is None
        assert library.manifest(leaf.digest) == leaf.envelope, "its manifest proves whose it was"


# ---- equivocation ------------------------------------------------------------------------------------------------


async def equivocate(liar: Peer) -> tuple[Verified[Manifest], Verified[Manifest]]:
    """Two adapters announced with one number, one under each topic."""
    first, second = liar.make(1), liar.make(2)
    one = liar.announcement(first, TOPIC)
    two = sign(msgspec.structs.replace(liar.announcement(second, OTHER).record, seq=one.record.seq), liar.identity)
    await liar.network.tell(one)
    liar.registry.index.execute("DELETE FROM announcement WHERE digest = ?", (one.id,))  # as a liar's code would
    await liar.network.tell(two)
    return first, second


async def test_two_records_with_one_number_are_found_out_and_the_proof_is_passed_on(tmp_path: Path) -> None:
    """X hears one under its topic, Y the other under its own; Z is in both, and tells both."""
    async with cluster(tmp_path) as made:
        liar, x, y, z = [await made.start(name) for name in ("liar", "x", "y", "z")]
        for peer, topics in ((liar, (TOPIC, OTHER)), (x, (TOPIC,)), (y, (OTHER,)), (z, (TOPIC, OTHER))):
            for topic in topics:
                await peer.network.join(topic)
        honest = await z.publish(seed=7)
        await x.events.wait("adapter.announced", id=honest.id)
        await equivocate(liar)
        for peer in (z, x, y):
            told = await peer.events.wait("author.equivocated", author=liar.identity.author)
            assert told["seq"] > 0
            assert peer.registry.people.equivocated(liar.identity.author)
        assert not x.registry.people.equivocated(z.identity.author)


async def test_the_liars_adapters_go_to_quarantine_for_good(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        liar, z = await made.start("liar"), await made.start("z")
        for peer in (liar, z):
            for topic in (TOPIC, OTHER):
                await peer.network.join(topic)
        before = await liar.publish(seed=5)
        await z.events.wait("adapter.announced", id=before.id)
        await z.network.fetch(before.id)
        await equivocate(liar)
        await z.events.wait("author.equivocated", author=liar.identity.author)
        assert state(z, before) == "quarantined"
        assert "contradict" in z.registry.adapter(before.id).reason


# ---- authors and peers -------------------------------------------------------------------------------------------


async def test_nothing_of_a_blocked_author_comes_in(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        old, new = await a.publish(seed=1), await a.publish(seed=2)
        for manifest in (old, new):
            await b.events.wait("adapter.announced", id=manifest.id)
        await b.network.fetch(old.id)
        await decide(b, a.identity.author, BLOCK)
        assert state(b, old) == "quarantined"
        with pytest.raises(AuthorBlocked):
            await b.network.fetch(new.id)
        assert not b.registry.has_adapter(new.id)
        b.registry.undo()
        assert state(b, old) == "admitted"


async def test_a_blocked_peer_is_dropped_and_may_not_come_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        await decide(b, a.network.peer_id, BLOCK)
        await b.events.wait("net.peer.lost", peer=a.network.peer_id)
        with pytest.raises(PeerBlocked):
            await b.network.connect(a.network.addresses()[0])
        with pytest.raises((PeerBlocked, NoProvider)):
            await b.network.fetch("adp_" + "a" * 52, peers=[a.network.peer_id])


async def rotate(peer: Peer, seed: bytes) -> Identity:
    new = Identity.from_seed(seed)
    record = KeyRotation(old=peer.identity.public_key, new=new.public_key, created_ms=now_ms())
    await peer.network.tell(sign(record, peer.identity, new), wait=True)
    peer.identity = new
    peer.registry.become(new.author)
    await peer.network.rekey(new)
    return new


async def test_a_new_key_is_told_loudly_and_inherits_what_was_decided(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        old = a.identity.author
        before = await a.publish(seed=1)
        await b.events.wait("adapter.announced", id=before.id)
        await b.network.fetch(before.id)
        await decide(b, old, FOLLOW)
        new = await rotate(a, b"n" * 32)
        told = await b.events.wait("author.key_changed", old=old, new=new.author)
        assert told["trust"] == "followed"
        assert b.registry.trust(new.author) == b.registry.trust(old) == "followed"
        assert a.registry.trust(old) == "self"
        await until(lambda: a.network.peer_id in {seen.peer for seen in b.network.peers()}, "the new peer is met")
        await a.network.tell(revocation(a, before))
        await b.events.wait("adapter.revoked", id=before.id, known=True)
        assert state(b, before) == "quarantined", "the new key speaks for what the old one signed"


async def test_attestations_let_an_adapter_out(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        a, b, judge = await joined_cluster(made, 3)
        b.registry.local.act("trust.policy", put(Setting(key=PREFIX + "attestations", value="1")))
        await decide(b, judge.identity.author, FOLLOW)
        manifest = await a.publish()
        for peer in (b, judge):
            await peer.events.wait("adapter.announced", id=manifest.id)
        admission = await b.network.fetch(manifest.id)
        assert (admission.verdict, admission.reason) == ("quarantined", "0 of 1 followed authors attest it")
        attestation = Attestation(
            manifest=manifest.digest,
            evaluator=judge.identity.public_key,
            metric="loss",
            value=1_000_000,
            base_value=2_000_000,
            examples=10,
            interval=100_000,
            created_ms=now_ms(),
        )
        await judge.network.tell(sign(attestation, judge.identity))
        await b.events.wait("adapter.attested", id=manifest.id, evaluator=judge.identity.author)
        assert state(b, manifest) == "admitted"


async def test_a_flood_about_unknown_adapters_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchd.registry.news.UNKNOWN_OF_ONE", 3)
    async with cluster(tmp_path) as made:
        a, b = await joined_cluster(made, 2)
        for number in range(5):
            record = Revocation(
                manifest=bytes([number]) * 32, reason="", created_ms=now_ms(), author=a.identity.public_key
            )
            b.registry.news.take(sign(record, a.identity), a.network.peer_id, (TOPIC,))
        assert len(b.registry.news.after([TOPIC], 0, "", 10)) == 3
        leaf = await a.publish()
        await b.events.wait("adapter.announced", id=leaf.id)
        await b.network.fetch(leaf.id)
        await a.network.tell(revocation(a, leaf))
        await b.events.wait("adapter.revoked", id=leaf.id)
        assert state(b, leaf) == "quarantined", "what is here is revoked all the same"
