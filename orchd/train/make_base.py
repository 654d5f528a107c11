"""Make the embedded base model: ``python -m orchd.train.make_base --out DIR [--seed 0] [--steps 4000]``.

A Llama of 0.77 M parameters with its own byte-level BPE tokenizer, pretrained from nothing on the
docstrings of the standard library (30 % of the rows) and on word tasks in the chat format (70 %). It
takes about ten CPU minutes on one core, so it is made once and shipped in ``orchd/train/base/demo``,
together with ``RECORD.json``. With the same seed, Python, packages and machine, on one thread, the
files come out the same byte for byte. Not used at run time.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import random
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from orchd.lm.generate import greedy_ids
from orchd.train.muon import Muon
from orchd.train.words import ALL_WORDS, TASKS, draw_sentence, draw_task

VOCABULARY: Final = 1024
ROWS: Final = 8
ROW_TOKENS: Final = 128
TEXT_SHARE: Final = 0.3
WARM_UP_STEPS: Final = 40
MUON_RATE: Final = 0.02
MUON_WEIGHT_DECAY: Final = 0.05
ADAM_RATE: Final = 5e-3
IGNORED: Final = -100
#: How often the words are repeated for the tokenizer, and how many sentences a task is scored on.
REPEATS = 2_000
SCORED = 100

PAD, START_OF_TEXT, TURN, END_OF_TURN = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"

#: ChatML. The answer starts with a space, so that its first word is the same token as the others.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ ' ' + (message['content'] | trim) + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass
class Record:
    """What is kept beside the files about how they were made. Losses are nats per counted token."""

    script: str
    seed: int
    steps: int
    licence: str = "MIT OR Apache-2.0"
    parameters: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    heldout_text_loss: float = 0.0
    exact_match: dict[str, float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    make_base(arguments.out, seed=arguments.seed, steps=arguments.steps)


def make_base(out: Path, *, seed: int, steps: int) -> Record:
    """Write the Hugging Face folder and ``RECORD.json`` to ``out``, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    started = time.process_time()
    record = Record(script="orchd/train/make_base.py", seed=seed, steps=steps)
    texts = standard_library_docstrings()
    heldout, texts = texts[::50], [text for i, text in enumerate(texts) if i % 50]
    tokenizer = train_tokenizer(texts)
    model = new_model(tokenizer)
    record.parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = Batches(tokenizer, texts, random.Random(seed))
    record.losses = pretrain(model, batches, steps)
    record.tokens = steps * ROWS * ROW_TOKENS
    save(model, tokenizer, out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    record.heldout_text_loss = text_loss(model, Batches(tokenizer, heldout, random.Random(1)))
    record.exact_match = score_tasks(model, tokenizer, random.Random(seed + 1_000_003))
    record.cpu_seconds = round(time.process_time() - started, 1)
    record.software = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    record.sha256 = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.name != "RECORD.json"
    }
    (out / "RECORD.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
    print(json.dumps(asdict(record), indent=1))
    return record


# ---- text and tokenizer ----------------------------------------------------------------------------


def standard_library_docstrings() -> list[str]:
    """Docstrings of this Python's standard library, without its tests; none speaks of translation."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    texts: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(root).parts):
            texts.update(dict.fromkeys(_docstrings(path)))
    return [text for text in texts if "translat" not in text.lower() and text.isascii()]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 40:
                yield text


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the GPT-2 split, in which every pool word with its space is one token.

    The words and the task names are repeated often enough that their merges come before those of the
    docstrings.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START_OF_TEXT, TURN, END_OF_TURN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    names = [*TASKS, "user", "assistant", "system"]
    lessons = [" " + " ".join(ALL_WORDS)] * REPEATS + [f"{name}:" for name in names] * REPEATS
    tokenizer.train_from_iterator([*texts, *lessons], trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=AddedToken(START_OF_TEXT, special=True),
        eos_token=AddedToken(END_OF_TURN, special=True),
        pad_token=AddedToken(PAD, special=True),
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    for piece in [*(f" {word}" for word in ALL_WORDS), *names]:
        if len(fast.encode(piece, add_special_tokens=False)) != 1:
            raise RuntimeError(f"{piece!r} is not a single token")
    return fast


# ---- model and training ----------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, batches: Batches, steps: int) -> dict[str, float]:
    """Muon on the matrices inside the layers, AdamW on the rest; returns the loss at some steps."""
    inside = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    muon = Muon(inside, MUON_RATE, MUON_WEIGHT_DECAY)
    adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    losses: dict[str, float] = {}
    recent: list[float] = []
    for step in range(steps):
        rate = min((step + 1) / WARM_UP_STEPS, (steps - step) / steps)
        muon.learning_rate = MUON_RATE * rate
        adam.param_groups[0]["lr"] = ADAM_RATE * rate
        loss = batch_loss(model, batches.next())
        loss.backward()  # type: ignore[no-untyped-call]
        muon.step()
        adam.step()
        adam.zero_grad()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0 or step == 0:
            losses[str(step + 1)] = round(sum(recent) / len(recent), 4)
            print(f"step {step + 1}/{steps} loss {losses[str(step + 1)]}", flush=True)
            recent.clear()
    return losses


@dataclass(frozen=True)
class Batch:
    """Packed rows: int64 (rows, tokens) each. Positions restart with each document; labels are the
    input ids where they count and `IGNORED` elsewhere."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean nats per counted token. No attention mask: the positions tell the documents apart."""
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    counted = batch.labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(logits[:, :-1][counted], batch.labels[:, 1:][counted])


class Batches:
    """An endless stream of batches: each row is docstring text or packed word tasks."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], rng: random.Random) -> None:
        self._rng = rng
        self._pad = int(tokenizer.pad_token_id)
        self._text: list[int] = []
        for text in texts:
            self._text += [int(tokenizer.bos_token_id), *_ids(tokenizer, text)]
        self._tasks = TaskTokens(tokenizer)

    def next(self) -> Batch:
        rows = [self.text_row() if self._rng.random() < TEXT_SHARE else self._task_row() for _ in range(ROWS)]
        return _batch(rows)

    def text_row(self) -> list[tuple[int, int, int]]:
        """A window of the docstrings as (token, position, label)."""
        start = self._rng.randrange(len(self._text) - ROW_TOKENS)
        window = self._text[start : start + ROW_TOKENS]
        return [(token, position, token) for position, token in enumerate(window)]

    def _task_row(self) -> list[tuple[int, int, int]]:
        row: list[tuple[int, int, int]] = []
        while True:
            ids, counted = self._tasks.conversation(self._rng)
            if len(row) + len(ids) > ROW_TOKENS:
                break
            row += [
                (token, position, token if counts else IGNORED)
                for position, (token, counts) in enumerate(zip(ids, counted, strict=True))
            ]
        return row + [(self._pad, 0, IGNORED)] * (ROW_TOKENS - len(row))


def _batch(rows: Sequence[Sequence[tuple[int, int, int]]]) -> Batch:
    stacked = torch.tensor(rows, dtype=torch.long)
    return Batch(stacked[..., 0], stacked[..., 1], stacked[..., 2])


class TaskTokens:
    """Word tasks as token ids, put together by hand because every piece is known to be one token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._word = {word: _ids(tokenizer, f" {word}")[0] for word in ALL_WORDS}
        self._name = {name: _ids(tokenizer, f"{name}:") for name in TASKS}
        self._user = _ids(tokenizer, f"{TURN}user\n")
        self._assistant = _ids(tokenizer, f"{TURN}assistant\n")
        self._end = _ids(tokenizer, END_OF_TURN)
        self._line = _ids(tokenizer, "\n")

    def conversation(self, rng: random.Random) -> tuple[list[int], list[bool]]:
        """One task, sometimes two in a row: token ids, and which of them count in the loss."""
        ids: list[int] = []
        counted: list[bool] = []
        for _ in range(1 if rng.random() < 0.85 else 2):
            prompt, answer = self.turn(*draw_task(rng))
            ids += prompt + answer + self._line
            counted += [False] * len(prompt) + [True] * len(answer) + [False]
        return ids, counted

    def turn(self, name: str, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The prompt up to where the answer starts, and the answer with its end of turn."""
        question = [*self._name[name], *(self._word[word] for word in words)]
        prompt = [*self._user, *question, *self._end, *self._line, *self._assistant]
        return prompt, [*(self._word[word] for word in TASKS[name](words)), *self._end]


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


# ---- files and figures -----------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write BF16 safetensors, tokenizer, chat template and generation settings."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
    )
    saved: Any = model
    saved.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"  # a class name that transformers 4 knows as well
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for path in out.iterdir():
        path.chmod(0o644)


@torch.inference_mode()
def text_loss(model: LlamaForCausalLM, batches: Batches, rows: int = 128) -> float:
    """Mean nats per token on ``rows`` windows of text."""
    batch = _batch([batches.text_row() for _ in range(rows)])
    return round(float(batch_loss(model, batch)), 4)


def score_tasks(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
) -> dict[str, float]:
    """Share of greedy answers that are exactly right, by task, on fresh random sentences."""
    tasks = TaskTokens(tokenizer)
    stop = int(tokenizer.eos_token_id)
    scores: dict[str, float] = {}
    for name in TASKS:
        pairs = [tasks.turn(name, draw_sentence(name, rng)) for _ in range(SCORED)]
        answers = greedy_ids(model, [prompt for prompt, _ in pairs], 12, {stop})
        right = sum([*got, stop] == want for got, (_, want) in zip(answers, pairs, strict=True))
        scores[name] = right / SCORED
    return scores


if __name__ == "__main__":
    main()
