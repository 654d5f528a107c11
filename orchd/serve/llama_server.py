"""A llama.cpp server in router mode (`llama-server --models-preset FILE`): many adapters on a base, one for a request.

A base is one section of the presets file, its adapters are loaded with it at scale 0, so that a plain request gets the
plain base; a request names its adapter, `"lora": [{"id": N, "scale": 1}]`. (`--lora-init-without-apply` leaves the
scale at 1: llama.cpp issue 28674.) A new adapter needs that section loaded again, which the server does by itself when
it is told to read the file; other sections go on. What is orchd's stands in a file of its own beside the presets, which
they are written from; sections of others are left as they are. An adapter keeps its number while another one goes: its
place is taken by one that stays, at scale 0. Source: llama.cpp tools/server/README.md, common/preset.cpp.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from orchd.errors import DeploymentUnknown, NotAvailable, OrchdError, TargetRefused
from orchd.serve.http_target import HttpTarget
from orchd.serve.names import plain
from orchd.serve.specs import Golden
from orchd.serve.targets import Artefact, Capabilities, Deployed, Progress, Verdict, no_progress, verdict

LOG = logging.getLogger(__name__)
BEGINNING = "orchd."
LOAD_SECONDS = 300.0
LOOK_SECONDS = 0.2
"""Between two looks whether a model is loaded: the server tells nobody."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One base (`model` is its file), the files of its adapters by number, and which deployment is which (None: the
    plain base)."""

    model: str
    adapters: tuple[str, ...] = ()
    names: dict[str, int | None] = {}


Sections = dict[str, Section]


def with_name(section: Section, name: str, adapter: str | None) -> Section:
    """`name` stands for `adapter` from now on; one that is there keeps its number."""
    rest = without_name(section, name)
    if adapter is None:
        return msgspec.structs.replace(rest, names={**rest.names, name: None})
    used = set(rest.names.values())
    at = next((n for n, path in enumerate(rest.adapters) if path == adapter and n in used), None)
    if at is None:
        at = next((n for n in range(len(rest.adapters)) if n not in used), len(rest.adapters))
    adapters = [*rest.adapters[:at], adapter, *rest.adapters[at + 1 :]]
    return _filled(msgspec.structs.replace(rest, adapters=tuple(adapters), names={**rest.names, name: at}))


def without_name(section: Section, name: str) -> Section:
    names = {one: number for one, number in section.names.items() if one != name}
    return _filled(msgspec.structs.replace(section, names=names))


def _filled(section: Section) -> Section:
    """Places that nobody uses are dropped at the end, and elsewhere taken by an adapter that stays."""
    used = sorted({number for number in section.names.values() if number is not None})
    if not used:
        return msgspec.structs.replace(section, adapters=())
    kept = section.adapters[: used[-1] + 1]
    stays = kept[used[0]]
    return msgspec.structs.replace(section, adapters=tuple(path if n in used else stays for n, path in enumerate(kept)))


def presets(before: str, sections: Sections) -> str:
    """The presets file: what isn't orchd's as it was, then orchd's sections."""
    lines, own = [], False
    for line in before.splitlines():
        if line.lstrip().startswith("["):
            own = line.lstrip().startswith(f"[{BEGINNING}")
        if not own:
            lines.append(line)
    while lines and not lines[-1].strip():
        lines.pop()
    for name, section in sorted(sections.items()):
        scaled = ",".join(f"{path}:0.0" for path in section.adapters)
        lines += ["", f"[{name}]", f"model = {section.model}", *([f"lora-scaled = {scaled}"] if scaled else [])]
    return "\n".join(lines).lstrip("\n") + "\n"


