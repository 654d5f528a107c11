"""Decisions about authors and peers: whom a text means, what a decision changes, and what undoing tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orchd.cli.nouns.registry import human_undone
from orchd.cli.nouns.trust import human_decided
from orchd.errors import AdapterUnknown, AmbiguousId, NotAdmitted, NotReleasable, SubjectInvalid, SubjectUnknown
from orchd.identity import Identity
from orchd.node import Node
from orchd.records import Attestation, KeyRotation, Manifest, Verified, cosign, sign, verify
from orchd.records.ids import ADAPTER, parse_id
from orchd.registry import lineage, loud
from orchd.registry.local import put
from orchd.registry.local_rows import Deployment, Setting, Trust
from orchd.registry.own import Deployments
from orchd.registry.trust import AUTHOR, BLOCK, FOLLOW
from orchd.rpc import deciding
from orchd.rpc.deciding import subject_of
from orchd.rpc.methods_adapters import adapter_show
from orchd.rpc.methods_node import ADAPTERS
from orchd.rpc.methods_registry import RegistryUndo, registry_undo
from orchd.rpc.methods_training import AdapterNamed, TrainStart, train_start
from orchd.rpc.methods_trust import (
    Followed,
    PolicyChange,
    Subject,
    SubjectNamed,
    trust_block,
    trust_follow,
    trust_list,
    trust_policy,
    trust_remove,
    trust_show,
)
from tests.helpers import ALICE, BOB, MALLORY, Lab, lora_tensors

CAROL, DAVE = (Identity.from_seed(bytes([number] * 32)) for number in (4, 5))
PEER = "12D3KooWHK9J1txvoaXcTNyFsxbn2xQg51FA8xGEa3TpALpKv1kM"
ME = "12D3KooWRBQQ7H1t5qNXG8qa9YjBbL6kB6M5iCUf5oXp5oK8X3uy"


@dataclass
class FakeNetwork:
    peer_id: str = ME
    #: Who was blocked each time when the network read again whom to keep out.
    read: list[list[str]] = field(default_factory=list)
    lab: Any = None

    def peers(self) -> list[Any]:
        return []

    async def trust_changed(self) -> None:
        rows = self.lab.registry.local.all(Trust)
        self.read.append([row.subject for row in rows if row.verdict == BLOCK])


class House:
    """A node of Bob's that has an adapter of Alice's, without daemon or network."""

    def __init__(self, root: Path) -> None:
        self.lab = Lab(root, author=BOB)
        self.theirs = self.lab.admit(self.lab.folder()).id
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.network = FakeNetwork(lab=self.lab)
        self.node = cast(
            Node,
            SimpleNamespace(
                registry=self.lab.registry,
                network=self.network,
                deployments=Deployments(self.lab.registry.local),
                events=SimpleNamespace(emit=lambda kind, data: self.events.append((kind, data))),
                clock=lambda: self.lab.now_ms,
                identity=BOB,
                datasets=SimpleNamespace(get=lambda text: SimpleNamespace(id=text, name=text), list=list),
            ),
        )

    @property
    def name(self) -> str:
        return self.lab.registry.adapter(self.theirs).name

    def rotate(self, old: Identity, new: Identity) -> None:
        self.lab.registry.news.take(
            sign(KeyRotation(old=old.public_key, new=new.public_key, created_ms=self.lab.now_ms), old, new), "peer"
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


# ---- whom a text means -------------------------------------------------------------------------------------------


def test_an_author_is_meant_by_key_by_its_beginning_or_by_an_adapter(house: House) -> None:
    for text in (ALICE.author, ALICE.author[:14], house.theirs, house.theirs[:12], house.name):
        assert subject_of(house.node, text) == (ALICE.author, AUTHOR)
    assert subject_of(house.node, PEER) == (PEER, "peer")
    assert subject_of(house.node, MALLORY.author) == (MALLORY.author, AUTHOR), "a whole key need not be known"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nobody", SubjectInvalid),
        (ALICE.author[:10], SubjectInvalid),
        (MALLORY.author[:14], SubjectInvalid),
        ("adp_nowhere", AdapterUnknown),
    ],
)
def test_a_text_that_means_nobody(house: House, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        subject_of(house.node, text)


def test_the_beginning_of_two_keys_means_neither(house: House) -> None:
    double = ALICE.author[:-4] + "aaaa"
    row = Trust(subject=double, kind=AUTHOR, verdict=FOLLOW, note="", auto_update=False, since=1)
    house.lab.registry.local.act("test", put(row))
    with pytest.raises(AmbiguousId, match=double):
        subject_of(house.node, ALICE.author[:14])


async def test_this_node_itself_is_no_subject(house: House) -> None:
    for subject in (BOB.author, ME):
        with pytest.raises(SubjectInvalid, match="this node itself"):
            await trust_block(house.node, Subject(subject=subject))


# ---- what a decision changes -------------------------------------------------------------------------------------


async def test_a_block_names_adapters_and_deployments_and_undo_tells_the_network(house: House) -> None:
    deployed = Deployment(
        name="us", adapter=house.theirs, target="embedded", state="ready", base="tiny", blob="00" * 32, size=1,
        quantize="F16", parity=None, created=1,
    )  # fmt: skip
    house.node.deployments.put(deployed)
    blocked = await trust_block(house.node, Subject(subject=house.name))
    assert [(one.id, one.state) for one in blocked.changed] == [(house.theirs, "quarantined")]
    assert blocked.deployments == ["us"]
    await trust_block(house.node, Subject(subject=PEER))
    assert house.network.read[-1] == sorted([PEER, ALICE.author])
    undone = await registry_undo(house.node, RegistryUndo())
    assert (undone.act, undone.keys) == ("trust.block", (PEER,))
    assert house.network.read[-1] == [ALICE.author], "an undone block of a peer would hold until the next start"
    undone = await registry_undo(house.node, RegistryUndo())
    assert [(one.id, one.state) for one in undone.changed] == [(house.theirs, "admitted")]
    assert house.events[-1][0] == "trust.changed"


async def test_of_many_adapters_only_some_are_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "MOST_NAMED", 1)
    folder = house.lab.folder("second", tensors=lora_tensors(7))
    house.lab.admit(folder, house.lab.claim(folder, name="second"))
    blocked = await trust_block(house.node, Subject(subject=ALICE.author))
    assert (len(blocked.changed), blocked.changed_in_all) == (1, 2)
    assert "the standing of 1 more" in human_decided(msgspec.to_builtins(blocked))
    undone = await registry_undo(house.node, RegistryUndo())
    assert (len(undone.changed), undone.changed_in_all) == (1, 2)
    assert "the standing of 1 more" in human_undone(msgspec.to_builtins(undone))
    policy = await trust_policy(house.node, PolicyChange(quarantine="strangers"))
    assert (len(policy.changed), policy.changed_in_all) == (1, 2)


def test_what_fell_back_is_named_by_why(house: House) -> None:
    fallen = Deployment(
        name="us", adapter=None, target="embedded", state="rolled_back", base="tiny", blob="00" * 32, size=1,
        quantize="F16", parity=None, created=1, was=house.theirs, reason="it was taken back",
    )  # fmt: skip
    house.node.deployments.put(fallen)
    (line,) = lineage.why(house.lab.registry, house.theirs).went_into
    assert (line.kind, line.id, line.state) == ("deployment", "us", "rolled_back")


async def test_what_is_decided_already_is_nothing_to_undo(house: House) -> None:
    await trust_follow(house.node, Followed(subject=ALICE.author))
    house.lab.now_ms += 1
    await trust_follow(house.node, Followed(subject=ALICE.author))
    await trust_policy(house.node, PolicyChange(quarantine="off"))
    await registry_undo(house.node, RegistryUndo())
    assert (await trust_list(house.node, cast(Any, None))).subjects == []


async def test_a_decision_about_a_new_key_replaces_that_about_the_old_one(house: House) -> None:
    """Else a block of the old key would go on under "is followed"."""
    await trust_block(house.node, Subject(subject=ALICE.author))
    house.rotate(ALICE, MALLORY)
    await trust_follow(house.node, Followed(subject=MALLORY.author))
    assert house.lab.registry.people.level(ALICE.author) == "followed"
    assert [row.subject for row in house.lab.registry.local.all(Trust)] == [MALLORY.author]
    await registry_undo(house.node, RegistryUndo())
    assert house.lab.registry.people.level(MALLORY.author) == "blocked"
    removed = await trust_remove(house.node, SubjectNamed(subject=MALLORY.author))
    assert [(one.id, one.state) for one in removed.changed] == [(house.theirs, "admitted")]
    with pytest.raises(SubjectUnknown):
        await trust_remove(house.node, SubjectNamed(subject=ALICE.author))


async def test_one_author_is_shown_with_all_keys_and_adapters(house: House) -> None:
    await trust_follow(house.node, Followed(subject=ALICE.author, note="a friend"))
    house.rotate(ALICE, MALLORY)
    shown = await trust_show(house.node, SubjectNamed(subject=MALLORY.author))
    assert (shown.level, shown.verdict, shown.now) == ("followed", "follow", MALLORY.author)
    assert shown.keys == [ALICE.author, MALLORY.author]
    assert [one.id for one in shown.adapters] == [house.theirs]
    assert (await trust_show(house.node, SubjectNamed(subject=PEER))).level == "stranger"
    assert (await trust_show(house.node, SubjectNamed(subject=ME))).level == "self"


# ---- quarantine --------------------------------------------------------------------------------------------------


async def test_nothing_is_trained_from_what_is_in_quarantine(house: House) -> None:
    """Else a policy would be got round: what is trained here is this node's own."""
    await trust_policy(house.node, PolicyChange(quarantine="strangers"))
    with pytest.raises(NotAdmitted, match="stranger"):
        await train_start(house.node, TrainStart(dataset="mine", base="tiny", initial=house.theirs))


