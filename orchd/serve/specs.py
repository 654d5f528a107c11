"""What goes into and comes out of the serving workers. The daemon imports this: no torch, no llama.cpp."""

from __future__ import annotations

import msgspec

from orchd.importers.conversation import Message
from orchd.jobs.sandbox import Readable

QUANTIZE_NAMES = ("F32", "F16", "Q8_0", "Q4_K_M")
KEEP = "KEEP"
"""Instead of a name above: the adapter is folded into the base's own GGUF file, and what it doesn't touch is kept."""


Prompt = tuple[Message, ...]


def _ask(text: str) -> Prompt:
    return (Message("user", text),)


DEFAULT_PROMPTS: tuple[Prompt, ...] = (
    _ask("Hello!"),
    _ask("copy: cat sun key"),
    _ask("What can you do?"),
    _ask("Write one sentence about the sea."),
)
"""What is asked in a proof when the caller has no data set of the adapter's own."""


class AdapterPath(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter's id (`adp_…`) and the PEFT folder where it lies."""

    id: str
    path: Readable


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter as a GGUF LoRA, `gguf` relative to the job's work folder; `size` in bytes, `sha256` hexadecimal."""

    gguf: str
    size: int
    sha256: str


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Fold `adapter` (None: the plain base) into `base`, a Hugging Face folder, and prove that the file answers alike.

    With `quantize` KEEP it is folded into `gguf`, the same base as a GGUF file; the proof measures by the folder.
    `name` goes into the metadata of a file that is made from the folder. `prompts` are answered by both sides,
    `max_new_tokens` tokens each; empty stands for DEFAULT_PROMPTS. With `layer` the adapter is not folded in but
    written beside the plain base, for servers that add it while they run.
    """

    base: Readable
    adapter: AdapterPath | None
    name: str
    gguf: Readable = ""
    quantize: str = "F16"
    prompts: tuple[Prompt, ...] = ()
    max_new_tokens: int = 16
    layer: bool = False


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of a proof with its figures; transformers + PEFT in float32 is the measure.

    `token_ids_equal`: prompts whose token ids agree (chat template and tokenizer). `greedy_equal`: prompts whose
    greedy answers agree token by token, and in the chat's text; `near_ties`: prompts where they part at two tokens
    that the measure itself holds equally likely (within half the tolerance). `max_logprob_diff`: largest difference
    (nats) of a next token's log-probability among those that llama.cpp names, over all `positions` compared;
    `tolerance` is what the file's dtype may show.
    """

    held: bool
    prompts: int
    token_ids_equal: int
    greedy_equal: int
    near_ties: int
    positions: int
    max_logprob_diff: float
    tolerance: float
    detail: str


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """One proven answer, for a target to be compared with: the prompt as messages and as the rendered text."""

    messages: Prompt
    rendered: str
    answer: str
    max_new_tokens: int


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """`gguf` is relative to the job's work folder; `size` in bytes; `sha256` in hexadecimal.

    `template` is the base's chat template as a Go template, or empty where it can't be said so (`go_template.py`).
    """

    gguf: str
    size: int
    sha256: str
    quantize: str
    parity: Parity
    golden: tuple[Golden, ...]
    template: str
    seconds: float
    layer: Layer | None = None


FORMATS = ("safetensors", "gguf", "mlx", "pytorch", "merged-gguf", "merged-safetensors", "onnx")
"""What an adapter is written as for other programs. The first four hold it alone, the others with its base."""

MERGED = frozenset({"merged-gguf", "merged-safetensors", "onnx"})
FOLDERS = frozenset({"safetensors", "mlx", "merged-safetensors", "onnx"})
"""Formats that are folders; the others are one file."""


class ExportSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Write an adapter in one of FORMATS. `base` is its base's folder ("" where the format needs none), `gguf` its
    base's GGUF file where `quantize` is KEEP. `compress` is "" or zstd; a folder becomes a tar file first.
    """

    adapter: AdapterPath
    format: str
    name: str
    base: Readable = ""
    gguf: Readable = ""
    quantize: str = ""
    compress: str = ""


class ExportResult(msgspec.Struct, frozen=True, kw_only=True):
    """`made` is relative to the job's work folder. `size` in bytes and `sha256` in hexadecimal are of that file; of a
    folder they are of its files together (`export.folder_digest`). `plain_size` is what it was before it was
    compressed. `difference` is the largest one of logits that was found where the format was tried against torch.
    """

    made: str
    format: str
    quantize: str
    size: int
    sha256: str
    plain_size: int
    files: tuple[str, ...]
    difference: float | None
    seconds: float


class ChatSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`models` is the folder of the files to answer with, `context` in tokens (0: what the model was trained with, at
    most CONTEXT_LIMIT), `parallel` the answers that a model makes at once.
    """

    models: Readable = ""
    context: int = 0
    parallel: int = 4


class ChatEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat worker says in the end: how many answers it gave."""

    answers: int
