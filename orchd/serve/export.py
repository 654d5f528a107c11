"""The `export` job: an adapter for other programs, alone or in its base, in the job's folder. Each format is tried.

What is written is read again before it is handed out: a `.pt` file with `weights_only=True`, an ONNX model by
onnxruntime, whose logits are compared with torch's.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchd.errors import AdapterNotMergeable, ExportFailed, WeightsUnreadable
from orchd.jobs.context import JobContext
from orchd.registry import mlx_folder
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.weights import ITEM_SIZE, Tensor
from orchd.serve import ggml
from orchd.serve.build import make
from orchd.serve.gguf_lora import write_gguf_lora
from orchd.serve.lora import Lora
from orchd.serve.specs import ExportResult, ExportSpec
from orchd.serve.weights import Weights

KINDS = {"F32": ggml.F32, "F16": ggml.F16, "BF16": ggml.BF16}
PART = 1 << 20  # numbers of a tensor that are worked on at a time
COPY_BYTES = 8 << 20
ZSTD_LEVEL = 10
ONNX_TOLERANCE = 1e-3
"""Largest difference of a logit between onnxruntime and torch, both in float32: the order of adding; 1e-5 measured."""


class Made(NamedTuple):
    """What a format wrote, and the difference that was found where it was tried."""

    path: Path
    difference: float | None = None


def run(spec: ExportSpec, job: JobContext) -> ExportResult:
    """Raises AdapterNotMergeable, BaseNotSupported, QuantizeRefused, WeightsUnreadable, GgufRefused, ExportFailed."""
    started = time.monotonic()
    made = WRITERS[spec.format](spec, job)
    files = _files(made.path)
    size, sha256 = sum(file.stat().st_size for file in files), digest(made.path)
    plain_size = 0
    if spec.compress:
        plain_size = size
        packed = compress(made.path, job)
        made = Made(packed, made.difference)
        size, sha256 = packed.stat().st_size, digest(packed)
    return ExportResult(
        made=made.path.name,
        format=spec.format,
        quantize=spec.quantize,
        size=size,
        sha256=sha256,
        plain_size=plain_size,
        files=tuple(file.name for file in files),
        difference=made.difference,
        seconds=time.monotonic() - started,
    )


# ---- the formats ------------------------------------------------------------------------------------------------


def _safetensors(spec: ExportSpec, job: JobContext) -> Made:
    """The PEFT folder as it is."""
    source, target = Path(spec.adapter.path), _folder(job)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, target / name)
    return Made(target)


def _mlx(spec: ExportSpec, job: JobContext) -> Made:
    target = _folder(job)
    mlx_folder.to_mlx(Path(spec.adapter.path), target)
    return Made(target)


def _gguf(spec: ExportSpec, job: JobContext) -> Made:
    target = job.workdir / "adapter.gguf"
    base = Path(spec.gguf or spec.base)
    write_gguf_lora(base, Path(spec.adapter.path), target, name=spec.name, progress=_told(job, "matrices"))
    return Made(target)


def _pytorch(spec: ExportSpec, job: JobContext) -> Made:
    """The adapter's tensors by their PEFT names, and its settings as JSON text: nothing that runs when it is read."""
    import torch
    from safetensors.torch import load_file

    source, target = Path(spec.adapter.path), job.workdir / "adapter.pt"
    tensors: dict[str, Any] = load_file(source / WEIGHTS)
    content = {"adapter_config": (source / CONFIG).read_text(encoding="utf-8"), "state_dict": tensors}
    torch.save(content, target)
    found = torch.load(target, weights_only=True)
    same = found["adapter_config"] == content["adapter_config"] and found["state_dict"].keys() == tensors.keys()
    if not same or not all(torch.equal(found["state_dict"][name], tensor) for name, tensor in tensors.items()):
        raise ExportFailed("the .pt file does not hold what was written")
    return Made(target, 0.0)


def _merged_gguf(spec: ExportSpec, job: JobContext) -> Made:
    target = job.workdir / "model.gguf"
    file = Path(spec.gguf) if spec.gguf else None
    make(Path(spec.base), file, Path(spec.adapter.path), target, spec.name, spec.quantize, job)
    return Made(target)


def _merged_safetensors(spec: ExportSpec, job: JobContext) -> Made:
    target = _folder(job)
    merge_folder(Path(spec.base), Path(spec.adapter.path), target, _told(job, "bytes"))
    return Made(target)


def _onnx(spec: ExportSpec, job: JobContext) -> Made:
    from orchd.serve.onnx import write_onnx

    target = _folder(job)
    difference = write_onnx(Path(spec.base), Path(spec.adapter.path), target, job)
    if not difference <= ONNX_TOLERANCE:
        raise ExportFailed(f"the ONNX model's logits differ by {difference:.1e}, where {ONNX_TOLERANCE:g} are allowed")
    return Made(target, difference)


