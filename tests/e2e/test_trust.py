"""Trust and revocation between real daemons, over their sockets: what an author takes back is out of use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchd.demo.cast import Cast
from orchd.demo.node import Dataset, Node
from orchd.errors import AdapterRevoked, NotAdmitted, OrchdError

TOPIC = "e2e/trust"


def sentences(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"translate: sun {n}"},
                {"role": "assistant", "content": f"zavo {n}"},
            ]
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(node: Node, dataset: Dataset, name: str, steps: int = 1, **more: Any) -> Any:
    return node.job("train.start", dataset=dataset.id, name=name, steps=steps, rank=4, **more)["adapter"]


def pair(cast: Cast, folder: Path) -> tuple[Node, Node, Dataset]:
    """A with a data set, and C who knows A's address."""
    a = cast.start("A")
    c = cast.start("C", bootstrap=a.address)
    for node in (a, c):
        node.join(TOPIC)
    return a, c, a.import_dataset(sentences(folder), name="mine")


def deployment(node: Node, name: str) -> Any:
    return node.call("deployment.show", deployment=name)


def test_revoked_while_it_is_served_and_after_a_restart(cast: Cast, tmp_path: Path) -> None:
    a, c, dataset = pair(cast, tmp_path)
    theirs = train(a, dataset, "theirs")
    a.publish(theirs["id"], TOPIC)
    c.find_and_fetch(theirs["id"])
    own = c.import_dataset(sentences(tmp_path), name="own")
    further = train(c, own, "further", initial=theirs["id"])
    c.deploy(further["id"], name="serving", target="embedded", dataset=None)
    a.revoke(theirs["id"], "not mine to give")
    told = c.wait_event("deployment.rolled_back", lambda data: data["name"] == "serving")
    assert told["adapter"] == further["id"]
    assert "not mine to give" in c.standing(theirs["id"]).reason
    assert theirs["id"] in c.standing(further["id"]).reason
    row = deployment(c, "serving")
    assert (row["adapter"], row["state"], row["was"]) == (None, "rolled_back", further["id"])
    answer = c.ask("serving", "translate: sun 1")
    for force in (False, True):
        with pytest.raises(NotAdmitted):
            c.job("deploy.start", adapter=further["id"], name="again", force=force)
    with pytest.raises(OrchdError):
        c.call("adapter.release", adapter=further["id"])
    cast.stop(c)
    c = cast.start("C", bootstrap=a.address)
    assert {c.standing(one).state for one in (theirs["id"], further["id"])} == {"quarantined"}
    assert c.ask("serving", "translate: sun 1") == answer
    d = cast.start("D", bootstrap=c.address)
    d.join(TOPIC)
    d.wait_event("adapter.revoked", lambda data: data["id"] == theirs["id"])
    with pytest.raises(AdapterRevoked):
        d.fetch(theirs["id"])


def test_blocking_rolls_back_and_undo_lets_in_again(cast: Cast, tmp_path: Path) -> None:
    a, c, dataset = pair(cast, tmp_path)
    theirs = train(a, dataset, "theirs")
    a.publish(theirs["id"], TOPIC)
    c.find_and_fetch(theirs["id"])
    assert c.call("trust.follow", subject=theirs["id"], note="a friend")["subject"] == a.author
    assert c.call("adapter.show", adapter=theirs["id"])["trust"] == "followed"
    c.deploy(theirs["id"], name="serving", target="embedded", dataset=None)
    blocked = c.call("trust.block", subject=a.author)
    assert [(one["name"], one["state"]) for one in blocked["changed"]] == [("theirs", "quarantined")]
    assert blocked["deployments"] == ["serving"]
    c.wait_event("deployment.rolled_back", lambda data: data["name"] == "serving")
    (row,) = c.call("trust.list")["subjects"]
    assert (row["subject"], row["verdict"], row["adapters"]) == (a.author, "block", 1)
    c.call("trust.remove", subject=a.author)
    assert c.standing(theirs["id"]).state == "admitted"
    assert deployment(c, "serving")["state"] == "rolled_back", "nothing is put back by itself"