async def test_a_release_that_is_refused_leaves_nothing_behind(house: House) -> None:
    registry = house.lab.registry
    await trust_policy(house.node, PolicyChange(quarantine="strangers"))
    await trust_block(house.node, Subject(subject=ALICE.author))
    with pytest.raises(NotReleasable, match="blocked"):
        registry.release(house.theirs)
    await trust_remove(house.node, SubjectNamed(subject=ALICE.author))
    assert registry.adapter(house.theirs).state == "quarantined", "the refused release would let it out now"
    registry.release(house.theirs)
    assert registry.adapter(house.theirs).state == "admitted"


# ---- what others say ---------------------------------------------------------------------------------------------


def attestation(house: House, by: Identity) -> Verified[Attestation]:
    record = Attestation(
        manifest=parse_id(house.theirs, ADAPTER), evaluator=by.public_key, metric="loss", value=1_500_000,
        base_value=3_000_000, examples=10, interval=100_000, created_ms=house.lab.now_ms,
    )  # fmt: skip
    return sign(record, by)


async def test_attestations_cosignatures_and_the_new_key_are_shown(house: House) -> None:
    registry = house.lab.registry
    registry.news.take(attestation(house, MALLORY), "peer")
    registry.manifests.write(verify(cosign(registry.manifest(house.theirs).envelope, BOB), Manifest))
    house.rotate(ALICE, CAROL)
    shown = await adapter_show(house.node, AdapterNamed(adapter=house.theirs))
    (told,) = shown.attestations
    assert (told.evaluator, told.trust, told.value, told.base_value) == (MALLORY.author, "stranger", 1.5, 3.0)
    assert shown.cosigners == [BOB.author]
    assert (shown.author, shown.author_now) == (ALICE.author, CAROL.author)


