"""One GGUF loaded in llama.cpp (xllamacpp) inside this process. Imported in workers only.

The same settings serve the proof and the answers that people get, so that what was proven is what is served:
float32 key-value cache, no flash attention (the defaults differ from transformers by 2.8e-2 in log-probability,
these by less than 1e-4), no GPU layers. llama.cpp opens a listener for each model; here it is a Unix socket in the
process's current folder (the job's own), whose name is removed as soon as it is bound, or kept while a proof asks it.
"""

from __future__ import annotations

import http.client
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xllamacpp  # type: ignore[import-untyped]

from orchd.errors import ModelNotLoaded, PromptRefused
from orchd.importers.conversation import Message
from orchd.serve.wire import DEFAULTS, Sampling

CONTEXT_TOKENS = 2048  # of one conversation, unless the model was trained with fewer
BATCH_TOKENS = 512
LOG_ERRORS_ONLY = 1
ASK_SECONDS = 600.0

_numbers = itertools.count(1)


class Answer(NamedTuple):
    """`tokens` generated after `prompt` tokens, whether the model ended by itself ("stop") or was cut ("length")."""

    tokens: int
    finish: str
    prompt: int


class Step(NamedTuple):
    """The most likely next token, and the log-probabilities (nats) of the most likely ones by token id."""

    token: int
    logprobs: dict[int, float]


class Engine:
    """A loaded model. Several threads may ask at once; up to `parallel` are answered together.

    Raises ModelNotLoaded when llama.cpp doesn't take the file. The process should be one that may die: llama.cpp
    ends it on damage that it doesn't notice in time.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        parallel: int = 1,
        context: int = CONTEXT_TOKENS,
        keep_socket: bool = False,
        layer: Path | None = None,
    ) -> None:
        name = f"m{next(_numbers)}.sock"
        self._socket = Path(name)  # relative: a socket's path must be shorter than 104 bytes
        params = _params(path, threads, parallel, context)
        self._more: dict[str, Any] = {}
        if layer is not None:  # not applied by itself: a request names it
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(layer.absolute()), 0.0)]
            self._more = {"lora": [{"id": 0, "scale": 1.0}]}
        params.hostnames = [name]
        self._socket.unlink(missing_ok=True)  # of a process that was killed here
        mask = os.umask(0o077)
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ModelNotLoaded(f"llama.cpp does not load {path.name}: {error}") from error
        finally:
            os.umask(mask)
            if not keep_socket:
                self._socket.unlink(missing_ok=True)
        self._wake()

    def _wake(self) -> None:
        """Compute one token: shows that the model works, and that its loop runs.

        Freeing a server of xllamacpp 2026.10 whose loop hasn't begun yet waits for ever: its request to stop is
        forgotten by the loop that starts after it (`tests/serve/test_engine.py::test_freed_at_once`).
        """
        answer = self._server.handle_completions({"prompt": [0], "max_tokens": 1})
        if "error" in answer:
            raise ModelNotLoaded(f"llama.cpp does not compute: {_error_text(answer)}")

    def close(self) -> None:
        """Free the model. Nothing may be asking."""
        self._server = None
        self._socket.unlink(missing_ok=True)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        on_text: Callable[[str], bool],
        sampling: Sampling = DEFAULTS,
    ) -> Answer:
        """Answer a conversation, the prompt made by the model's own chat template.

        `on_text` gets each piece of the answer and returns whether to go on. Temperature 0 is greedy. Raises
        PromptRefused when the conversation doesn't fit or the template refuses it.
        """
        request = {
            "messages": _plain(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            **_chosen(sampling),
            **self._more,
        }
        answer = _Stream(on_text)
        try:
            self._server.handle_chat_completions(request, answer.take)
        except ValueError as error:  # the C++ side could not read the request, or the template raised
            raise PromptRefused(str(error), field="messages") from error
        return answer.end()

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """The rendered prompt and its token ids, as `chat` would see them. Needs `keep_socket`."""
        plain = _plain(messages)
        text = str(self._post("/apply-template", {"messages": plain})["prompt"])
        found = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return text, [int(token) for token in found["tokens"]]

    def greedy(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The greedy continuation, without the token that ended it. Needs `keep_socket`."""
        found = self._complete(ids, max_new_tokens, cache_prompt=False)
        tokens = [int(token) for token in found["tokens"]]
        return tokens[:-1] if found["stop_type"] == "eos" else tokens

    def next_token(self, ids: Sequence[int], top: int) -> Step:
        """What comes after `ids`. Needs `keep_socket`.

        `logprobs` is empty where the next token is only a part of a character: llama.cpp doesn't report those.
        """
        found = self._complete(ids, 1, cache_prompt=True, n_probs=top)
        named = found.get("completion_probabilities") or [{"top_logprobs": []}]
        logprobs = {int(one["id"]): float(one["logprob"]) for one in named[0]["top_logprobs"]}
        return Step(int(found["tokens"][0]), logprobs)

    def _complete(self, ids: Sequence[int], n_predict: int, **more: Any) -> dict[str, Any]:
        request = {"prompt": list(ids), "n_predict": n_predict, "temperature": 0, "id_slot": 0}
        return self._post("/completion", {**request, "return_tokens": True, **more, **self._more})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = _UnixConnection(self._socket)
        try:
            connection.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            # not msgspec: llama.cpp may cut a character in two, which strict UTF-8 refuses
            text = response.read().decode("utf-8", errors="replace")
        finally:
            connection.close()
        answer = msgspec.json.decode(text, type=dict[str, Any])
        if response.status != http.client.OK:
            raise PromptRefused(f"llama.cpp: {_error_text(answer)}")
        return answer


