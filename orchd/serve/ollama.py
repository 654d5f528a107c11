"""Deploy to an Ollama server over HTTP: upload the complete GGUF as a blob, create the model from it, ask it.

This is the one way that every version takes (from 0.34.1 LoRA adapters and create-time quantisation are refused).
`from` is never sent, so the server can't pull anything. Plain httpx: the `ollama` package takes a stream that ends
without `success` for success, and can't skip a blob that is there. httpx is loaded on first use (the idle daemon
stays small); it runs on trio. Source: ollama `server/create.go`, `server/routes.go`, `types/model/name.go` (0.33).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import trio

from orchd.errors import (
    DeploymentUnknown,
    TargetBaseMissing,
    TargetNameRefused,
    TargetRefused,
    TargetStreamBroken,
    TargetVersionRefused,
)
from orchd.registry import Base
from orchd.serve import ollama_base
from orchd.serve.http_target import HttpTarget
from orchd.serve.specs import Golden
from orchd.serve.targets import (
    Artefact,
    Capabilities,
    Carried,
    Deployed,
    Progress,
    Verdict,
    no_progress,
    verdict,
)

if TYPE_CHECKING:
    import httpx

DEFAULT_PORT = 11434
CREATE_SECONDS = 1800.0  # between two words of the server while it copies a large file
UPLOAD_BYTES = 1 << 20
GOLDEN_ASKED = 4  # proven answers that are asked again after the upload

NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
RESERVED_TAGS = ("cloud", "local")
VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
OLDEST = (0, 5, 5)
"""The first that takes `files` at /api/create."""


def check_name(name: str) -> str:
    """`name` as `model:tag`. Raises TargetNameRefused for what Ollama takes for something else or not at all."""
    model, colon, tag = name.partition(":")
    tag = tag if colon else "latest"
    for part in (model, tag):
        if not NAME_PART.fullmatch(part):
            raise TargetNameRefused(f"Ollama takes no model named {name[:200]!r}", field="name")
    if tag.lower() in RESERVED_TAGS or name.lower().endswith("-cloud"):
        raise TargetNameRefused(f"Ollama would send requests for {name!r} to its cloud", field="name")
    return f"{model}:{tag}"


def address_of(host: str) -> str:
    """OLLAMA_HOST as the server itself reads it → URL. An unusable port is the default one, as in Ollama."""
    host = host.strip().strip("\"'").strip()
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = "http", host
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # a bare IPv6 address
    parts = urlsplit(f"//{rest}")
    name = parts.hostname or "127.0.0.1"
    try:
        port = parts.port or default
    except ValueError:
        port = default
    return f"{scheme}://{_reachable(name)}:{port}"


def _reachable(name: str) -> str:
    """0.0.0.0 and :: say where a server listens, not where it is reached."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"[{address}]" if address.version == 6 else str(address)