# ---- loud --------------------------------------------------------------------------------------------------------


async def test_a_changed_key_is_told_until_somebody_decides(house: House) -> None:
    registry = house.lab.registry
    house.rotate(CAROL, MALLORY)
    assert loud.warnings(registry) == [], "strangers who have nothing here may do as they like"
    house.rotate(ALICE, DAVE)
    (told,) = loud.warnings(registry)
    assert ALICE.author in told
    assert DAVE.author in told
    await trust_follow(house.node, Followed(subject=DAVE.author))
    assert loud.warnings(registry) == []


def test_two_heirs_are_told_as_a_contradiction(house: House) -> None:
    house.rotate(ALICE, DAVE)
    house.rotate(ALICE, MALLORY)
    (told,) = loud.warnings(house.lab.registry)
    assert told.startswith(f"{ALICE.author} has signed records that contradict each other")


def test_log_lines(house: House) -> None:
    told = {"id": "adp_x", "reason": "a secret", "affected": ["adp_x", "adp_y"]}
    assert loud.warning("adapter.revoked", told).endswith("(a secret): adp_x; here it reaches adp_x, adp_y")
    assert loud.warning("adapter.revoked", told | {"names": ["mine (adp_x)"]}).endswith("here it reaches mine (adp_x)")
    assert loud.warning("adapter.revoked", told | {"affected": []}) == ""
    assert "KEY CHANGED" in loud.warning("author.key_changed", {"old": "a", "new": "b", "trust": "followed"})
    assert "contradict" in loud.warning("author.equivocated", {"author": "a"})
    assert loud.warning("adapter.announced", {}) == ""


def test_the_trash_is_not_counted(house: House) -> None:
    registry = house.lab.registry
    registry.local.act("test", put(Setting(key="policy.quarantine", value="strangers")))
    registry.people.forget()
    registry.restand()
    assert registry.index.read(ADAPTERS) == [(1, 1)]
    registry.remove(house.theirs)
    assert registry.index.read(ADAPTERS) == [(0, 0)]