ADVICE = ", try increasing it"
"""llama.cpp's, to whoever started it: the size is the model's own."""


class _Stream:
    """Takes the chunks of a streamed chat answer."""

    def __init__(self, on_text: Callable[[str], bool]) -> None:
        self._on_text = on_text
        self._finish = "stop"
        self._tokens = self._prompt = 0
        self._error: str | None = None
        self._raised: Exception | None = None

    def take(self, chunk: Any) -> bool:
        """Called by llama.cpp, which swallows exceptions; returns True to stop."""
        try:
            return not all(self._take_one(one) for one in _as_list(chunk))
        except Exception as error:
            self._raised = error
            return True

    def _take_one(self, chunk: dict[str, Any]) -> bool:
        if "error" in chunk:
            self._error = _error_text(chunk)
            return False
        timings = chunk.get("timings") or {}
        self._tokens = int(timings.get("predicted_n", self._tokens))
        if "prompt_n" in timings:  # what was read anew, and what was there from the question before
            self._prompt = int(timings["prompt_n"]) + int(timings.get("cache_n", 0))
        more = True
        for choice in chunk.get("choices", []):
            self._finish = choice.get("finish_reason") or self._finish
            text = choice["delta"].get("content")
            if text:
                more = self._on_text(text) and more
        return more

    def end(self) -> Answer:
        if self._raised is not None:
            raise self._raised
        if self._error is not None:
            raise PromptRefused(self._error.removesuffix(ADVICE), field="messages")
        return Answer(self._tokens, self._finish, self._prompt)


def _chosen(sampling: Sampling) -> dict[str, Any]:
    """What is said of how tokens are chosen; the rest stays llama.cpp's own."""
    said = {"top_p": sampling.top_p, "seed": sampling.seed, "stop": list(sampling.stop) or None}
    return {name: value for name, value in said.items() if value is not None}


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


def _as_list(chunk: Any) -> list[dict[str, Any]]:
    return chunk if isinstance(chunk, list) else [chunk]


def _error_text(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _params(path: Path, threads: int, parallel: int, context: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path.absolute())
    params.n_parallel = parallel
    params.n_ctx = context * parallel
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_threads_http = parallel
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers = 0
    params.fit_params = False
    params.cache_ram_mib = 0
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.verbosity = LOG_ERRORS_ONLY
    formats = xllamacpp.common_reasoning_format
    params.reasoning_format = formats.COMMON_REASONING_FORMAT_NONE
    return params


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket in the process's current folder."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ASK_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ASK_SECONDS)
        self.sock.connect(os.fspath(self._path))
