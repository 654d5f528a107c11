"""One tiny base, one adapter and their GGUF for all tests of serving."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchd.importers.conversation import Message
from orchd.jobs.context import JobContext
from orchd.serve.build import run
from orchd.serve.gguf import write_gguf
from orchd.serve.specs import AdapterPath, BuildSpec
from orchd.serve.targets import Artefact
from tests.serve import tiny
from tests.serve.deployable import Deployable
from tests.serve.test_build import Wire


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("serve") / "base")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_adapter(tmp_path_factory.mktemp("serve") / "adapter")


@pytest.fixture(scope="session")
def merged(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and adapter in one GGUF, F32."""
    path = tmp_path_factory.mktemp("gguf") / "merged.gguf"
    write_gguf(base, adapter, path, name="merged", quantize="F32")
    return path


@pytest.fixture(scope="session")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base alone in a GGUF, F16."""
    path = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    write_gguf(base, None, path, name="plain", quantize="F16")
    return path


@pytest.fixture(scope="session")
def deployable(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployable:
    """A proven GGUF with its golden answers."""
    workdir = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(workdir)
    try:
        prompts = tuple((Message("user", text),) for text in ("copy: cat sun key", "the quick brown fox"))
        named = AdapterPath(id="adp_x", path=str(adapter))
        spec = BuildSpec(base=str(base), adapter=named, name="x", quantize="F32", prompts=prompts, max_new_tokens=6)
        built = run(spec, JobContext(workdir, 1, Wire()))
    finally:
        os.chdir(before)
    assert built.parity.held, built.parity.detail
    path = workdir / built.gguf
    return Artefact(path=path, sha256=built.sha256, size=built.size, template=built.template), built.golden
