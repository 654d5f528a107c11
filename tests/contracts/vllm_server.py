"""A strict stand-in for a vLLM server that loads adapters at run time: see README.md beside it for what it can't show.

Written from vLLM's `docs/features/lora.md` and `entrypoints/serve/lora/api_router.py`. It reads the PEFT folder as vLLM
does (config, rank against `--max-lora-rank`, one pair of matrices for each module), and answers with llama.cpp from the
GGUF that the test says stands for base and adapter.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.contracts.ollama_server import answer_of, render

BASE = "base-model"
MAX_RANK = 16
LOAD_FIELDS, UNLOAD_FIELDS = {"lora_name", "lora_path", "load_inplace"}, {"lora_name", "lora_int_id"}
COMPLETION_FIELDS = {"model", "max_tokens", "temperature", "prompt"}
CHAT_FIELDS = {"model", "max_tokens", "temperature", "messages"}


@dataclass
class State:
    """`models`: the GGUF that answers for a PEFT folder; `template` is the Go template of the base's chat."""

    models: dict[Path, Path]
    template: str
    loaded: dict[str, Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    updating: bool = True


class Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def serving(models: dict[Path, Path], template: str) -> Iterator[tuple[str, State]]:
    state = State(models, template)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", state
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        routes = {"/version": lambda: {"version": "0.15.0"}, "/v1/models": self._models}
        self._answer(routes.get(self.path))

    def do_POST(self) -> None:
        routes: dict[str, Any] = {"/v1/completions": self._completion, "/v1/chat/completions": self._chat}
        if self.state.updating:  # vLLM has these paths only with VLLM_ALLOW_RUNTIME_LORA_UPDATING
            routes |= {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload}
        self._answer(routes.get(self.path))

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, route: Any) -> None:
        self.state.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = json.loads(self.rfile.read(length)) if length else {}
        try:
            if route is None:
                raise Refusal(404, "Not Found")
            status, value = 200, route()
        except Refusal as refusal:
            error = {"message": str(refusal), "type": "BadRequestError", "param": None, "code": refusal.status}
            status, value = refusal.status, {"error": error}
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fields(self, known: set[str]) -> dict[str, Any]:
        if unknown := set(self.sent) - known:
            raise Refusal(400, f"contract: unknown fields {sorted(unknown)}")
        return dict(self.sent)

    def _models(self) -> Any:
        cards: list[dict[str, Any]] = [{"id": BASE, "object": "model", "root": BASE, "parent": None}]
        for name, folder in self.state.loaded.items():
            cards.append({"id": name, "object": "model", "root": str(folder), "parent": BASE})
        return {"object": "list", "data": cards}

    def _load(self) -> str:
        body = self._fields(LOAD_FIELDS)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            raise Refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.state.loaded and not body.get("load_inplace"):
            raise Refusal(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place,"
                " set 'load_inplace' to True.",
            )
        folder = Path(path)
        _check(folder)
        self.state.loaded[name] = folder.resolve()
        return f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self) -> str:
        name = self._fields(UNLOAD_FIELDS).get("lora_name")
        if self.state.loaded.pop(name, None) is None:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _completion(self) -> Any:
        body = self._fields(COMPLETION_FIELDS)
        return {"choices": [{"index": 0, "text": self._text(body, body["prompt"])}]}

    def _chat(self) -> Any:
        body = self._fields(CHAT_FIELDS)
        text = self._text(body, render(self.state.template, body["messages"]))
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

    def _text(self, body: dict[str, Any], prompt: str) -> str:
        folder = self.state.loaded.get(body["model"])
        if folder is None:
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        options = {"num_predict": body["max_tokens"], "temperature": body["temperature"]}
        return answer_of(self.state.models[folder], prompt, options)


def _check(folder: Path) -> None:
    """What vLLM refuses of a PEFT folder."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        with (folder / "adapter_model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError) as error:
        raise Refusal(404, f"Loading lora failed: No adapter found for {folder}: {error}") from None
    if config["r"] > MAX_RANK:
        raise Refusal(400, f"LoRA rank {config['r']} is greater than max_lora_rank {MAX_RANK}.")
    if config.get("bias", "none") != "none" or config.get("use_dora"):
        raise Refusal(400, "vLLM does not support this adapter")
    names = [name for name in header if name != "__metadata__"]
    if not names or any(".lora_A." not in name and ".lora_B." not in name for name in names):
        raise Refusal(400, "Loading lora failed: unexpected tensors")
