"""A strict stand-in for `llama-server --models-preset FILE`: see README.md beside it for what it can't show.

It reads the presets file when it is told to, loads each section in llama.cpp (xllamacpp, the same C++ server) with its
adapters, and answers by section and `lora`. Names and keys that the real one would take otherwise are refused.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import xllamacpp  # type: ignore[import-untyped]

KEYS = {"model", "lora-scaled"}
COMPLETION = {"model", "prompt", "n_predict", "temperature", "lora", "cache_prompt"}
CHAT = {"model", "messages", "max_tokens", "temperature", "lora", "cache_prompt"}
NAME = re.compile(r"[A-Za-z0-9_.-]+")  # what follows a colon would be a quantisation


@dataclass
class Loaded:
    section: dict[str, str]
    server: Any = None
    failed: bool = False

    @property
    def adapters(self) -> int:
        return len([one for one in self.section.get("lora-scaled", "").split(",") if one])


@dataclass
class State:
    presets: Path
    sockets: Path
    models: dict[str, Loaded] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    single: bool = False


class Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def serving(presets: Path) -> Iterator[tuple[str, State]]:
    with tempfile.TemporaryDirectory() as folder:
        state = State(presets, Path(folder))
        handler = type("Handler", (_Handler,), {"state": state})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}", state
            finally:
                server.shutdown()
                state.models.clear()


class _Handler(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self._answer((lambda: self._models(query == "reload=1")) if path == "/models" else None)

    def do_POST(self) -> None:
        routes = {
            "/models/load": self._load,
            "/completion": self._completion,
            "/v1/chat/completions": self._chat,
        }
        self._answer(routes.get(self.path))

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, route: Any) -> None:
        self.state.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = json.loads(self.rfile.read(length)) if length else {}
        try:
            if route is None:
                raise Refusal(404, "File Not Found")
            status, value = 200, route()
        except Refusal as refusal:
            status, value = refusal.status, {"error": {"code": refusal.status, "message": str(refusal)}}
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _models(self, reload: bool) -> Any:
        if self.state.single:
            return {"object": "list", "data": [{"id": "the-model", "object": "model"}]}
        if reload:
            self._reload()
        shown = []
        for name, one in self.state.models.items():
            status = {"value": "loaded" if one.server else "unloaded"} | ({"failed": True} if one.failed else {})
            shown.append({"id": name, "status": status})
        return {"object": "list", "data": shown}

    def _reload(self) -> None:
        """A section that changed is unloaded; others go on."""
        sections = _parse(self.state.presets.read_text())
        before = self.state.models
        self.state.models = {
            name: before[name] if name in before and before[name].section == section else Loaded(section)
            for name, section in sections.items()
        }

    def _one(self) -> Loaded:
        found = self.state.models.get(str(self.sent.get("model")))
        if found is None:
            raise Refusal(400, f"model '{self.sent.get('model')}' not found")
        return found

    def _load(self) -> Any:
        one = self._one()
        self.state.loads.append(self.sent["model"])
        params = xllamacpp.CommonParams()
        params.model.path = one.section["model"]
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 512, 1, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_gpu_layers = 0
        params.hostnames = [f"{self.state.sockets}/{len(self.state.loads)}.sock"]
        adapters = [part.rpartition(":") for part in one.section.get("lora-scaled", "").split(",") if part]
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, float(scale)) for path, _, scale in adapters]
        try:
            one.server, one.failed = xllamacpp.Server(params), False
            one.server.handle_completions({"prompt": [0], "max_tokens": 1})  # its loop runs: it can be freed
        except RuntimeError:
            one.failed = True
        return {"success": True}

    def _asked(self, known: set[str]) -> tuple[Loaded, dict[str, Any]]:
        if unknown := set(self.sent) - known:
            raise Refusal(400, f"contract: unknown fields {sorted(unknown)}")
        one = self._one()
        if one.server is None:
            raise Refusal(400, "model is not loaded")
        if any(part["id"] >= one.adapters for part in self.sent.get("lora", [])):
            raise Refusal(400, "contract: the real one takes an unknown adapter silently")
        return one, {name: value for name, value in self.sent.items() if name != "model"}

    def _completion(self) -> Any:
        one, asked = self._asked(COMPLETION)
        found = one.server.handle_completions({**asked, "max_tokens": asked.pop("n_predict")})
        return {"content": found["choices"][0]["text"]}

    def _chat(self) -> Any:
        one, asked = self._asked(CHAT)
        return one.server.handle_chat_completions(asked)


def _parse(text: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in ";#":
            continue
        if line.startswith("["):
            name = line.strip("[]")
            assert NAME.fullmatch(name), f"llama-server would take {name!r} otherwise"
            current = sections.setdefault(name, {})
        else:
            key, _, value = (part.strip() for part in line.partition("="))
            assert key in KEYS, key
            current[key] = value
    return sections
