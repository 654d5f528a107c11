"""The targets of one node, by kind, as its settings say where they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchd.config import ServeConfig
from orchd.serve.embedded import EmbeddedRuntime
from orchd.serve.embedded_target import EmbeddedTarget
from orchd.serve.folder import FolderTarget, default_folder
from orchd.serve.llama_server import LlamaServerTarget
from orchd.serve.ollama import OllamaTarget
from orchd.serve.targets import DeployTarget
from orchd.serve.vllm import VllmTarget


def targets(config: ServeConfig, runtime: EmbeddedRuntime, environ: Mapping[str, str]) -> dict[str, DeployTarget]:
    """Nothing is asked or opened yet."""
    found: tuple[DeployTarget, ...] = (
        EmbeddedTarget(runtime),
        OllamaTarget(config.ollama or environ.get("OLLAMA_HOST", "")),
        FolderTarget(Path(config.models_folder) if config.models_folder else default_folder(Path.home())),
        VllmTarget(config.vllm),
        LlamaServerTarget(config.llama_server, Path(config.llama_presets) if config.llama_presets else None),
    )
    return {target.kind: target for target in found}
