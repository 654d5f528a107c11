"""One tiny base, one adapter and their GGUF for all tests of serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.serve.gguf import write_gguf
from tests.serve import tiny


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
