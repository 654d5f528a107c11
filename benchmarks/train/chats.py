"""What every contender trains on: the same model, rows and order.

`lengths.csv` holds the lengths (tokens of the prompt, of the answer) of 512 requests, drawn with seed 0 from the 8,128
of at most 1,024 tokens among the 19,366 of Azure's trace of conversations with a chat model (16 Nov 2023;
data/AzureLLMInferenceTrace_conv.csv of github.com/Azure/AzurePublicDataset at b469a11, CC BY 4.0; Patel et al.,
Splitwise, 2024). A prompt holds what was said before it. The tokens are made up: the trace has none.

The model is a Llama of SmolLM2-135M's shape with random weights, the same in every process. All contenders train a
LoRA of rank 16 on all linear maps of its layers, in float32, with AdamW at a constant rate and gradients clipped at 1;
eight rows make a step; the loss is on the answers.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchd.lm.chat import Encoded
from orchd.train.loop import draw_batches

SMALL = os.environ.get("ORCHD_BENCH_SMALL") == "1"
LENGTHS = Path(__file__).with_name("lengths.csv")
LONGEST = 1024  # tokens
STEPS = 3 if SMALL else 5
ROWS_A_STEP = 8
RANK, ALPHA, RATE, SEED = 16, 32.0, 5e-4, 0
THREADS = 2
COMMON = 300  # different tokens
NOISE = 0.1


@dataclass(frozen=True)
class Step:
    """After a step: seconds since the process began training, its loss in nats a counted token, and how many tokens all
    steps went through, without padding (None: eight rows a step of `order`)."""

    seconds: float
    loss: float
    tokens: int | None = None


def rows() -> list[Encoded]:
    """Each row's next token follows from the last, but for some noise, so that there is something to learn."""
    rng = random.Random(SEED)
    with LENGTHS.open(encoding="utf-8") as file:
        lengths = [(int(row["prompt"]), int(row["answer"])) for row in csv.DictReader(file)]
    if SMALL:
        lengths = [(prompt // 8 + 2, answer // 8 + 2) for prompt, answer in lengths]
    return [_row(rng, prompt, answer) for prompt, answer in lengths]


def _row(rng: random.Random, prompt: int, answer: int) -> Encoded:
    ids = [rng.randrange(COMMON)]
    while len(ids) < prompt + answer:
        ids.append(rng.randrange(COMMON) if rng.random() < NOISE else (7 * ids[-1] + 3) % COMMON)
    return Encoded(tuple(ids), tuple(at >= prompt for at in range(len(ids))))


def order(examples: Sequence[Encoded]) -> list[Encoded]:
    """The rows of all steps, in the order in which orchd's loop draws them."""
    batches = draw_batches(examples, ROWS_A_STEP, random.Random(f"{SEED}/{OFFSET}"))
    return [one for _ in range(STEPS) for one in next(batches)]


OFFSET = 2_000_000
"""Steps before this run, of a schedule that is so long that the rate stays at its height."""

SCHEDULE = 10_000_000


def model() -> Any:
    """Random weights, the same each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} if SMALL else {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}  # fmt: skip
    config = LlamaConfig(
        **shape,
        num_attention_heads=8 if SMALL else 9,
        num_key_value_heads=4 if SMALL else 3,
        vocab_size=1_000 if SMALL else 49_152,
        tie_word_embeddings=True,
        rope_theta=100_000.0,
        max_position_embeddings=8_192,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).float()
