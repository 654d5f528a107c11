"""The embedded runtime as a target: the default, where nothing else is installed."""

from __future__ import annotations

from collections.abc import Sequence

from orchd.serve.embedded import EmbeddedRuntime
from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact, Capabilities, Deployed, Progress, Verdict, no_progress, verdict


class EmbeddedTarget:
    """Deploys into the worker process that `orchctl chat` asks."""

    kind = "embedded"
    stages = True

    def __init__(self, runtime: EmbeddedRuntime) -> None:
        self._runtime = runtime

    def check_name(self, name: str) -> None:
        """Every deployment's name is one here."""

    def full_name(self, name: str) -> str:
        return name

    def asked(self, name: str) -> str:
        return f"orchctl chat {name}"

    async def probe(self) -> Capabilities:
        return Capabilities(kind=self.kind, address="", version="")

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        """Raises ModelNotLoaded when llama.cpp does not take the file; what was served before still is."""
        await self._runtime.put(name, artefact.path)
        progress(artefact.size, artefact.size, "bytes")
        return Deployed(name=name, digest=artefact.sha256, size=artefact.size)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        """Ask for the proven answers; the engine's settings are those of the proof."""
        answers = []
        for proven in golden:
            completion = self._runtime.complete(name, proven.messages, max_tokens=proven.max_new_tokens)
            answers.append((proven.answer, await completion.text()))
        return verdict(answers, "answers")

    async def list(self) -> tuple[Deployed, ...]:
        return tuple(
            Deployed(name=name, digest="", size=self._runtime.path(name).stat().st_size) for name in self._runtime.names
        )

    async def remove(self, name: str) -> None:
        await self._runtime.remove(name)
