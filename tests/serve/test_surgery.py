"""An adapter folded into a GGUF file: only what it touches changes, and damaged files are told by their number."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from orchd.errors import AdapterNotMergeable, BaseNotSupported, DiskFull, GgufRefused, JobCancelled
from orchd.registry.gguf_layout import read
from orchd.serve import ggml, surgery
from orchd.serve.gguf import write_gguf
from orchd.serve.gguf_lora import write_gguf_lora
from orchd.serve.surgery import graft
from tests.serve import families, tiny


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, so that K-quants fit."""
    return families.make_base(tmp_path_factory.mktemp("wide") / "base", "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def some(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for queries, keys and the MLP's second matrix alone."""
    folder = families.make_adapter(tmp_path_factory.mktemp("some") / "adapter", wide)
    return families.only(folder, ("q_proj", "k_proj", "down_proj"))


def digests(path: Path) -> dict[str, tuple[int, str]]:
    """By name of a tensor: its type, and what its bytes are."""
    data = path.read_bytes()
    return {t.name: (t.type, hashlib.sha256(data[t.start : t.start + t.size]).hexdigest()) for t in read(path).tensors}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(("quantize", "kind"), [("F32", 0), ("F16", 1), ("Q8_0", 8), ("Q4_K_M", 8)])
def test_only_what_is_touched_changes(wide: Path, some: Path, tmp_path: Path, quantize: str, kind: int) -> None:
    write_gguf(wide, None, tmp_path / "plain", name="plain", quantize=quantize)
    graft(tmp_path / "plain", some, tmp_path / "grafted", threads=2)
    before, after = digests(tmp_path / "plain"), digests(tmp_path / "grafted")
    changed = {name for name in before if before[name] != after[name]}
    ends = ("attn_q.weight", "attn_k.weight", "ffn_down.weight")
    assert changed == {name for name in before if name.endswith(ends)}
    assert len(changed) == 6
    assert {after[name][0] for name in changed} == {kind}
    plain, grafted = read(tmp_path / "plain"), read(tmp_path / "grafted")
    assert list(before) == list(after)
    keys = [
        (tmp_path / name).read_bytes()[layout.keys_start : layout.keys_end]
        for name, layout in (("plain", plain), ("grafted", grafted))
    ]
    assert keys[0] == keys[1]
    write_gguf(wide, some, tmp_path / "merged", name="plain", quantize="F32")
    wanted, found = tensors(tmp_path / "merged"), tensors(tmp_path / "grafted")
    rough = {"F32": 1e-6, "F16": 2e-3, "Q8_0": 2e-2, "Q4_K_M": 6e-2}[quantize]
    for name in changed:
        assert np.abs(wanted[name] - found[name]).max() < rough
        assert np.abs(found[name] - tensors(tmp_path / "plain")[name]).max() > rough


def test_the_bytes_do_not_depend_on_the_threads(wide: Path, some: Path, tmp_path: Path) -> None:
    write_gguf(wide, None, tmp_path / "plain", name="plain", quantize="Q8_0")
    for threads in (1, 2, 3):
        graft(tmp_path / "plain", some, tmp_path / str(threads), threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "3").read_bytes()


def test_without_an_adapter_it_is_a_copy(plain: Path, tmp_path: Path) -> None:
    graft(plain, None, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == plain.read_bytes()


def test_parts_and_copies_of_any_size(
    plain: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in files that are larger than one part, and on systems that copy no ranges."""
    graft(plain, adapter, tmp_path / "whole")
    monkeypatch.setattr(surgery, "PART", 5 * tiny.HIDDEN)
    monkeypatch.setattr(surgery, "COPY_BYTES", 77)
    monkeypatch.delattr("os.copy_file_range", raising=False)
    told: list[tuple[int, int]] = []
    graft(plain, adapter, tmp_path / "parts", threads=2, progress=lambda done, total: told.append((done, total)))
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(tensor.size for tensor in read(plain).tensors)


def test_breaking_off_leaves_nothing(plain: Path, adapter: Path, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done > total // 2:
            raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        graft(plain, adapter, tmp_path / "x", progress=cancel)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(plain: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
    with pytest.raises(DiskFull, match="5 are free"):
        graft(plain, adapter, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_short_anywhere(plain: Path, adapter: Path, tmp_path: Path) -> None:
    data, end = plain.read_bytes(), read(plain).begin
    last = max(tensor.start + tensor.size for tensor in read(plain).tensors)
    for length in (0, 3, 4, 20, 60, end // 2, end - 1, end, end + 1000, last - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(GgufRefused):
            graft(tmp_path / "cut", adapter, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (4, "<I", 9),  # version
        (8, "<Q", 2**60),  # tensors
        (8, "<Q", 0),
        (16, "<Q", 2**60),  # keys
        (24, "<Q", 2**62),  # the first key's length
    ],
)
def test_counts_and_lengths_that_are_lies(
    plain: Path, adapter: Path, tmp_path: Path, at: int, form: str, value: int
) -> None:
    data = bytearray(plain.read_bytes())
    struct.pack_into(form, data, at, value)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(GgufRefused):
        graft(tmp_path / "bad", adapter, tmp_path / "x")


@pytest.mark.parametrize("field", ["offset", "type", "shape", "dimensions"])
def test_tensors_that_lie_elsewhere(plain: Path, adapter: Path, tmp_path: Path, field: str) -> None:
    """The second tensor's entry: its offset points into the first one, or its size is another."""
    data = bytearray(plain.read_bytes())
    name = b"blk.0.attn_q.weight"
    entry = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    assert struct.unpack_from("<I", data, entry) == (2,)
    at, form, value = {
        "dimensions": (entry, "<I", 7),
        "shape": (entry + 4, "<Q", 2**40),
        "type": (entry + 20, "<I", 12),
        "offset": (entry + 24, "<Q", 0),
    }[field]
    struct.pack_into(form, data, at, value)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(GgufRefused):
        graft(tmp_path / "bad", adapter, tmp_path / "x")


def test_files_and_adapters_that_do_not_go_together(plain: Path, wide: Path, some: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotMergeable, match="256"):
        graft(plain, some, tmp_path / "x")
    writer = gguf.GGUFWriter(tmp_path / "other", "phi3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BaseNotSupported, match="phi3"):
        graft(tmp_path / "other", some, tmp_path / "x")
    dora = families.make_adapter(tmp_path / "dora", wide, use_dora=True)
    write_gguf(wide, None, tmp_path / "wide", name="wide", quantize="F16")
    with pytest.raises(AdapterNotMergeable, match="use_dora"):
        graft(tmp_path / "wide", dora, tmp_path / "x")


def test_numbers_that_do_not_fit(wide: Path, tmp_path: Path) -> None:
    write_gguf(wide, None, tmp_path / "plain", name="plain", quantize="F16")
    huge = families.make_adapter(tmp_path / "huge", wide, lora_alpha=1e9)
    with pytest.raises(BaseNotSupported, match="F16"):
        graft(tmp_path / "plain", huge, tmp_path / "x")


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of random scales that are no numbers
@pytest.mark.parametrize("kind", sorted({*ggml.NAMES} - {0, 1, 30}))
def test_every_type_can_be_read(kind: int) -> None:
    """As gguf-py reads it, whatever the bytes are."""
    form = gguf.GGMLQuantizationType(kind)
    block, length = gguf.GGML_QUANT_SIZES[form]
    data = np.random.default_rng(kind).integers(0, 256, 4 * length, np.uint8)
    found = np.empty(4 * block, np.float32)
    ggml.dequantize(data, kind, found)
    wanted = gguf.quants.dequantize(data, form)
    np.testing.assert_allclose(found, wanted.reshape(-1), rtol=1e-6)


def test_a_lora_file_is_the_same_bytes_each_time(wide: Path, some: Path, tmp_path: Path) -> None:
    write_gguf(wide, None, tmp_path / "plain", name="plain", quantize="Q4_K_M")
    for name, base in (("a", wide), ("b", wide), ("c", tmp_path / "plain")):
        write_gguf_lora(base, some, tmp_path / name, name="some")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "a")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == 0
    assert len(reader.tensors) == 2 * 6


def test_a_lora_file_holds_plain_products_alone(wide: Path, tmp_path: Path) -> None:
    for number, config in enumerate(({"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]})):
        adapter = families.make_adapter(tmp_path / str(number), wide, **config)
        with pytest.raises(AdapterNotMergeable, match=next(iter(config))):
            write_gguf_lora(wide, adapter, tmp_path / "x", name="x")
    assert not (tmp_path / "x").exists()