class LlamaServerTarget(HttpTarget):
    """The router at `address`, which reads the presets at `file`. Use it under trio."""

    kind, product = "llama_server", "llama.cpp"
    stages = True

    def __init__(self, address: str, file: Path | None) -> None:
        super().__init__(address)
        self._file = file
        self._changing = trio.Lock()

    def check_name(self, name: str) -> None:
        """Every deployment's name is one here: it never reaches the server."""

    def full_name(self, name: str) -> str:
        return plain(name).casefold()

    def asked(self, name: str) -> str:
        try:
            key, number = self._find(name)
        except OrchdError:
            return ""
        lora = "" if number is None else f', "lora": [{{"id": {number}, "scale": 1}}]'
        return f'"model": "{key}"{lora} at {self.address}/v1'

    async def probe(self) -> Capabilities:
        """Raises NotAvailable without a presets file, TargetRefused for a server of one model."""
        self._place()
        found = await self.call("GET", "/models")
        if any("status" not in one for one in _models(found)):
            raise TargetRefused(
                f"{self.address} serves one model; start llama-server with --models-preset {self._file}"
            )
        return Capabilities(kind=self.kind, address=self.address, version="")

    async def put(self, name: str, artefact: Artefact, progress: Progress = no_progress) -> Deployed:
        """Raises TargetRefused when llama.cpp does not load it; the presets are then as they were."""
        key = f"{BEGINNING}{artefact.sha256[:12]}"
        layer = None if artefact.layer is None else str(artefact.layer)
        for path in filter(None, (str(artefact.path), layer)):
            if any(sign in path for sign in ":,\n;#"):
                raise TargetRefused(f"llama.cpp can't be told of the place {path}: it has one of : , ; # in it")
        async with self._changing:
            sections = await trio.to_thread.run_sync(self._read)
            changed = {one: without_name(section, name) for one, section in sections.items()}
            section = changed.get(key) or Section(model=str(artefact.path))
            changed[key] = with_name(section, name, layer)
            await self._change(sections, changed, key)
        progress(artefact.size, artefact.size, "bytes")
        return Deployed(name=name, digest="", size=artefact.size)

    async def verify(self, name: str, golden: Sequence[Golden]) -> Verdict:
        """Asks the proven prompt as it is (engine, weights), then as a chat (the template)."""
        key, number = await trio.to_thread.run_sync(self._find, name)
        lora = [] if number is None else [{"id": number, "scale": 1.0}]
        raw, chat = [], []
        for one in golden:
            common = {"model": key, "temperature": 0, "lora": lora, "cache_prompt": False}
            asked = {**common, "prompt": one.rendered, "n_predict": one.max_new_tokens}
            raw.append((one.answer, str((await self.call("POST", "/completion", asked)).get("content", ""))))
            messages = [{"role": m.role, "content": m.content} for m in one.messages]
            asked = {**common, "messages": messages, "max_tokens": one.max_new_tokens}
            chat.append((one.answer, _chat_text(await self.call("POST", "/v1/chat/completions", asked))))
        engine = verdict(raw, "answers to the proven prompt")
        return verdict(chat, "chat answers") if engine.held else engine

    async def list(self) -> tuple[Deployed, ...]:
        sections = await trio.to_thread.run_sync(self._read)
        names = sorted(name for section in sections.values() for name in section.names)
        return tuple(Deployed(name=name, digest="", size=0) for name in names)

    async def remove(self, name: str) -> None:
        async with self._changing:
            sections = await trio.to_thread.run_sync(self._read)
            if all(name not in section.names for section in sections.values()):
                raise DeploymentUnknown(f"{self._file} has no adapter {name}", field="name")
            await self._change(sections, {one: without_name(part, name) for one, part in sections.items()}, "")

    async def _change(self, before: Sections, after: Sections, wanted: str) -> None:
        """Write, let the server read it, and load `wanted` and whatever changed; all is as it was when that fails."""
        after = {name: section for name, section in after.items() if section.names}
        try:
            await self._become(before, after, wanted)
        except BaseException:
            with trio.CancelScope(deadline=trio.current_time() + LOAD_SECONDS, shield=True):
                await self._go_back(after, before)
            raise

    async def _become(self, before: Sections, after: Sections, wanted: str) -> None:
        await trio.to_thread.run_sync(self._write, after)
        here, there = _files(before), _files(after)
        if here != there:
            await self.call("GET", "/models?reload=1")
        changed = {name for name, files in there.items() if here.get(name) != files}
        for name in sorted(changed | ({wanted} & there.keys())):
            await self._load(name)

    async def _go_back(self, after: Sections, before: Sections) -> None:
        try:
            await self._become(after, before, "")
        except OrchdError as error:  # it is gone: what it reads when it comes back is as it was
            LOG.info("%s could not be told to go back: %s", self.address, error)

    async def _load(self, name: str) -> None:
        with trio.move_on_after(LOAD_SECONDS):
            asked = False
            while True:
                found = {
                    str(one.get("id")): one.get("status") or {} for one in _models(await self.call("GET", "/models"))
                }
                status = found.get(name, {})
                state = status.get("value")
                if state == "loaded":
                    return
                if asked and (status.get("failed") or state == "failed"):
                    raise TargetRefused(f"{self.address} could not load {name}; its log says why")
                if not asked:
                    await self.call("POST", "/models/load", {"model": name})
                    asked = True
                await trio.sleep(LOOK_SECONDS)
        raise TargetRefused(f"{self.address} did not load {name} within {LOAD_SECONDS:.0f} s")

    def _find(self, name: str) -> tuple[str, int | None]:
        for key, section in self._read().items():
            if name in section.names:
                return key, section.names[name]
        raise DeploymentUnknown(f"{self._file} has no adapter {name}", field="name")

    def _place(self) -> Path:
        if self._file is None:
            hint = "Start `llama-server --models-preset FILE`, and set serve.llama_presets to that file."
            raise NotAvailable("it isn't known which presets file llama-server reads", hint=hint)
        return self._file

    def _own(self) -> Path:
        place = self._place()
        return place.with_name(place.name + ".orchd")

    def _read(self) -> Sections:
        try:
            return msgspec.json.decode(self._own().read_bytes(), type=Sections)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise TargetRefused(f"{self._own()} can't be read: {error}") from error

    def _write(self, sections: Sections) -> None:
        place = self._place()
        try:
            before = place.read_text(encoding="utf-8") if place.exists() else ""
            _replace(self._own(), msgspec.json.encode(sections).decode())
            _replace(place, presets(before, sections))
        except (OSError, UnicodeDecodeError) as error:
            raise TargetRefused(f"{place} can't be written: {error}") from error


def _files(sections: Sections) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What the server sees of them."""
    return {name: (section.model, section.adapters) for name, section in sections.items()}


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.orchd-part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _models(found: dict[str, Any]) -> list[dict[str, Any]]:
    data = found.get("data")
    return [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []


def _chat_text(found: dict[str, Any]) -> str:
    choices = found.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    return str(message.get("content", "")) if isinstance(message, dict) else ""
