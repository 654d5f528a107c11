"""Adapters and bases as files on real daemons: out of one node and into another that has no network at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchd.daemon import embedded_base
from orchd.demo.cast import Cast, node_environment
from orchd.demo.node import Node
from orchd.errors import BaseChanged, BundleRefused, OutputExists
from orchd.registry.bases import load
from tests.helpers import RANK, Values, lora_config, write_adapter

TARGETS = ("q_proj", "v_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PEFT folder for the shipped base, as somebody trained it elsewhere."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Values] = {}
    for name, shape in load("demo", embedded_base()).shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            for half, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                values = rng.normal(size=size).astype("<f4") / 100
                tensors[f"base_model.model.{module}.lora_{half}.weight"] = values
    config = lora_config(base_model_name_or_path="/home/ada/secret", target_modules=list(TARGETS))
    return write_adapter(tmp_path / "elsewhere", tensors=tensors, config=config)


def orchctl(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchd.cli.main", *words, "--json"]
    return subprocess.run(
        command, env=node_environment(node.home, settings={}), capture_output=True, text=True, timeout=60, check=False
    )


def test_an_adapter_goes_from_node_to_node_in_a_file(cast: Cast, folder: Path, tmp_path: Path) -> None:
    a = cast.start("A")
    made = a.job("adapter.import", path=str(folder), name="by hand", licence="MIT")
    (row,) = made["adapters"]
    assert (row["state"], row["origin"], row["trust"]) == ("admitted", "imported", "self")
    assert b"/home/ada" not in b"".join(path.read_bytes() for path in (a.home / "data" / "blobs").rglob("*/*"))
    out = orchctl(a, "adapter", "export", "by hand", str(tmp_path))
    assert out.returncode == 0, out.stderr
    path = Path(json.loads(out.stdout)["path"])
    assert path == tmp_path / f"{row['id']}.orchpack"  # "by hand" is no file's name
    assert orchctl(a, "adapter", "export", "by hand", str(path)).returncode == OutputExists.exit_code
    b = cast.start("B", settings={"ORCHD_NET__ENABLED": "false"})
    for new in ([row["id"]], []):
        came = orchctl(b, "adapter", "import", str(path))
        assert came.returncode == 0, came.stderr
        assert json.loads(came.stdout)["new"] == new
    assert b.call("adapter.show", adapter=row["id"])["trust"] == "stranger"
    path.write_bytes(path.read_bytes() + b"\0")
    assert orchctl(b, "adapter", "import", str(path)).returncode == BundleRefused.exit_code


def test_the_same_folder_twice_is_one_adapter(cast: Cast, folder: Path) -> None:
    node = cast.start("A")
    first = orchctl(node, "adapter", "import", str(folder), "--name", "by hand")
    again = orchctl(node, "adapter", "import", str(folder), "--name", "by hand")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert json.loads(first.stdout)["new"] == [row["id"] for row in json.loads(again.stdout)["adapters"]]
    assert json.loads(again.stdout)["new"] == []


def test_what_rots_is_fetched_again(cast: Cast, folder: Path) -> None:
    a = cast.start("A")
    b = cast.start("B", bootstrap=a.address)
    for node in (a, b):
        node.join("e2e/files")
    made = a.job("adapter.import", path=str(folder), name="shared")["adapters"][0]["id"]
    a.publish(made, "e2e/files")
    b.find_and_fetch(made)
    alone = b.job("adapter.import", path=str(folder), name="mine alone", readme=False, description="x")["adapters"][0]
    for blob in (b.home / "data" / "blobs").glob("??/*"):
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    found = b.job("registry.scrub")
    assert made in found["damaged"]
    assert made in found["repaired"]
    assert {row["state"] for row in b.call("adapter.list")["adapters"]} == {"admitted"}
    cast.stop(a)
    for blob in (b.home / "data" / "blobs").glob("??/*"):
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    found = b.job("registry.scrub")
    assert (set(found["damaged"]), found["repaired"]) == ({made, alone["id"]}, [])
    assert b.call("adapter.show", adapter=made)["state"] == "quarantined"
    checked = orchctl(b, "adapter", "verify", made)
    assert checked.returncode == 4
    assert "is not here: fetch or import it again" in checked.stdout


def test_an_added_base_stays_and_is_not_used_once_it_is_another(cast: Cast, tmp_path: Path) -> None:
    node = cast.start("A")
    mine, template = tmp_path / "mine", tmp_path / "mine" / "chat_template.jinja"
    shutil.copytree(embedded_base(), mine)
    added = node.job("base.add", path=str(mine))["base"]
    assert added["fingerprint"] == node.call("base.show", base="demo")["fingerprint"]
    assert orchctl(node, "base", "verify", "mine").returncode == 0
    cast.stop(node)
    node = cast.start("A")
    assert node.call("base.show", base="mine") == added
    before = template.read_text()
    template.write_text("{{ messages }}")
    checked = orchctl(node, "base", "verify", "mine")
    assert checked.returncode == 4
    failed = [check["name"] for check in json.loads(checked.stdout)["checks"] if not check["ok"]]
    assert failed == ["template", "fingerprint"]
    _not_used(node, tmp_path)
    cast.stop(node)
    node = cast.start("A")
    _not_used(node, tmp_path)
    template.write_text(before)
    assert node.call("base.show", base="mine") == added


def _not_used(node: Node, tmp_path: Path) -> None:
    """The base `mine` is told of as another one now, and nothing is trained on it."""
    (absent,) = node.call("base.list")["absent"]
    assert absent["name"] == "mine"
    assert "another one now" in absent["reason"]
    data = tmp_path / "pairs.jsonl"
    row = {"messages": [{"role": "user", "content": "sun"}, {"role": "assistant", "content": "zavo"}]}
    data.write_text(f"{json.dumps(row)}\n" * 20)
    node.import_dataset(data, name="pairs")
    refused = orchctl(node, "train", "start", "pairs", "--base", "mine", "--steps", "1")
    assert refused.returncode == BaseChanged.exit_code
    assert json.loads(refused.stdout)["error"]["code"] == BaseChanged.code