def test_attesting_and_cosigning_and_policies(cast: Cast, tmp_path: Path) -> None:
    a, c, dataset = pair(cast, tmp_path)
    theirs = train(a, dataset, "theirs", steps=20)
    a.publish(theirs["id"], TOPIC)
    a.call("trust.follow", subject=c.author)
    c.find_and_fetch(theirs["id"])
    exam = c.import_dataset(sentences(tmp_path), name="exam", split="test")
    attested = c.job("adapter.attest", adapter=theirs["id"], dataset=exam.id)
    assert attested["value"] < attested["base_value"]
    assert attested["interval"] > 0
    heard = a.wait_event("adapter.attested", lambda data: data["id"] == theirs["id"])
    assert (heard["evaluator"], heard["trust"]) == (c.author, "followed")
    assert c.call("adapter.cosign", adapter=theirs["id"])["cosigners"] == [c.author]
    assert c.call("adapter.verify", adapter=theirs["id"])["ok"]
    shown = c.call("trust.policy", quarantine="strangers")
    assert [(one["name"], one["state"]) for one in shown["changed"]] == [("theirs", "quarantined")]
    assert c.call("adapter.release", adapter=theirs["id"])["state"] == "admitted"
    assert c.call("trust.policy", quarantine="off", attestations=1)["policies"]["attestations"] == 1


def test_a_new_key_works_and_survives(cast: Cast, tmp_path: Path) -> None:
    a, c, dataset = pair(cast, tmp_path)
    theirs = train(a, dataset, "theirs")
    a.publish(theirs["id"], TOPIC)
    c.find_and_fetch(theirs["id"])
    c.call("trust.follow", subject=a.author)
    rotated = a.call("identity.rotate")
    assert rotated["old"] == a.author
    c.wait_event("author.key_changed", lambda data: data["new"] == rotated["author"])
    (change,) = c.call("trust.list")["key_changes"]
    assert (change["old"], change["trust"]) == (a.author, "followed")
    again = train(a, dataset, "again")
    assert (again["author"], again["trust"]) == (rotated["author"], "self")
    a.publish(again["id"], TOPIC)
    c.find_and_fetch(again["id"])
    assert c.call("adapter.show", adapter=again["id"])["trust"] == "followed"
    cast.stop(a)
    a = cast.start("A")
    assert a.author == rotated["author"]
    assert len(list((a.home).rglob("*.retired-*"))) == 1


def test_followed_authors_are_fetched_and_updates_pass_the_gate(cast: Cast, tmp_path: Path) -> None:
    a, c, dataset = pair(cast, tmp_path)
    c.import_dataset(sentences(tmp_path), name="exam", split="test")
    first = train(a, dataset, "style", steps=20)
    a.publish(first["id"], TOPIC)
    c.call("trust.follow", subject=a.author, auto_update=True)
    c.find_and_fetch(first["id"])
    c.deploy(first["id"], name="serving", target="embedded", dataset=None)
    better = train(a, dataset, "style", steps=60, supersedes=first["id"])
    a.publish(better["id"], TOPIC)
    came = c.wait_event("adapter.admitted", lambda data: data["id"] == better["id"])
    assert came["state"] == "quarantined", "it waits for its test"
    told = c.wait_event("adapter.updated", lambda data: data["id"] == better["id"])
    assert "exam" in told["reason"]
    c.wait_event("deployment.ready", lambda data: deployment(c, "serving")["adapter"]["id"] == better["id"])
    worse = train(a, dataset, "style", steps=1, supersedes=better["id"])
    a.publish(worse["id"], TOPIC)
    c.wait_event("adapter.update_refused", lambda data: data["id"] == worse["id"])
    between = train(a, dataset, "style", steps=5, supersedes=worse["id"])  # better than that, worse than what is in use
    a.publish(between["id"], TOPIC)
    refused = c.wait_event("adapter.update_refused", lambda data: data["id"] == between["id"])
    assert (refused["instead_of"], "exam" in refused["reason"]) == (better["id"], True)
    assert c.standing(worse["id"]).state == c.standing(between["id"]).state == "quarantined"
    assert c.standing(first["id"]).state == c.standing(better["id"]).state == "admitted"
    other = train(a, dataset, "other")
    a.publish(other["id"], TOPIC)
    c.find(other["id"])
    c.call("trust.policy", auto_fetch="followed")
    c.wait_event("adapter.admitted", lambda data: data["id"] == other["id"])
