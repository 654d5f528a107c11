"""What a decision reaches is said: by a block, a revocation, a removal, an undo, and by deployments themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from orchd.cli.nouns.adapter import human_removed
from orchd.cli.nouns.adapter_trust import human_revoked
from orchd.cli.nouns.registry import human_undone
from orchd.cli.nouns.trust import human_decided
from orchd.errors import AdapterRevoked, AmbiguousId, NotAdmitted, NothingToUndo, UndoStale
from orchd.identity import Identity
from orchd.node import Node
from orchd.records import Revocation, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import upkeep
from orchd.registry.local_rows import Deployment
from orchd.registry.own import Deployments
from orchd.registry.use import not_admitted
from orchd.rpc.methods_adapters import AdapterPublish, adapter_publish, adapter_remove
from orchd.rpc.methods_registry import RegistryUndo, registry_undo
from orchd.rpc.methods_training import AdapterNamed
from orchd.rpc.methods_trust import Followed, Revoke, Subject, adapter_revoke, trust_block, trust_follow
from tests.helpers import ALICE, BOB, MALLORY, Lab, lora_tensors
from tests.rpc.test_deciding import ME, PEER


class FakeNetwork:
    peer_id = ME

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.told = 0
        self.connected: list[str] = []

    async def trust_changed(self) -> None:
        pass

    async def tell(self, signed: Any) -> None:
        self.told += 1
        self.lab.registry.news.take(signed, "")

    def peers(self) -> list[Any]:
        return [SimpleNamespace(peer=peer) for peer in self.connected]


class House:
    """A node of `me` that has an adapter of Alice's."""

    def __init__(self, root: Path, me: Identity) -> None:
        self.lab = Lab(root, author=me)
        self.theirs = self.admit("theirs", 1)
        self.network = FakeNetwork(self.lab)
        self.node = cast(Any, Node.__new__(Node))
        self.node.registry, self.node.network = self.lab.registry, self.network
        self.node.deployments = Deployments(self.lab.registry.local)
        self.node.datasets = SimpleNamespace(list=list)
        self.node.deploying = SimpleNamespace(shown_before=lambda row: None)
        self.node.target = lambda kind: SimpleNamespace(asked=lambda name: "")
        self.node.events = SimpleNamespace(emit=lambda kind, data: None)
        self.node.clock, self.node.identity = lambda: self.lab.now_ms, me

    def admit(self, name: str, number: int, by: Identity = ALICE) -> str:
        self.lab.now_ms += 1000
        folder = self.lab.folder(f"n{number}", tensors=lora_tensors(number))
        claim = self.lab.claim(folder, name=name, author=by.public_key)
        return self.lab.admit_signed(sign(claim, by), folder).id

    def contains(self, child: str, parent: str) -> None:
        self.lab.registry.index.execute("INSERT INTO edge VALUES (?, ?, 'leaf', 0.5)", (child, parent))

    def deploy(self, name: str, adapter: str | None, **more: Any) -> None:
        fields: dict[str, Any] = {
            "state": "ready",
            "base": "tiny",
            "blob": "00" * 32,
            "size": 1,
            "quantize": "F16",
            "parity": None,
        }
        row = Deployment(name=name, adapter=adapter, target="embedded", created=1, **(fields | more))
        self.node.deployments.put(row)

    def revoke(self) -> None:
        """Alice does."""
        digest = parse_id(self.theirs, ADAPTER)
        record = Revocation(manifest=digest, reason="", created_ms=self.lab.now_ms, author=ALICE.public_key)
        self.lab.registry.news.take(sign(record, ALICE), "peer")

    async def note(self, name: str) -> str:
        row = await self.node.deployment_row(self.node.deployments.get(name))
        return cast(str, row.note)


@pytest.fixture
def bobs(tmp_path: Path) -> House:
    return House(tmp_path, BOB)


@pytest.fixture
def alices(tmp_path: Path) -> House:
    return House(tmp_path, ALICE)


def plain(result: Any) -> Any:
    return msgspec.to_builtins(result)


# ---- deployments say who answers ---------------------------------------------------------------------------------


async def test_a_lifted_block_is_not_told_as_one_that_holds(bobs: House) -> None:
    await trust_block(bobs.node, Subject(subject=ALICE.author))
    bobs.deploy("us", None, state="rolled_back", was=bobs.theirs, reason="its author was blocked then")
    assert "theirs" in await bobs.note("us")
    assert "is blocked here" in await bobs.note("us")
    undone = await registry_undo(bobs.node, RegistryUndo())
    assert undone.deployments == ["us"]
    assert "still with the plain base, until `orchctl deploy` is run again: us" in human_undone(plain(undone))
    assert "blocked" not in await bobs.note("us")
    assert f"`orchctl deploy {bobs.theirs} --name us` puts it back" in await bobs.note("us")