WRITERS: dict[str, Callable[[ExportSpec, JobContext], Made]] = {
    "safetensors": _safetensors,
    "gguf": _gguf,
    "mlx": _mlx,
    "pytorch": _pytorch,
    "merged-gguf": _merged_gguf,
    "merged-safetensors": _merged_safetensors,
    "onnx": _onnx,
}
"""One for each of `specs.FORMATS`."""


def _folder(job: JobContext) -> Path:
    target = job.workdir / "made"
    target.mkdir()
    return target


def _told(job: JobContext, unit: str) -> Callable[[int, int], None]:
    return lambda done, total: job.progress(done, total, unit)


# ---- a base's folder with the adapter in it ---------------------------------------------------------------------


def merge_folder(base: Path, adapter: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write the folder `base` again into `target` with the adapter folded in, in the dtypes that it has.

    The weights keep their files and their places in them; only what the adapter touches changes. A few megabytes of a
    tensor are in memory. Raises AdapterNotMergeable, WeightsUnreadable, QuantizeRefused for numbers that don't fit.
    """
    from orchd.lm.whole import KEPT

    lora, files = Lora(adapter), sorted(base.glob("*.safetensors"))
    weights = Weights.of_base(base)
    touched = {f"{module}.weight": module for module in lora.modules}
    if strange := sorted(touched.keys() - weights.keys()):
        raise AdapterNotMergeable(f"the adapter changes {touched[strange[0]]}, which the base's files don't hold")
    for name in (*KEPT, "model.safetensors.index.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    done, total = 0, sum(file.stat().st_size for file in files)
    for file in files:
        tensors = sorted(Weights([file]).values(), key=lambda tensor: tensor.start)
        with file.open("rb") as source, (target / file.name).open("wb") as out:
            out.write(source.read(tensors[0].start))
            for tensor in tensors:
                for part in _parts(source, tensor, lora, touched.get(tensor.name)):
                    out.write(part)
                    done += len(part)
                    progress(done, total)
    progress(total, total)


def _parts(source: Any, tensor: Tensor, lora: Lora, module: str | None) -> Any:
    """The bytes of a tensor, changed if it is a module's."""
    source.seek(tensor.start)
    if module is None:
        left = tensor.end - tensor.start
        while left:
            data = source.read(min(left, COPY_BYTES))
            if not data:
                raise WeightsUnreadable(f"{tensor.name}: the file ends within it")
            left -= len(data)
            yield data
        return
    if len(tensor.shape) != 2:
        raise AdapterNotMergeable(f"{module} is no matrix")
    factors, kind = lora.factors(module, tensor.shape), KINDS[tensor.dtype]
    step = max(1, PART // tensor.shape[1])
    for start in range(0, tensor.shape[0], step):
        rows = np.empty((min(step, tensor.shape[0] - start), tensor.shape[1]), np.float32)
        data = source.read(rows.size * ITEM_SIZE[tensor.dtype])
        ggml.dequantize(np.frombuffer(data, np.uint8), kind, rows)
        factors.add_to(rows, start)
        yield ggml.quantize(rows, kind).tobytes()


# ---- digests, compression ---------------------------------------------------------------------------------------


def _files(made: Path) -> list[Path]:
    return sorted(file for file in made.iterdir() if file.is_file()) if made.is_dir() else [made]


def digest(made: Path) -> str:
    """SHA-256 in hexadecimal; of a folder that of the lines that `sha256sum *` prints in it, in the order of names."""
    if made.is_dir():
        lines = "".join(f"{digest(file)}  {file.name}\n" for file in _files(made))
        return hashlib.sha256(lines.encode()).hexdigest()
    with made.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class _Told:
    """A file that tells how much was read of it."""

    def __init__(self, path: Path, job: JobContext) -> None:
        self._file, self._job = path.open("rb"), job
        self._done, self._total = 0, path.stat().st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._done += len(data)
        self._job.progress(self._done, self._total, "bytes")
        return data

    def close(self) -> None:
        self._file.close()


def compress(made: Path, job: JobContext) -> Path:
    """`made` in a zstd file beside it, a folder in a tar file first; it is removed. The same input, the same bytes."""
    import zstandard

    if made.is_dir():
        tar = made.with_name(f"{made.name}.tar")
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
            for file in _files(made):
                about = tarfile.TarInfo(file.name)
                about.size = file.stat().st_size
                with file.open("rb") as opened:
                    archive.addfile(about, opened)
        shutil.rmtree(made)
        made = tar
    packed = made.with_name(f"{made.name}.zst")
    source = _Told(made, job)
    try:
        with packed.open("wb") as out:
            packer: Any = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=job.threads)
            packer.copy_stream(source, out, size=made.stat().st_size)
    finally:
        source.close()
    made.unlink()
    return packed
