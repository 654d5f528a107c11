"""The measure of a proof: what transformers + PEFT answer in float32, through `orchd.lm`. Imported in workers only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from orchd.lm.adapter import load_adapter
from orchd.lm.base import load_base
from orchd.lm.chat import encode_prompt, render
from orchd.lm.generate import greedy_ids
from orchd.serve.go_template import go_template
from orchd.serve.specs import Prompt
from orchd.serve.weights import FloatArray


class Expected(NamedTuple):
    """One prompt's answer. `answer` ends before the token that ends it; `logprobs` is float32 (positions, vocabulary):
    one row for each token of the answer, and one more for its end where the model ended it by itself."""

    prompt: Prompt
    prompt_ids: list[int]
    answer: list[int]
    text: str
    logprobs: FloatArray


class Reference(NamedTuple):
    """The answers, and the base's chat template as a Go template ("" where it can't be said so)."""

    expected: list[Expected]
    go_template: str


def answer_all(
    base_folder: Path,
    adapter: Path | None,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    threads: int,
) -> Reference:
    """Greedy answers of at most `max_new_tokens` tokens. Raises what `orchd.lm` raises for unusable folders."""
    torch.set_num_threads(threads)
    base = load_base(base_folder)
    model = load_adapter(base, adapter) if adapter else base.model
    prompt_ids = [encode_prompt(base.tokenizer, prompt) for prompt in prompts]
    stop = _stop_ids(base.model, base.tokenizer)
    answers = greedy_ids(model, prompt_ids, max_new_tokens, stop)
    expected = []
    for prompt, ids, answer in zip(prompts, prompt_ids, answers, strict=True):
        rows = min(len(answer) + 1, max_new_tokens)
        text = base.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        expected.append(Expected(prompt, ids, answer, text, _logprobs(model, ids, answer, rows)))
    template = go_template(lambda messages, start: render(base.tokenizer, messages, start))
    return Reference(expected, template)


def _stop_ids(model: object, tokenizer: object) -> set[int]:
    """The tokens that end an answer, as the base's own settings name them."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = set(named) if isinstance(named, list) else {named}
    found.add(getattr(tokenizer, "eos_token_id", None))
    return {int(one) for one in found if one is not None}


@torch.inference_mode()
def _logprobs(model: torch.nn.Module, prompt_ids: list[int], answer: list[int], rows: int) -> FloatArray:
    """Log-probabilities of the tokens after the prompt, the answer given: float32 (rows, vocabulary)."""
    ids = torch.tensor([prompt_ids + answer], dtype=torch.long)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt_ids) - 1 :][:rows]
    values: FloatArray = torch.log_softmax(logits.float(), dim=-1).numpy().astype(np.float32)
    return values
