"""A vLLM server: adapters are loaded and unloaded while it runs, from PEFT folders on the machine that it runs on.

It has to be started with `--enable-lora`, `--max-lora-rank` of the adapter's or more, and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, on the base of the adapter. What is loaded so is gone when it is restarted:
`orchctl deployment verify` says so, deploying again brings it back. Never tried against a real vLLM (no GPU here): see
`tests/contracts/README.md`. Source: vLLM docs/features/lora.md, entrypoints/serve/lora/api_router.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchd.errors import DeploymentUnknown, TargetNameRefused, TargetRefused
from orchd.serve.http_target import HttpTarget
from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact, Capabilities, Deployed, Progress, Verdict, no_progress, verdict


class _Card(msgspec.Struct, frozen=True):
    """`parent` is the base of an adapter, `root` its folder."""

    id: str
    root: str | None = None
    parent: str | None = None


class VllmTarget(HttpTarget):
    """The server at `address`. Use it under trio."""

    kind, product = "vllm", "vLLM"
    stages = True

    def check_name(self, name: str) -> None:
        """Raises TargetNameRefused for a name that is a file's place to vLLM."""
        if name.startswith(".") or "/" in name:
            raise TargetNameRefused(f"vLLM would take {name[:80]!r} for a place", field="name")

    def full_name(self, name: str) -> str:
        return name

    def asked(self, name: str) -> str:
        return f'"model": "{name}" at {self.address}/v1'

    async def probe(self) -> Capabilities:
        found = await self.call("GET", "/version")
        return Capabilities(kind=self.kind, address=self.address, version=str(found.get("version", "unknown")))

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        """Raises TargetRefused for the plain base, which it serves already, and with vLLM's words."""
        if artefact.adapter is None:
            hint = "Ask vLLM for its base by the base's own name."
            raise TargetRefused("vLLM serves the plain base already; only adapters are put there", hint=hint)
        there = any(card.id == name for card in await self._cards())
        request: dict[str, Any] = {"lora_name": name, "lora_path": str(artefact.adapter)}
        await self.text("POST", "/v1/load_lora_adapter", request | ({"load_inplace": True} if there else {}))
        progress(artefact.size, artefact.size, "bytes")
        return Deployed(name=name, digest="", size=artefact.size)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        """Asks the proven prompt as it is (engine, weights), then as a chat (the template)."""
        raw, chat = [], []
        for one in golden:
            common = {"model": name, "max_tokens": one.max_new_tokens, "temperature": 0}
            found = await self.call("POST", "/v1/completions", {**common, "prompt": one.rendered})
            raw.append((one.answer, _choice(found, "text")))
            messages = [{"role": m.role, "content": m.content} for m in one.messages]
            found = await self.call("POST", "/v1/chat/completions", {**common, "messages": messages})
            chat.append((one.answer, _choice(found, "message")))
        engine = verdict(raw, "answers to the proven prompt")
        return verdict(chat, "chat answers") if engine.held else engine

    async def list(self) -> tuple[Deployed, ...]:
        return tuple(Deployed(name=card.id, digest="", size=0) for card in await self._cards())

    async def remove(self, name: str) -> None:
        if all(card.id != name for card in await self._cards()):
            raise DeploymentUnknown(f"{self.address} holds no adapter {name}", field="name")
        await self.text("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def _cards(self) -> tuple[_Card, ...]:
        """The adapters: the base's own card has no parent."""
        found = await self.call("GET", "/v1/models")
        try:
            cards = msgspec.convert(found.get("data"), tuple[_Card, ...])
        except msgspec.ValidationError as error:
            raise TargetRefused(f"the list of models at {self.address} can't be read: {error}") from error
        return tuple(card for card in cards if card.parent is not None)


def _choice(found: dict[str, Any], part: str) -> str:
    """The text of the first choice; empty where the answer has none."""
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    text = first.get(part) if isinstance(first, dict) else None
    if isinstance(text, dict):
        text = text.get("content")
    return str(text or "")
