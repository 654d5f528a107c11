"""A strict stand-in for an Ollama server: see README.md beside it for what it shows and what it can't."""

from __future__ import annotations

import hashlib
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

import gguf
import xllamacpp  # type: ignore[import-untyped]

CREATE_FIELDS = {
    "model", "name", "stream", "quantize", "from", "files", "adapters", "template", "license", "system",
    "parameters", "messages", "renderer", "parser", "requires", "info",
}  # fmt: skip
GENERATE_FIELDS = {"model", "prompt", "raw", "stream", "options", "keep_alive"}
CHAT_FIELDS = {"model", "messages", "stream", "options", "keep_alive"}
OPTIONS = {"temperature", "num_predict", "seed"}
SAID = ("template", "system", "license", "parameters", "renderer", "parser")
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
NO_ADAPTERS = "LoRA adapters are no longer supported"
CHUNK = 1 << 16

Reply = tuple[int, object]


@dataclass
class Model:
    """`said` is what create got beside the file: template, system, license, parameters, renderer, parser."""

    path: Path
    digest: str
    template: str
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def manifest(self) -> str:
        """What /api/tags gives as digest: of the list of layers, not of the weights."""
        return hashlib.sha256(json.dumps([self.digest, self.said], sort_keys=True).encode()).hexdigest()


@dataclass
class State:
    """What the server holds, and what it saw. The flags make it fail in ways that the real one can."""

    folder: Path
    version: str = "0.34.1"
    models: dict[str, Model] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploaded: int = 0
    drop_success: bool = False
    error_in_stream: str = ""
    cut_upload_at: int = -1
    not_ollama: bool = False
    load_fails: str = ""
    pulled: bool = False

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-").lower()

    @property
    def refuses_adapters(self) -> bool:
        return tuple(int(n) for n in self.version.split(".")) >= (0, 34, 1)


class Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@contextmanager
def serving(version: str = "0.34.1") -> Iterator[tuple[str, State]]:
    """A server on loopback: its address and its state."""
    with tempfile.TemporaryDirectory() as folder:
        state = State(Path(folder), version)
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
        routes = {"/api/version": self._version, "/api/tags": self._tags}
        self._answer(routes.get(self.path, _not_found))

    def do_HEAD(self) -> None:
        self.state.requests.append(f"HEAD {self.path.partition('sha256')[0]}")
        digest = self.path.removeprefix("/api/blobs/")
        valid = DIGEST.fullmatch(digest)
        status = 400 if not valid else 200 if self.state.blob(digest).exists() else 404
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            return self._answer(self._take_blob)
        if self.path == "/api/create":
            return self._create()
        routes = {"/api/generate": self._generate, "/api/chat": self._chat, "/api/show": self._show}
        return self._answer(routes.get(self.path, _not_found))

    def do_DELETE(self) -> None:
        self._answer(self._delete if self.path == "/api/delete" else _not_found)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, route: Any) -> None:
        self.state.requests.append(f"{self.command} {self.path.partition('sha256')[0]}")
        try:
            status, value = route()
        except Refusal as refusal:
            status, value = refusal.status, {"error": str(refusal)}
        body = b"" if value is None else json.dumps(value).encode()
        if self.state.not_ollama:
            body = b"<html>welcome</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self, fields: set[str]) -> dict[str, Any]:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        unknown = set(body) - fields
        if unknown:
            raise Refusal(400, f"contract: unknown fields {sorted(unknown)}")
        return dict(body)

    def _version(self) -> Reply:
        return 200, {"version": self.state.version}

    def _tags(self) -> Reply:
        models = [
            {"name": name, "model": name, "digest": model.manifest, "size": model.path.stat().st_size}
            for name, model in self.state.models.items()
        ]
        return 200, {"models": models}

    def _take_blob(self) -> Reply:
        digest = self.path.removeprefix("/api/blobs/")
        if not DIGEST.fullmatch(digest):
            raise Refusal(400, "invalid digest format")
        size, got = int(self.headers["Content-Length"]), hashlib.sha256()
        part = self.state.blob(digest).with_suffix(".part")
        with part.open("wb") as file:
            while size and (chunk := self.rfile.read(min(CHUNK, size))):
                size -= len(chunk)
                got.update(chunk)
                self.state.uploaded += len(chunk)
                file.write(chunk)
                if 0 <= self.state.cut_upload_at < self.state.uploaded:
                    self.connection.close()
                    raise ConnectionAbortedError("told to")
        if got.hexdigest() != digest[-64:].lower():
            part.unlink()
            raise Refusal(400, f'digest mismatch, expected "{digest}", got "sha256:{got.hexdigest()}"')
        part.rename(self.state.blob(digest))
        return 201, None

    def _create(self) -> None:
        """Streams statuses; a refusal before the first is a plain answer."""
        self.state.requests.append("POST /api/create")
        try:
            body = self._body(CREATE_FIELDS)
            name, model = self._model_of(body)
        except Refusal as refusal:
            error = refusal
            return self._answer(lambda: (error.status, {"error": str(error)}))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._line({"status": "parsing GGUF"})
        if self.state.error_in_stream:
            self._line({"error": self.state.error_in_stream})
        else:
            if not self.state.refuses_adapters:  # 0.33 and before write the file anew
                size = model.path.stat().st_size
                told = {"status": "validating GGUF model", "digest": "0" * 19, "total": size}
                self._line({**told, "completed": size // 2})
                self._line({**told, "completed": size})
            self._line({"status": f"using existing layer {model.digest}"})
            self._line({"status": "writing manifest"})
            if not self.state.drop_success:
                self.state.models[name] = model
                self._line({"status": "success"})
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _line(self, value: object) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _model_of(self, body: dict[str, Any]) -> tuple[str, Model]:
        name = str(body.get("model", ""))
        if not NAME.fullmatch(name):
            raise Refusal(400, "invalid model name")
        if "from" in body:
            raise Refusal(400, "contract: `from` may pull gigabytes from the registry")
        if body.get("adapters"):
            raise Refusal(400, NO_ADAPTERS if self.state.refuses_adapters else "contract: send a merged GGUF")
        if body.get("quantize"):
            text = "create-time quantization is only supported for safetensors imports"
            raise Refusal(400, f"{text}; quantize GGUF models with llama.cpp tools before importing")
        files = body.get("files") or {}
        if not files:
            raise Refusal(400, "neither 'from' or 'files' was specified")
        if len(files) != 1 or not next(iter(files)).endswith(".gguf"):
            raise Refusal(400, "contract: one GGUF is wanted")
        path, digest = next(iter(files.items()))
        if not DIGEST.fullmatch(digest):
            raise Refusal(400, "invalid digest format")
        blob = self.state.blob(digest)
        if not blob.exists():
            raise Refusal(400, f'blob "{digest}" not found')
        kind = _kind_of(blob)
        if kind != "model":
            raise Refusal(400, f"{NO_ADAPTERS}: {path} is a LoRA adapter")
        said = {key: body[key] for key in SAID if key in body}
        wanted = {"license": (str, list), "parameters": (dict,)}
        if wrong := [key for key, value in said.items() if not isinstance(value, wanted.get(key, (str,)))]:
            raise Refusal(400, f"contract: json: cannot unmarshal {wrong[0]}")
        return name, Model(blob, digest, str(body.get("template", "{{ .Prompt }}")), said)

    def _show(self) -> Reply:
        """Of GetModelInfo: the texts, the parameters as lines, and the GGUF's own values."""
        body = self._body({"model", "verbose"})
        model = self._model(body)
        reader = gguf.GGUFReader(model.path)
        kind = str(reader.fields["general.architecture"].contents())
        info = {
            "general.architecture": kind,
            **{
                f"{kind}.{one}": reader.fields[f"{kind}.{one}"].contents()
                for one in ("block_count", "embedding_length")
            },
        }
        parameters = model.said.get("parameters", {})
        lines = [
            f"{name:<30} {json.dumps(value)}"
            for name, values in parameters.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        texts = {key: model.said[key] for key in ("license", "system", "renderer", "parser") if key in model.said}
        return 200, {
            **texts,
            "modelfile": f"FROM {model.path}",
            "parameters": "\n".join(lines),
            "template": model.template,
            "details": {"format": "gguf", "family": kind},
            "model_info": info,
            "capabilities": ["completion"],
        }

    def _generate(self) -> Reply:
        body = self._body(GENERATE_FIELDS)
        if body.get("raw") is not True:
            raise Refusal(400, "contract: a raw prompt is wanted")
        return 200, {"response": self._complete(body, str(body["prompt"])), "done": True}

    def _chat(self) -> Reply:
        body = self._body(CHAT_FIELDS)
        prompt = render(self._model(body).template, body["messages"])
        message = {"role": "assistant", "content": self._complete(body, prompt)}
        return 200, {"message": message, "done": True}

    def _model(self, body: dict[str, Any]) -> Model:
        model = self.state.models.get(str(body["model"]))
        if model is None:
            raise Refusal(404, f"model '{body['model']}' not found")
        return model

    def _complete(self, body: dict[str, Any], prompt: str) -> str:
        if body.get("stream") is not False or set(body["options"]) - OPTIONS:
            raise Refusal(400, "contract: unknown options, or a stream")
        if self.state.load_fails:
            raise Refusal(500, f"llama runner process has terminated: {self.state.load_fails}")
        return answer_of(self._model(body).path, prompt, body["options"])

    def _delete(self) -> Reply:
        body = self._body({"model"})
        self._model(body)
        del self.state.models[body["model"]]
        return 200, None


def _not_found() -> Reply:
    raise Refusal(404, "404 page not found")


def _kind_of(path: Path) -> str:
    """`general.type` of a GGUF that gguf-py can parse."""
    try:
        kind = gguf.GGUFReader(path).get_field("general.type")
    except Exception as error:
        raise Refusal(400, f"invalid GGUF: {error}") from error
    return str(kind.contents()) if kind else "model"


def answer_of(path: Path, prompt: str, options: dict[str, Any]) -> str:
    """A real answer of llama.cpp in the settings that Ollama uses (its own defaults, not the proof's)."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 512, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = [f"{path.parent}/{threading.get_ident()}.sock"]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise Refusal(500, f"llama runner process has terminated: {error}") from error
    finally:
        Path(params.hostnames[0]).unlink(missing_ok=True)
    request = {"prompt": prompt, "max_tokens": options["num_predict"], "temperature": options["temperature"]}
    return str(server.handle_completions(request)["choices"][0]["text"])


def render(template: str, messages: list[dict[str, str]]) -> str:
    """The few Go template actions that `orchd.serve.go_template` writes."""
    head, opening, rest = template.partition("{{ range .Messages }}")
    if not opening:
        return template.replace("{{ .Prompt }}", messages[-1]["content"])
    body, _, tail = rest.rpartition("{{ end }}")
    branches = re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\{\{ end \}\})', body, re.S)
    pieces = dict(branches)
    written = [pieces[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages]
    return head + "".join(written) + tail
