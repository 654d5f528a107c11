"""What an adapter is written as for other programs: each format is read by the program that it is for."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from orchd.errors import AdapterNotMergeable, JobCancelled
from orchd.jobs.context import JobContext
from orchd.lm.adapter import load_adapter
from orchd.lm.base import load_base
from orchd.serve import export
from orchd.serve.export import merge_folder, run
from orchd.serve.specs import FORMATS, KEEP, AdapterPath, ExportResult, ExportSpec
from orchd.serve.weights import Weights
from tests.serve import tiny
from tests.serve.test_build import Wire


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    workdir = tmp_path / "work"
    workdir.mkdir()
    monkeypatch.chdir(workdir)
    return JobContext(workdir, 1, Wire())


def exported(job: JobContext, adapter: Path, format: str, **more: Any) -> tuple[Path, ExportResult]:
    spec = ExportSpec(adapter=AdapterPath(id="adp_x", path=str(adapter)), format=format, name="x", **more)
    result = run(spec, job)
    made = job.workdir / result.made
    assert list(job.workdir.iterdir()) == [made]
    return made, result


def logits(base: Path, adapter: Path | None) -> np.ndarray:
    loaded = load_base(base)
    model = load_adapter(loaded, adapter) if adapter else loaded.model
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=torch.tensor([[5, 17, 99, 250]])).logits.numpy()
    return found


def test_every_format_has_a_writer() -> None:
    assert export.WRITERS.keys() == set(FORMATS)


def test_a_peft_folder(job: JobContext, adapter: Path) -> None:
    made, result = exported(job, adapter, "safetensors")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (made / name).read_bytes() == (adapter / name).read_bytes()
    lines = "".join(
        f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(result.files)
    )
    assert result.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert result.size == sum(file.stat().st_size for file in made.iterdir())


def test_a_pt_file_holds_tensors_alone(job: JobContext, adapter: Path) -> None:
    made, result = exported(job, adapter, "pytorch")
    found = torch.load(made, weights_only=True)
    weights = Weights([adapter / "adapter_model.safetensors"])
    assert found["state_dict"].keys() == weights.keys()
    for name in weights:
        np.testing.assert_array_equal(found["state_dict"][name].numpy(), weights.read(name))
    assert json.loads(found["adapter_config"]) == json.loads((adapter / "adapter_config.json").read_text())
    assert result.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()


def test_a_merged_folder_answers_as_base_and_adapter(job: JobContext, tmp_path: Path, adapter: Path) -> None:
    """Of a float32 base, so that nothing is rounded."""
    base = tiny.make_base(tmp_path / "base")
    weights = Weights.of_base(base)
    tiny.write_safetensors(base / "model.safetensors", {name: weights.read(name) for name in weights}, "F32")
    made, _ = exported(job, adapter, "merged-safetensors", base=str(base))
    np.testing.assert_allclose(logits(made, None), logits(base, adapter), atol=1e-4)
    assert np.abs(logits(base, None) - logits(base, adapter)).max() > 0.1
    untouched = "model.layers.0.input_layernorm.weight"
    before, after = Weights.of_base(base), Weights.of_base(made)
    assert before[untouched] == after[untouched]
    assert load_base(made).tokenizer.chat_template == tiny.TEMPLATE


def test_a_merged_folder_keeps_its_dtype(
    job: JobContext, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "PART", 5 * tiny.HIDDEN)
    monkeypatch.setattr(export, "COPY_BYTES", 77)
    made, _ = exported(job, adapter, "merged-safetensors", base=str(base))
    after = Weights.of_base(made)
    assert dict(after) == dict(Weights.of_base(base))
    module = "model.layers.1.mlp.up_proj"
    factors = Weights([adapter / "adapter_model.safetensors"])
    a, b = (factors.read(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
    wanted = Weights.of_base(base).read(f"{module}.weight") + 2 * (b @ a)
    np.testing.assert_allclose(after.read(f"{module}.weight"), wanted, rtol=2**-8)


def test_a_merged_folder_of_another_base(tmp_path: Path, adapter: Path) -> None:
    base = tiny.make_base(tmp_path / "base", num_hidden_layers=1)
    weights = Weights.of_base(base)
    kept = {name: weights.read(name) for name in weights if ".layers.1." not in name}
    tiny.write_safetensors(base / "model.safetensors", kept, "F32")
    (tmp_path / "x").mkdir()
    with pytest.raises(AdapterNotMergeable, match=r"layers\.1"):
        merge_folder(base, adapter, tmp_path / "x", lambda done, total: None)


def test_merged_gguf_of_the_folder_and_of_the_file(job: JobContext, base: Path, adapter: Path, plain: Path) -> None:
    made, result = exported(job, adapter, "merged-gguf", base=str(base), quantize="Q8_0")
    assert result.quantize == "Q8_0"
    made.unlink()
    kept, _ = exported(job, adapter, "merged-gguf", base=str(base), gguf=str(plain), quantize=KEEP)
    assert abs(kept.stat().st_size - plain.stat().st_size) < 100
    assert kept.read_bytes() != plain.read_bytes()


@pytest.mark.parametrize("format", ["pytorch", "mlx"])
def test_compressed(job: JobContext, adapter: Path, tmp_path: Path, format: str) -> None:
    plain, before = exported(job, adapter, format)
    names = sorted(file.name for file in plain.iterdir()) if plain.is_dir() else []
    whole = plain.read_bytes() if plain.is_file() else b""
    export.shutil.rmtree(plain) if plain.is_dir() else plain.unlink()
    made, result = exported(job, adapter, format, compress="zstd")
    assert result.plain_size == before.size
    assert result.size == made.stat().st_size < before.size
    assert result.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()
    content = zstandard.ZstdDecompressor().stream_reader(made.read_bytes()).read()
    if format == "pytorch":
        assert content == whole
    else:
        (tmp_path / "x.tar").write_bytes(content)
        with tarfile.open(tmp_path / "x.tar") as tar:
            assert tar.getnames() == names == ["adapter_config.json", "adapters.safetensors"]
            assert {one.mtime for one in tar} == {0}


def test_a_cancelled_export(job: JobContext, base: Path, adapter: Path) -> None:
    job.cancel()
    with pytest.raises(JobCancelled):
        exported(job, adapter, "merged-safetensors", base=str(base))


@pytest.mark.long
def test_onnx_gives_the_same_logits(job: JobContext, tmp_path: Path) -> None:
    """In onnxruntime, at other sizes than it was made with."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    base = tiny.make_base(tmp_path / "base")
    adapter = tiny.make_adapter(tmp_path / "adapter")
    made, result = exported(job, adapter, "onnx", base=str(base))
    assert result.difference is not None
    assert result.difference < 1e-3
    session = runtime.InferenceSession(str(made / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": np.array([[5, 17, 99, 250]])})
    np.testing.assert_allclose(found, logits(base, adapter), atol=1e-3)
    assert (made / "tokenizer.json").is_file()
