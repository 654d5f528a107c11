"""The `deploy` job: base + adapter → one GGUF in the work folder, with the proof that it answers the same."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from orchd.jobs.context import JobContext
from orchd.serve.engine import Engine
from orchd.serve.gguf import require_known, write_gguf
from orchd.serve.gguf_lora import write_gguf_lora
from orchd.serve.parity import compare, tolerance_of
from orchd.serve.reference import Expected, answer_all
from orchd.serve.specs import DEFAULT_PROMPTS, KEEP, BuildResult, BuildSpec, Golden, Layer, Parity
from orchd.serve.surgery import graft

GGUF_NAME, LAYER_NAME = "model.gguf", "adapter.gguf"


def run(spec: BuildSpec, job: JobContext) -> BuildResult:
    """Write the GGUF and prove it. A proof that fails is a result (`parity.held` is False), not an error.

    The current folder must be the job's own (`orchd.worker` sees to it). Raises QuantizeRefused, BaseNotSupported,
    AdapterNotMergeable, WeightsUnreadable, GgufRefused, ModelNotLoaded.
    """
    started = time.monotonic()
    target = job.workdir / GGUF_NAME
    base, adapter = Path(spec.base), Path(spec.adapter.path) if spec.adapter else None
    gguf = Path(spec.gguf) if spec.gguf else None
    layer = _layer(job, gguf or base, adapter) if spec.layer and adapter else None
    # a base that adapters share has no deployment's name in it: it is the same file for all of them
    folded, name = adapter if layer is None else None, base.name if spec.layer else spec.name
    make(base, gguf, folded, target, name, spec.quantize, job)
    job.log(f"{target.name}: {target.stat().st_size} bytes in {time.monotonic() - started:.1f} s")
    prompts = spec.prompts or DEFAULT_PROMPTS
    reference = answer_all(base, adapter, prompts, spec.max_new_tokens, job.threads)
    job.check()
    parity, golden = _prove(spec, job, target, reference.expected, layer)
    job.log(parity.detail)
    return BuildResult(
        gguf=GGUF_NAME,
        size=target.stat().st_size,
        sha256=_digest(target),
        quantize=spec.quantize,
        parity=parity,
        golden=golden,
        template=reference.go_template,
        seconds=time.monotonic() - started,
        layer=None if layer is None else Layer(gguf=LAYER_NAME, size=layer.stat().st_size, sha256=_digest(layer)),
    )


def _layer(job: JobContext, base: Path, adapter: Path) -> Path:
    """The adapter by itself."""
    target = job.workdir / LAYER_NAME
    write_gguf_lora(
        base,
        adapter,
        target,
        name=adapter.name,
        progress=lambda done, total: job.progress(done, total, "modules"),
    )
    return target


def make(
    base: Path, gguf: Path | None, adapter: Path | None, target: Path, name: str, quantize: str, job: JobContext
) -> None:
    """The merged file: from the folder `base`, or with KEEP from the base's own file `gguf`. Raises as `run`."""
    if quantize == KEEP and gguf is not None:
        graft(
            gguf,
            adapter,
            target,
            threads=job.threads,
            progress=lambda done, total: job.progress(done, total, "bytes"),
        )
        return
    require_known(quantize)
    write_gguf(
        base,
        adapter,
        target,
        name=name,
        quantize=quantize,
        progress=lambda done, total: job.progress(done, total, "tensors"),
    )


def _prove(
    spec: BuildSpec, job: JobContext, target: Path, expected: list[Expected], layer: Path | None
) -> tuple[Parity, tuple[Golden, ...]]:
    engine = Engine(target, threads=job.threads, keep_socket=True, layer=layer)
    try:
        return compare(
            engine,
            expected,
            quantize=spec.quantize,
            max_new_tokens=spec.max_new_tokens,
            tolerance=tolerance_of(target, spec.quantize),
            progress=lambda done, total: job.progress(done, total, "prompts"),
        )
    finally:
        engine.close()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
