"""Two real daemons: one publishes averages, the other recomputes them, and fetches leaves to average them again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchd.average.recipe import recipe_digest
from orchd.daemon import embedded_base
from orchd.demo.cast import Cast
from orchd.demo.node import Node
from orchd.errors import LeavesUnknown, RecipeMismatch
from orchd.identity import Identity
from orchd.paths import Paths
from orchd.records import Leaf, Manifest, parse_id, sign
from orchd.records.ids import ADAPTER
from orchd.registry import bundle
from orchd.registry.bases import load
from orchd.registry.blobs import BlobStore
from orchd.registry.manifest_files import ManifestFiles
from tests.helpers import Values, lora_config, write_adapter

TOPIC = "e2e/recipes"
TARGETS, RANK = ("q_proj",), 4


def small_adapter(folder: Path, seed: int) -> Path:
    """A PEFT folder for the shipped base."""
    rng, tensors = np.random.default_rng(seed), dict[str, Values]()
    for name, shape in load("demo", embedded_base()).shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            for half, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                values = (rng.normal(size=size) / 100).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = values
    return write_adapter(folder, tensors=tensors, config=lora_config(r=RANK, target_modules=list(TARGETS)))


def offer(node: Node, made: Path) -> str:
    """Import a folder or a bundle and publish it; its id."""
    (row,) = node.job("adapter.import", path=str(made))["adapters"]
    node.publish(row["id"], TOPIC)
    return str(row["id"])


def lie(node: Node, honest: str, out: Path, ppm: int) -> Path:
    """A bundle with the same average of two, signed by the same author, that gives the first another weight."""
    data = node.home / "data"
    manifest = ManifestFiles(data / "manifests").read(parse_id(honest, ADAPTER)).record
    lineage = manifest.lineage
    assert lineage is not None
    told = zip(lineage.leaves, (ppm, 1_000_000 - ppm), strict=True)
    leaves = tuple(Leaf(id=leaf.id, weight_ppm=weight) for leaf, weight in told)
    digest = recipe_digest(
        [(leaf.id, leaf.weight_ppm) for leaf in leaves],
        method=lineage.method,
        rank=lineage.rank,
        strength_ppm=lineage.strength_ppm,
        dtype=manifest.adapter.dtype,
    )
    lying: Manifest = msgspec.structs.replace(
        manifest, name="lie", lineage=msgspec.structs.replace(lineage, leaves=leaves, recipe=digest), extra={}
    )
    identity = Identity.load_or_create(Paths.from_env({"ORCHD_HOME": str(node.home)}).identity_file)
    blobs = {entry.sha256: BlobStore(data / "blobs").path(entry.sha256) for entry in lying.files}
    bundle.write(out, [sign(lying, identity)], blobs, replace=False)
    return out


def test_a_lying_average_is_refused_by_whoever_has_its_leaves(cast: Cast, tmp_path: Path) -> None:
    a = cast.start("A")
    b = cast.start("B", bootstrap=a.address)
    for node in (a, b):
        node.join(TOPIC)
    leaves = [offer(a, small_adapter(tmp_path / f"leaf-{seed}", seed)) for seed in range(2)]
    honest = a.job("average.start", adapters=leaves, name="honest", method="mean", rank=4)["adapter"]["id"]
    a.publish(honest, TOPIC)
    early, late = (offer(a, lie(a, honest, tmp_path / f"{ppm}.orchpack", ppm)) for ppm in (900_000, 800_000))
    b.find(late)

    b.fetch(early)
    assert b.call("adapter.show", adapter=early)["state"] == "admitted", "without its leaves nobody can tell"
    for leaf in leaves:
        b.fetch(leaf)
    b.wait_event("adapter.recomputed", lambda data: data["id"] == early and not data["holds"])
    shown = b.call("adapter.show", adapter=early)
    assert shown["state"] == "quarantined"
    assert "it is not the average that it says: it is " in shown["reason"]

    b.fetch(honest)
    row = b.call("adapter.show", adapter=honest)
    assert (row["state"], row["recomputed"].split(":")[0]) == ("admitted", "it is their average")
    with pytest.raises(RecipeMismatch, match=r"it is [\d.]+ % off, at most 0.5 % is rounding"):
        b.fetch(late)
    assert late not in {one["id"] for one in b.call("adapter.list")["adapters"]}
    refused = b.wait_event("adapter.refused", lambda data: data["id"] == late)
    assert refused["name"] == "RecipeMismatch"


def test_missing_leaves_are_fetched_or_named(cast: Cast, tmp_path: Path) -> None:
    a = cast.start("A")
    b = cast.start("B", bootstrap=a.address)
    for node in (a, b):
        node.join(TOPIC)
    given = offer(a, small_adapter(tmp_path / "given", 0))
    (kept,) = a.job("adapter.import", path=str(small_adapter(tmp_path / "kept", 1)))["adapters"]
    both = a.job("average.start", adapters=[given, kept["id"]], name="both", method="mean", rank=4)["adapter"]["id"]
    a.publish(both, TOPIC)
    own = offer(b, small_adapter(tmp_path / "own", 2))
    b.find_and_fetch(both)
    wanted = {"adapters": [both, own], "weights": [2, 1], "method": "mean", "licence": "CC0-1.0"}

    with pytest.raises(LeavesUnknown, match=f"1 leaf can't be had: {kept['id']}") as refused:
        b.job("average.start", **wanted)
    assert "--allow-partial" in refused.value.hint
    partial = b.job("average.start", **wanted, allow_partial=True)
    assert partial["missing"] == [kept["id"]]
    told = {leaf["id"]: leaf["weight"] for leaf in partial["adapter"]["lineage"]["leaves"]}
    assert told == {id: pytest.approx(0.5, abs=2e-6) for id in (given, own)}
    record = ManifestFiles(b.home / "data" / "manifests").read(parse_id(partial["adapter"]["id"], ADAPTER)).record
    assert record.extra["average"]["missing"] == [parse_id(kept["id"], ADAPTER)]

    a.publish(kept["id"], TOPIC)
    whole = b.job("average.start", **wanted)
    assert whole["missing"] == []
    told = {leaf["id"]: leaf["weight"] for leaf in whole["adapter"]["lineage"]["leaves"]}
    assert told == {id: pytest.approx(1 / 3, abs=1e-6) for id in (given, kept["id"], own)}
    assert b.job("average.verify", adapter=whole["adapter"]["id"])["holds"]