class OllamaTarget(HttpTarget):
    """The server at `host` (as OLLAMA_HOST is written; empty: this machine). Use it under trio."""

    kind, product = "ollama", "Ollama"
    stages = True

    def __init__(self, host: str = "") -> None:
        super().__init__(address_of(host))

    def check_name(self, name: str) -> None:
        check_name(name)

    def full_name(self, name: str) -> str:
        """Names are the same in any case, and without a tag it is `latest`."""
        tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        return tagged.casefold()

    def asked(self, name: str) -> str:
        return f"ollama run {name}, at {self.address}"

    async def probe(self) -> Capabilities:
        """Raises TargetVersionRefused for a server that is too old to take a model as a file."""
        found = await self.call("GET", "/api/version")
        version = str(found.get("version", "unknown"))
        if (known := VERSION.match(version)) and tuple(map(int, known.groups())) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise TargetVersionRefused(f"{self.address} is Ollama {version}; {oldest} or newer takes a model as a file")
        return Capabilities(kind=self.kind, address=self.address, version=version)

    async def carry(self, onto: str, base: Base) -> Carried:
        """What the model `onto` says beside its weights. Raises TargetBaseMissing, TargetBaseDiffers.

        Nothing is pulled: a base that isn't here is asked for with `ollama pull` by whoever wants it.
        """
        full_name = check_name(onto)
        if all(self.full_name(one.name) != self.full_name(full_name) for one in await self.list()):
            hint = f"`ollama pull {onto}` fetches it; orchd never lets a server fetch anything."
            raise TargetBaseMissing(f"{self.address} holds no model {full_name}", hint=hint, field="onto")
        shown = ollama_base.read(onto, await self.call("POST", "/api/show", {"model": full_name}))
        ollama_base.check_same(onto, shown, base)
        return ollama_base.carried(onto, shown)

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        full_name = check_name(name)
        digest = f"sha256:{artefact.sha256}"
        async with self.client() as client:
            await self._upload(client, digest, artefact, progress)
            await self._create(client, _create_request(full_name, digest, artefact), progress)
        return await self._find(full_name)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        """Asks for each answer twice: the proven prompt as it is (engine, weights), and as a chat (the template; not
        of proven answers without messages: the model has its own way of chatting then)."""
        full_name = check_name(name)
        raw, chat = [], []
        for one in golden[:GOLDEN_ASKED]:
            options = {"temperature": 0, "num_predict": one.max_new_tokens}
            common = {"model": full_name, "stream": False, "options": options}
            request = {**common, "raw": True, "prompt": one.rendered}
            found = await self.call("POST", "/api/generate", request)
            raw.append((one.answer, str(found.get("response", ""))))
            if one.messages:
                messages = [{"role": m.role, "content": m.content} for m in one.messages]
                found = await self.call("POST", "/api/chat", {**common, "messages": messages})
                chat.append((one.answer, _content(found)))
        engine = verdict(raw, "answers to the proven prompt")
        return verdict(chat, "chat answers") if engine.held and chat else engine

    async def list(self) -> tuple[Deployed, ...]:
        found = await self.call("GET", "/api/tags")
        try:
            models = msgspec.convert(found.get("models") or [], tuple[_Model, ...])
        except msgspec.ValidationError as error:
            raise TargetRefused(f"the list of models at {self.address} can't be read: {error}") from error
        return tuple(Deployed(name=m.name, digest=m.digest, size=m.size) for m in models)

    async def remove(self, name: str) -> None:
        full_name = check_name(name)
        await self._find(full_name)
        await self.call("DELETE", "/api/delete", {"model": full_name})

    async def _find(self, full_name: str) -> Deployed:
        for one in await self.list():
            if self.full_name(one.name) == self.full_name(full_name):
                return one
        raise DeploymentUnknown(f"{self.address} holds no model {full_name}", field="name")

    async def _upload(self, client: httpx.AsyncClient, digest: str, artefact: Artefact, progress: Progress) -> None:
        async with self.errors("looking for the file"):
            found = await client.head(f"/api/blobs/{digest}")
        if found.status_code == 200:
            return
        if found.status_code != 404:
            raise TargetRefused(self.refusal(found.status_code, found.content))
        headers = {"Content-Length": str(artefact.size), "Content-Type": "application/octet-stream"}
        async with self.errors("taking the file"):
            content = _chunks(artefact.path, artefact.size, progress)
            answer = await client.post(f"/api/blobs/{digest}", content=content, headers=headers)
        if answer.status_code not in (200, 201):
            raise TargetRefused(self.refusal(answer.status_code, answer.content))

    async def _create(self, client: httpx.AsyncClient, request: Mapping[str, object], progress: Progress) -> None:
        last = ""
        async with (
            self.errors("making the model"),
            client.stream("POST", "/api/create", json=request, timeout=CREATE_SECONDS) as answer,
        ):
            if answer.status_code != 200:
                await answer.aread()
                raise TargetRefused(self.refusal(answer.status_code, answer.content))
            async for line in answer.aiter_lines():
                last = self._status(line, last, progress)
        if last != "success":
            raise TargetStreamBroken(f"{self.address} stopped while making the model; its last word was {last!r}")

    def _status(self, line: str, last: str, progress: Progress) -> str:
        """One line of the stream: its status, or the one before for a line that says nothing."""
        if not line.strip():
            return last
        try:
            event = msgspec.json.decode(line, type=_Status)
        except msgspec.MsgspecError:
            raise TargetStreamBroken(f"{self.address} wrote {line[:80]!r} while making the model") from None
        if event.error:
            raise TargetRefused(f"{self.address}: {event.error}")
        if event.total:
            progress(event.completed, event.total, "bytes")
        return event.status


class _Status(msgspec.Struct, frozen=True):
    status: str = ""
    error: str = ""
    total: int = 0
    completed: int = 0


class _Model(msgspec.Struct, frozen=True):
    name: str
    digest: str = ""
    size: int = 0


def _create_request(name: str, digest: str, artefact: Artefact) -> dict[str, object]:
    optional: dict[str, object] = {"template": artefact.template}
    if (said := artefact.carried) is not None:
        optional = {
            "template": said.template,
            "system": said.system,
            "license": said.licence,
            "parameters": said.parameters,
            "renderer": said.renderer,
            "parser": said.parser,
        }
    request: dict[str, object] = {"model": name, "files": {"model.gguf": digest}, "stream": True}
    return request | {key: value for key, value in optional.items() if value}


def _content(answer: Mapping[str, Any]) -> str:
    message = answer.get("message")
    return str(message.get("content", "")) if isinstance(message, dict) else ""


async def _chunks(path: Path, size: int, progress: Progress) -> AsyncIterator[bytes]:
    done = 0
    async with await trio.open_file(path, "rb") as file:
        while chunk := await file.read(UPLOAD_BYTES):
            yield chunk
            done += len(chunk)
            progress(done, size, "bytes")