async def test_removing_what_is_deployed_is_told(bobs: House) -> None:
    bobs.deploy("us", bobs.theirs)
    assert await bobs.note("us") == ""
    bobs.admit("theirs", 2)
    gone = await adapter_remove(bobs.node, AdapterNamed(adapter=bobs.theirs))
    assert (gone.name, gone.others, gone.deployments) == ("theirs", 1, ["us"])
    told = human_removed(plain(gone))
    assert bobs.theirs in told
    assert "1 more of this name stay" in told
    assert "us goes on answering with it, until `orchctl deployment remove us`" in told
    assert "was removed here; it goes on answering" in await bobs.note("us")
    upkeep.collect(bobs.lab.registry, empty_trash=True)
    assert f"{bobs.theirs} was removed here" in await bobs.note("us")


# ---- blocks and follows ------------------------------------------------------------------------------------------


async def test_a_key_that_nobody_heard_of_is_told(bobs: House) -> None:
    wrong = await trust_follow(bobs.node, Followed(subject=MALLORY.author))
    assert not wrong.heard_of
    assert "is it written rightly?" in human_decided(plain(wrong))
    again = await trust_follow(bobs.node, Followed(subject=MALLORY.author))
    assert not again.heard_of
    right = await trust_follow(bobs.node, Followed(subject=ALICE.author))
    assert right.heard_of
    assert "written" not in human_decided(plain(right))
    assert not (await trust_block(bobs.node, Subject(subject=PEER))).heard_of
    bobs.network.connected = [PEER]
    assert (await trust_block(bobs.node, Subject(subject=PEER))).heard_of


async def test_a_block_names_what_it_does_not_reach(bobs: House) -> None:
    """An average with their adapter in it stays in use: only a revocation reaches it."""
    ours = bobs.admit("ours", 3, by=BOB)
    bobs.contains(ours, bobs.theirs)
    assert (await trust_block(bobs.node, Subject(subject=MALLORY.author))).containing == 0
    blocked = await trust_block(bobs.node, Subject(subject=ALICE.author))
    assert blocked.containing == 1
    assert "stays in use, deployed too: 1 adapter; `orchctl adapter why" in human_decided(plain(blocked))
    assert bobs.lab.registry.adapter(ours).state == "admitted"


# ---- revocations -------------------------------------------------------------------------------------------------


async def test_a_revocation_can_be_tried_and_is_given_once(alices: House) -> None:
    alices.deploy("us", alices.theirs)
    tried = await adapter_revoke(alices.node, Revoke(adapter="theirs", preview=True))
    assert (tried.revocation, tried.deployments, [one.id for one in tried.affected]) == ("", ["us"], [alices.theirs])
    assert alices.network.told == 0
    assert human_revoked(plain(tried)).startswith("would revoke theirs")
    assert alices.lab.registry.adapter("theirs").state == "admitted"
    done = await adapter_revoke(alices.node, Revoke(adapter="theirs", reason="by mistake"))
    assert done.revocation.startswith("rev_")
    with pytest.raises(AdapterRevoked, match="revoked by its author: by mistake, already"):
        await adapter_revoke(alices.node, Revoke(adapter="theirs"))
    assert alices.network.told == 1


async def test_what_contains_a_revoked_one_names_it(bobs: House) -> None:
    registry, ours = bobs.lab.registry, bobs.admit("ours", 3, by=BOB)
    bobs.contains(ours, bobs.theirs)
    bobs.revoke()
    told = f"it contains theirs ({bobs.theirs}), which its author has revoked"
    assert registry.adapter(ours).reason == told
    assert registry.people.against([ours]) == {ours: told}


async def test_what_keeps_it_out_decides_the_next_step(bobs: House) -> None:
    registry = bobs.lab.registry
    await trust_block(bobs.node, Subject(subject=ALICE.author))
    blocked = not_admitted(registry, registry.adapter("theirs"))
    assert blocked.hint == f"`orchctl trust remove {ALICE.author}` lifts the block."
    await registry_undo(bobs.node, RegistryUndo())
    bobs.revoke()
    with pytest.raises(NotAdmitted) as caught:
        await adapter_publish(bobs.node, AdapterPublish(adapter="theirs", topics=["a/b"]))
    assert "adapter release" not in caught.value.hint
    assert "for good" in caught.value.hint
    with pytest.raises(NotAdmitted) as used:
        bobs.node.check_usable(bobs.theirs)
    assert used.value.message.startswith(f"theirs ({bobs.theirs}) may not be used")
    assert "for good" in used.value.hint


# ---- names and undo ----------------------------------------------------------------------------------------------


def test_versions_of_one_author_are_told_apart_by_their_author(bobs: House) -> None:
    newer = bobs.admit("theirs", 4)
    with pytest.raises(AmbiguousId, match="2 versions of 'theirs' by one author") as caught:
        bobs.lab.registry.resolve("theirs")
    meant = caught.value.hint.split()[0]
    assert bobs.lab.registry.resolve(meant) == newer


async def test_undo_says_what_it_did_not_find(bobs: House) -> None:
    await trust_block(bobs.node, Subject(subject=PEER))
    with pytest.raises(NothingToUndo, match="done to 'nosuch'"):
        await registry_undo(bobs.node, RegistryUndo(what="nosuch"))
    bobs.lab.registry.remove(bobs.theirs)
    upkeep.collect(bobs.lab.registry, empty_trash=True)
    with pytest.raises(UndoStale, match=f"{bobs.theirs} was removed, and the trash was emptied"):
        await registry_undo(bobs.node, RegistryUndo(what=bobs.theirs))
