"""What a revocation reaches in the lineage, whoever drew its edges, and what is kept of other records."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.identity import Identity
from orchd.records import Announcement, Federation, KeyRotation, Revocation, Verified, sign
from orchd.records.ids import ADAPTER, text_id
from orchd.registry.news import receive
from orchd.registry.rebuild import forget
from orchd.registry.revocation import containing, unproven
from tests.helpers import ALICE, BOB, MALLORY, Lab, manifest


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def edges(lab: Lab, *pairs: tuple[str, str], kind: str = "leaf") -> None:
    """Child and parent each."""
    for child, parent in pairs:
        lab.registry.index.execute("INSERT OR REPLACE INTO edge VALUES (?, ?, ?, 0.5)", (child, parent, kind))


def revoke(lab: Lab, id_digest: bytes, author: Identity = ALICE, reason: str = "") -> Verified[Revocation]:
    record = Revocation(manifest=id_digest, reason=reason, created_ms=lab.now_ms, author=author.public_key)
    return sign(record, author)


def announcement(author: Identity, seq: int, *topics: str, digest: bytes = bytes(32)) -> Verified[Announcement]:
    return sign(
        Announcement(
            manifest=digest, topics=topics, size=1, created_ms=1, base=bytes(32), author=author.public_key, seq=seq
        ),
        author,
    )


def admitted(lab: Lab) -> bytes:
    folder = lab.folder()
    claim = lab.claim(folder)
    assert lab.admit(folder, claim).verdict == "admitted"
    return sign(claim, ALICE).digest


# ---- reach -------------------------------------------------------------------------------------------------------


def test_what_contains_it_through_any_edge(lab: Lab) -> None:
    edges(lab, ("avg", "leaf"))
    edges(lab, ("onward", "avg"), kind="initial")
    edges(lab, ("increment", "onward"), kind="relative_to")
    edges(lab, ("round", "increment"), kind="previous")
    edges(lab, ("aside", "other"), ("leaf", "below"))
    assert containing(lab.registry.index, ["leaf"]) == dict.fromkeys(("avg", "onward", "increment", "round"), ("leaf",))
    assert containing(lab.registry.index, ["leaf", "other"])["aside"] == ("other",)
    assert containing(lab.registry.index, []) == {}


def test_circles_and_forged_parents_end(lab: Lab) -> None:
    edges(lab, ("a", "b"), ("b", "c"), ("c", "a"), ("a", "a"), ("a", "nobody"))
    assert set(containing(lab.registry.index, ["a"])) == {"b", "c"}
    many = [(f"n{i}", f"n{(i * 7 + 1) % 60}") for i in range(60)]
    edges(lab, *many)
    assert set(containing(lab.registry.index, ["n0"])) <= {f"n{i}" for i in range(60)} - {"n0"}


def test_only_the_author_s_word_counts_and_it_is_kept(lab: Lab) -> None:
    digest = admitted(lab)
    id = text_id(ADAPTER, digest)
    assert not lab.registry.news.take(revoke(lab, digest, MALLORY), "peer").new
    assert lab.registry.adapter(id).state == "admitted"
    taken = lab.registry.news.take(revoke(lab, digest, reason="spoilt"), "peer")
    assert (taken.new, taken.events[0][1]["affected"]) == (True, [id])
    assert not lab.registry.news.take(revoke(lab, digest, reason="spoilt"), "peer").new
    assert lab.registry.adapter(id).reason == "revoked by its author: spoilt"
    lab.registry.close()
    for file in (lab.root / "data").glob("registry.db*"):
        file.unlink()
    assert lab.open().adapter(id).reason == "revoked by its author: spoilt"


def test_a_revocation_is_not_undone_or_released(lab: Lab) -> None:
    digest = admitted(lab)
    id = text_id(ADAPTER, digest)
    lab.registry.pin(id)
    lab.registry.news.take(revoke(lab, digest), "peer")
    lab.registry.undo()
    assert lab.registry.adapter(id).state == "quarantined"


def test_whose_a_leaf_was_is_shown_by_its_manifest(lab: Lab) -> None:
    leaf = sign(manifest(name="elsewhere"), ALICE)
    average = text_id(ADAPTER, admitted(lab))
    edges(lab, (average, leaf.id))
    lab.registry.news.take(revoke(lab, leaf.digest, MALLORY, "a lie"), "peer", ("t",))
    lab.registry.news.take(revoke(lab, leaf.digest, ALICE, "the truth"), "peer", ("t",))
    assert lab.registry.adapter(average).state == "admitted"
    assert unproven(lab.registry.index) == [leaf.id]
    assert receive(lab.registry, leaf)
    assert unproven(lab.registry.index) == []
    assert leaf.id in lab.registry.adapter(average).reason
    assert lab.registry.people.revoked() == {leaf.id: "revoked by its author: the truth"}


def test_a_thrown_out_adapter_still_reaches_what_contains_it(lab: Lab) -> None:
    digest = admitted(lab)
    edges(lab, ("avg", text_id(ADAPTER, digest)))
    forget(lab.registry, text_id(ADAPTER, digest))
    lab.registry.news.take(revoke(lab, digest), "peer")
    assert text_id(ADAPTER, digest) in lab.registry.people.revoked()


# ---- the other records -------------------------------------------------------------------------------------------


def test_two_records_with_one_number(lab: Lab) -> None:
    news = lab.registry.news
    one, two = announcement(BOB, 7, "x"), announcement(BOB, 7, "y", digest=b"\1" * 32)
    assert news.take(one, "p").events[0][0] == "adapter.announced"
    taken = news.take(two, "p")
    assert [kind for kind, _ in taken.events] == ["author.equivocated"]
    assert {item.envelope for item in taken.items} == {one.envelope, two.envelope}
    for topic in ("x", "y"):
        assert {known.id for known in news.after([topic], 0, "", 9)} == {one.id, two.id}, "each side gets both"
    assert lab.registry.people.equivocated(BOB.author)
    assert news.take(announcement(BOB, 8, "x"), "p").events[0][0] != "author.equivocated"
    lab.registry.close()
    for file in (lab.root / "data").glob("registry.db*"):
        file.unlink()
    again = lab.open()
    assert again.people.equivocated(BOB.author)
    assert {one.id, two.id} <= {known.id for known in again.news.after(["x", "y"], 0, "", 9)}


def test_a_revocation_goes_where_the_adapter_is_announced_later(lab: Lab) -> None:
    news = lab.registry.news
    digest = admitted(lab)
    news.take(announcement(ALICE, 1, "x", digest=digest), "p")
    signed = revoke(lab, digest)
    news.take(signed, "p")
    assert signed.id not in {known.id for known in news.after(["y"], 0, "", 9)}
    lab.now_ms += 5
    news.take(announcement(BOB, 1, "y", digest=digest), "p")
    for topic in ("x", "y"):
        assert signed.id in {known.id for known in news.after([topic], 0, "", 9)}


def test_a_contested_key_passes_nothing_on(lab: Lab) -> None:
    new, thief = Identity.from_seed(b"n" * 32), Identity.from_seed(b"t" * 32)
    for heir, event in ((new, "author.key_changed"), (thief, "author.equivocated")):
        record = KeyRotation(old=BOB.public_key, new=heir.public_key, created_ms=1)
        assert lab.registry.news.take(sign(record, BOB, heir), "p").events[0][0] == event
    assert lab.registry.people.equivocated(BOB.author)
    assert not lab.registry.people.view().same(BOB.author, new.author)


def test_a_federation_is_passed_on_under_its_topic(lab: Lab) -> None:
    record = Federation(
        topic="x",
        base=bytes(32),
        rounds=3,
        cadence_s=60,
        min_members=2,
        method="mean",
        rank=4,
        created_ms=1,
        author=BOB.public_key,
    )
    signed = sign(record, BOB)
    assert lab.registry.news.take(signed, "p").new
    assert not lab.registry.news.take(signed, "p").new
    assert [known.id for known in lab.registry.news.after(["x"], 0, "", 9)] == [signed.id]


def test_records_from_the_future_are_left_out_but_not_revocations(lab: Lab) -> None:
    late = announcement(BOB, 1, "x").record
    ahead = sign(Announcement(**{f: getattr(late, f) for f in late.__struct_fields__} | {"created_ms": 2**50}), BOB)
    assert not lab.registry.news.take(ahead, "p").new
    digest = admitted(lab)
    lab_far = Revocation(manifest=digest, reason="", created_ms=2**50, author=ALICE.public_key)
    assert lab.registry.news.take(sign(lab_far, ALICE), "p").new
