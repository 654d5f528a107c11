"""Does the node keep its bases over restarts, notice other files, and know one base under two fingerprints?"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchd.errors import (
    BaseChanged,
    BaseLinkRefused,
    BaseUnknown,
    NothingToUndo,
    OrchdError,
    ParamsInvalid,
    TensorsRefused,
)
from orchd.records import parse_id, text_id
from orchd.records.ids import BASE
from orchd.registry import bases, gguf_base, gguf_layout
from orchd.registry.index import Index
from orchd.registry.journal import Journal
from orchd.registry.known_bases import KnownBases, read
from orchd.registry.local import Local
from tests.helpers import NOW_MS, TEMPLATE, Safetensors, Values, base_tensors, write_base

GGUF_NAMES = {hub: name for name, hub in gguf_base._NAMES.items()}


class Node:
    """A data folder whose bases are opened again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bases = self.open()

    def open(self) -> KnownBases:
        self.root.mkdir(exist_ok=True)
        self.index = Index(self.root / "registry.db")
        self.local = Local(Journal(self.root / "journal.log", NOW_MS), self.index, lambda: NOW_MS)
        return KnownBases(self.local, lambda: NOW_MS)

    def close(self) -> None:
        self.local.close()
        self.index.close()

    def restart(self, *, lose_index: bool = False) -> KnownBases:
        self.close()
        if lose_index:
            for path in self.root.glob("registry.db*"):
                path.unlink()
        self.bases = self.open()
        return self.bases


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "data")
    yield node
    node.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def write_gguf(path: Path, tensors: dict[str, Values] | None = None, template: str = TEMPLATE, **more: Any) -> Path:
    """The helper's base as `orchd.serve` would write it, F16."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in ({"name": "tiny", "description": "a"} | more).items():
        writer.add_string(f"general.{key}", value)
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_chat_template(template)
    for name, values in (base_tensors() if tensors is None else tensors).items():
        writer.add_tensor(_gguf_name(name), values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name):
        return f"blk.{match[1]}.{GGUF_NAMES[match[2]]}.weight"
    return f"{GGUF_NAMES[name.removesuffix('.weight')]}.weight"


# ---- kept ----------------------------------------------------------------------------------------------------


def test_an_added_base_is_here_after_a_restart_and_after_the_loss_of_the_index(node: Node, folder: Path) -> None:
    base = node.bases.add("mine", folder)
    assert (base.name, base.form, base.path) == ("mine", "folder", folder)
    for lose_index in (False, True):
        again = node.restart(lose_index=lose_index)
        assert [(b.name, b.fingerprint) for b in again.all()] == [("mine", base.fingerprint)]
        assert again.get("mine").digest == again.get(base.fingerprint).digest == base.digest
        assert again.get(base.fingerprint[:12]).digest == base.digest
        found = again.of(base.digest)
        assert found is not None
        assert found.shapes == base.shapes


def test_a_base_is_found_by_nothing_else(node: Node, folder: Path) -> None:
    base = node.bases.add("mine", folder)
    for text in (
        "",
        "min",
        "base_",
        base.fingerprint[:8],
        base.fingerprint + "a",
        text_id(BASE, bytes(32)),
        str(folder),
    ):
        with pytest.raises(BaseUnknown):
            node.bases.get(text)
    assert node.bases.of(bytes(32)) is None


def test_adding_can_be_undone(node: Node, folder: Path) -> None:
    node.bases.add("mine", folder)
    node.local.undo()
    assert node.bases.all() == []
    with pytest.raises(NothingToUndo):
        node.local.undo()


def test_a_base_without_rights_is_told(node: Node, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(bases, "load", lambda name, path: denied(path / "config.json"))
    with pytest.raises(BaseUnknown, match=r"config\.json can't be read: Permission denied") as told:
        node.bases.add("mine", folder)
    assert told.value.hint.startswith("Check who may read it")


def test_what_is_no_base_that_was_added_is_not_removed_with_a_next_step(node: Node, folder: Path) -> None:
    node.bases.build_in("demo", folder)
    with pytest.raises(ParamsInvalid) as told:
        node.bases.remove("demo")
    assert "`orchctl base add`" in told.value.hint
    with pytest.raises(BaseUnknown) as unknown:
        node.bases.remove("nobody")
    assert "removed by their names" in unknown.value.hint


def test_a_removed_base_is_gone_until_that_is_undone(node: Node, folder: Path) -> None:
    node.bases.add("mine", folder)
    node.bases.remove("mine")
    assert node.restart().all() == []
    assert (folder / "config.json").exists()
    with pytest.raises(BaseUnknown):
        node.bases.remove("mine")
    node.local.undo()
    assert [base.name for base in node.bases.all()] == ["mine"]


@pytest.mark.parametrize("name", ["", "x" * 121, "base_x", "a\nb", "a\x1b[2J", "demo"])
def test_a_name_that_would_mislead_is_refused(node: Node, folder: Path, name: str) -> None:
    node.bases.build_in("demo", folder)
    with pytest.raises(ParamsInvalid):
        node.bases.add(name, folder)
    assert [base.name for base in node.bases.all()] == ["demo"]


def test_what_is_no_base_is_not_added(node: Node, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("GGML")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "text"):
        with pytest.raises(BaseUnknown):
            node.bases.add("mine", path)
    assert node.restart().all() == []


# ---- changed -------------------------------------------------------------------------------------------------


def test_a_base_whose_files_are_others_now_is_not_used(node: Node, folder: Path) -> None:
    base = node.bases.add("mine", folder)
    (folder / "model.safetensors").write_bytes(Safetensors.of(base_tensors(seed=9)).file())
    again = node.restart()
    assert again.all() == []
    assert again.of(base.digest) is None
    (absent,) = again.absent()
    assert "another one now" in absent.reason
    with pytest.raises(BaseChanged, match="another one now"):
        again.get("mine")
    other = again.add("mine", folder)
    assert [b.fingerprint for b in again.all()] == [other.fingerprint] != [base.fingerprint]


def test_a_base_that_changes_while_it_is_known_is_not_used_either(node: Node, folder: Path) -> None:
    base = node.bases.add("mine", folder)
    template = (folder / "chat_template.jinja").read_text() if (folder / "chat_template.jinja").exists() else None
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for text in ("mine", base.fingerprint):
        with pytest.raises(BaseChanged, match="another one now"):
            node.bases.get(text)
    assert node.bases.of(base.digest) is None
    if template is None:
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_text(template)
    assert node.bases.get("mine").digest == base.digest


def test_adding_it_once_more_is_no_act(node: Node, folder: Path) -> None:
    node.bases.add("mine", folder)
    node.bases._clock = lambda: NOW_MS + 1
    node.bases.add("mine", folder)
    node.local.undo()
    assert node.bases.all() == []


def test_what_comes_with_orchd_is_not_removed(node: Node, folder: Path) -> None:
    node.bases.build_in("demo", folder)
    with pytest.raises(ParamsInvalid, match="comes with orchd"):
        node.bases.remove("demo")


def test_a_base_that_is_gone_for_a_while_does_not_stop_the_start(node: Node, folder: Path, tmp_path: Path) -> None:
    base = node.bases.add("mine", folder)
    shutil.move(folder, tmp_path / "away")
    again = node.restart()
    assert (again.all(), [absent.name for absent in again.absent()]) == ([], ["mine"])
    assert [part.ok for part in again.verify("mine")[1]] == [False]
    shutil.move(tmp_path / "away", folder)
    assert all(part.ok for part in again.verify("mine")[1])
    assert again.get("mine").digest == base.digest


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), {"template"}),
        (lambda f: (f / "model.safetensors").write_bytes(Safetensors.of(base_tensors(9)).file()), {"weights"}),
        (lambda f: _edit(f / "tokenizer.json", '"ab": 3', '"ab": 4'), {"tokenizer"}),
        (lambda f: _edit(f / "config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'), {"architecture"}),
    ],
)
def test_what_has_changed_is_named(node: Node, folder: Path, change: Any, parts: set[str]) -> None:
    node.bases.add("mine", folder)
    assert all(part.ok for part in node.bases.verify("mine")[1])
    change(folder)
    failed = {part.name for part in node.bases.verify("mine")[1] if not part.ok}
    assert failed == parts | {"fingerprint"}


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ---- GGUF ----------------------------------------------------------------------------------------------------


def test_a_gguf_file_tells_its_shapes_under_the_names_of_adapters(tmp_path: Path, folder: Path) -> None:
    base = read("g", write_gguf(tmp_path / "a.gguf"))
    assert (base.form, base.architecture) == ("gguf", "LlamaForCausalLM")
    assert base.shapes == bases.load("f", folder).shapes
    assert base.parameters == bases.load("f", folder).parameters


def test_how_a_gguf_file_was_made_does_not_matter(tmp_path: Path) -> None:
    before = read("g", write_gguf(tmp_path / "a.gguf")).fingerprint
    backwards = dict(reversed(base_tensors().items()))
    assert read("g", write_gguf(tmp_path / "b.gguf", backwards, description="another")).fingerprint == before


def test_another_gguf_file_is_another_base(tmp_path: Path) -> None:
    before = read("g", write_gguf(tmp_path / "a.gguf"))
    tensors = base_tensors()
    tensors["model.norm.weight"][-1] += 1
    assert read("g", write_gguf(tmp_path / "b.gguf", tensors)).parts["weights"] != before.parts["weights"]
    assert read("g", write_gguf(tmp_path / "c.gguf", template="x")).fingerprint != before.fingerprint
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    assert read("g", write_gguf(tmp_path / "d.gguf", tensors)).parts["tensors"] != before.parts["tensors"]


def test_the_sizes_of_gguf_blocks_are_ggmls() -> None:
    for kind, size in gguf_layout.BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == size


def test_every_cut_of_a_gguf_file_is_refused_with_a_number(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "a.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (*range(0, 400, 3), *range(400, len(whole) - 32, 97)):
        cut.write_bytes(whole[:length])
        with pytest.raises((BaseUnknown, TensorsRefused)):
            read("g", cut)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(4, 900), st.binary(min_size=1, max_size=9))
def test_a_damaged_gguf_file_is_read_or_refused_with_a_number(tmp_path: Path, position: int, piece: bytes) -> None:
    path = tmp_path / "a.gguf"
    whole = path.read_bytes() if path.exists() else write_gguf(path).read_bytes()
    (tmp_path / "b.gguf").write_bytes(whole[:position] + piece + whole[position + len(piece) :])
    with contextlib.suppress(OrchdError):
        read("g", tmp_path / "b.gguf")


# ---- links ---------------------------------------------------------------------------------------------------


def test_a_folder_and_a_gguf_file_are_one_base_once_they_are_linked(node: Node, folder: Path, tmp_path: Path) -> None:
    hub, file = node.bases.add("hub", folder), node.bases.add("file", write_gguf(tmp_path / "a.gguf"))
    assert hub.digest != file.digest
    assert node.bases.same(hub.fingerprint) == {hub.fingerprint}
    node.bases.link("hub", "file")
    for lose_index in (False, True):
        bases_here = node.restart(lose_index=lose_index)
        assert bases_here.same(file.fingerprint) == {hub.fingerprint, file.fingerprint}
        assert bases_here.get(file.fingerprint).name == "file"  # itself first
    shutil.rmtree(folder)
    found = node.restart().of(hub.digest)
    assert found is not None
    assert found.name == "file"
    node.local.undo()
    assert node.bases.of(hub.digest) is None


def test_of_several_linked_bases_a_folder_comes_first(node: Node, folder: Path, tmp_path: Path) -> None:
    elsewhere = text_id(BASE, bytes(32))
    node.bases.add("file", write_gguf(tmp_path / "a.gguf"))
    node.bases.add("hub", folder)
    node.bases.link("file", elsewhere)
    node.bases.link("hub", elsewhere)
    assert node.bases.get(elsewhere).name == "hub"
    assert len(node.bases.same(elsewhere)) == 3
    assert len(node.restart(lose_index=True).same(elsewhere)) == 3


def test_what_needs_a_folder_gets_the_linked_one(node: Node, folder: Path, tmp_path: Path) -> None:
    node.bases.add("file", write_gguf(tmp_path / "a.gguf"))
    hub = node.bases.add("hub", folder)
    with pytest.raises(BaseUnknown, match="needs the Hugging Face folder") as told:
        node.bases.folder("file")
    assert "base link file" in told.value.hint
    node.bases.link("file", "hub")
    for text in ("file", "hub", node.bases.get("file").fingerprint, hub.fingerprint):
        assert node.bases.folder(text).name == "hub"


def test_a_base_can_be_linked_to_several(node: Node) -> None:
    one, two, three, four = (text_id(BASE, bytes([number] * 32)) for number in range(4))
    node.bases.link(one, two)
    node.bases.link(one, three)
    node.bases.link(four, one)
    for text in (one, two, three, four):
        assert node.restart().same(text) == {one, two, three, four}


def test_a_link_that_says_nothing_new_or_nothing_true_is_refused(node: Node, folder: Path, tmp_path: Path) -> None:
    hub = node.bases.add("hub", folder)
    tensors = base_tensors()
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    node.bases.add("shallow", write_gguf(tmp_path / "a.gguf", tensors))
    far, further = (text_id(BASE, bytes([n] * 32)) for n in (1, 2))
    node.bases.link(far, further)
    node.bases.link("hub", further)
    for one, other in (("hub", "hub"), (further, far), (far, "hub"), ("hub", "shallow")):
        with pytest.raises(BaseLinkRefused):
            node.bases.link(one, other)
    with pytest.raises(BaseUnknown):
        node.bases.link("hub", "nobody")
    with pytest.raises(ParamsInvalid):
        node.bases.link("hub", "base_x")
    assert node.bases.same(hub.fingerprint) == {hub.fingerprint, far, further}
    assert parse_id(hub.fingerprint, BASE) == hub.digest


def test_a_base_can_not_be_changed(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        bases.load("a", folder).name = "b"  # type: ignore[misc]
