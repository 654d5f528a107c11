"""One contender trains, and tells when each step ended, its losses and the most memory that its process had, as JSON.

usage: python -m benchmarks.train.contender orchd|hf-padmax|hf-pad|trl
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")

import torch

from benchmarks.train import chats
from benchmarks.train.chats import Step
from orchd.lm.chat import Encoded

IGNORED = -100
MICRO_BATCH = 4
"""Rows of a pass of HF's; two passes make a step."""


def orchd(examples: Sequence[Encoded], folder: Path) -> list[Step]:
    """The loop itself, as a worker runs it, on rows that are tokens already."""
    from orchd.jobs.context import JobContext
    from orchd.lm.base import Base
    from orchd.train import loop
    from orchd.train.curves import Curves
    from orchd.train.objective import Sft
    from orchd.train.plan import ROW_TOKENS
    from orchd.train.runs import State
    from orchd.train.schedule import schedule_of
    from orchd.train.specs import Checkpointing, Settled, TrainSpec
    from orchd.train.trainee import Adapter

    spec = TrainSpec(
        base="",
        dataset="",
        rank=chats.RANK,
        alpha=chats.ALPHA,
        learning_rate=chats.RATE,
        batch_size=chats.ROWS_A_STEP,
        seed=chats.SEED,
        schedule_total=chats.SCHEDULE,
        schedule_offset=chats.OFFSET,
        checkpointing=Checkpointing(enabled=False),
    )
    settled = Settled(
        rank=chats.RANK,
        alpha=chats.ALPHA,
        learning_rate=chats.RATE,
        batch_size=chats.ROWS_A_STEP,
        steps=chats.STEPS,
        warmup_steps=0,
        max_length=chats.LONGEST,
        row_tokens=ROW_TOKENS,
        gradient_checkpointing="off",
    )
    base = Base(chats.model().eval().requires_grad_(False), None, folder)
    torch.manual_seed(chats.SEED)
    trainee = Adapter(spec, base)
    parameters = [one for one in trainee.model.parameters() if one.requires_grad]
    with Curves(folder / "metrics.jsonl") as curves:
        training = loop.Training(
            spec=settled.put_into(spec),
            settled=settled,
            job=JobContext(folder, chats.THREADS, Silent()),
            folder=folder,
            trainee=trainee,
            optimizer=torch.optim.AdamW(parameters, lr=chats.RATE, weight_decay=0.0),
            schedule=schedule_of(spec, chats.STEPS),
            objective=Sft(),
            examples=examples,
            own=len(examples),
            validation=(),
            steps=chats.STEPS,
            validate_every=chats.STEPS,
            state=State(identity=""),
            curves=curves,
            points=Timed(),  # type: ignore[arg-type]
        )
        training.points.begin()  # type: ignore[attr-defined]
        loop.train(training)
    return training.points.steps  # type: ignore[attr-defined,no-any-return]


class Silent:
    """A wire to nobody."""

    def send(self, message: Mapping[str, object]) -> None:
        pass

    def receive(self) -> dict[str, object] | None:
        return None


class Timed(list[Any]):
    """The points of a run, with the time when each came."""

    def begin(self) -> None:
        self.begun = time.perf_counter()
        self.steps: list[Step] = []

    def append(self, point: Any) -> None:
        super().append(point)
        self.steps.append(Step(time.perf_counter() - self.begun, point.loss))


def peft_model() -> Any:
    from peft import LoraConfig, get_peft_model

    model = chats.model().requires_grad_(False)
    torch.manual_seed(chats.SEED)
    config = LoraConfig(
        r=chats.RANK, lora_alpha=chats.ALPHA, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Of HF's Trainer and of TRL's."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": chats.STEPS,
        "learning_rate": chats.RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": chats.SEED,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "bf16": False,
        **more,
    }


def clock() -> Any:
    """A callback that notes when each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.begun = 0.0
            self.ends: list[float] = []
            self.losses: list[float] = []
            self.tokens: list[int] = []

        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, *rest: Any, **more: Any) -> None:
            self.ends.append(time.perf_counter() - self.begun)
            self.tokens.append(int(state.num_input_tokens_seen))

        def on_log(self, *arguments: Any, logs: Mapping[str, Any], **more: Any) -> None:
            self.losses += [float(logs["loss"])] if "loss" in logs else []

    return Clock()


def hf(to_maximum: bool) -> Callable[[Sequence[Encoded], Path], list[Step]]:
    """transformers' Trainer, padding each pass to its longest row, or all to the longest that is allowed."""

    def run(examples: Sequence[Encoded], folder: Path) -> list[Step]:
        from torch.utils.data import SequentialSampler
        from transformers import Trainer, TrainingArguments

        longest = max(len(one.ids) for one in examples) if chats.SMALL else chats.LONGEST

        class InOrder(Trainer):  # type: ignore[misc]
            def _get_train_sampler(self, *arguments: Any) -> Any:
                return SequentialSampler(self.train_dataset)

        def collate(batch: Sequence[Encoded]) -> dict[str, Any]:
            width = longest if to_maximum else max(len(one.ids) for one in batch)
            return {
                "input_ids": torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in batch]),
                "attention_mask": torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in batch]),
                "labels": torch.tensor([[*labels(one), *[IGNORED] * (width - len(one.ids))] for one in batch]),
            }

        passes = chats.ROWS_A_STEP // MICRO_BATCH
        asked = settings(
            folder,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=passes,
            remove_unused_columns=False,
        )
        timer = clock()
        trainer = InOrder(
            model=peft_model(),
            args=TrainingArguments(**asked),
            train_dataset=chats.order(examples),
            data_collator=collate,
            callbacks=[timer],
        )
        trainer.train()
        return [Step(*one) for one in zip(timer.ends, timer.losses, strict=True)]

    return run


def labels(one: Encoded) -> list[int]:
    return [token if counts else IGNORED for token, counts in zip(one.ids, one.counted, strict=True)]


def trl(examples: Sequence[Encoded], folder: Path) -> list[Step]:
    """TRL's SFTTrainer with its own packing into rows of as many tokens; as many rows a step as make eight chats."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    rows = chats.order(examples)
    longest = max(len(one.ids) for one in examples) if chats.SMALL else chats.LONGEST
    a_step = max(1, round(sum(len(one.ids) for one in rows) / chats.STEPS / longest))
    data = Dataset.from_list(
        [{"input_ids": list(one.ids), "completion_mask": [int(counts) for counts in one.counted]} for one in examples]
    )
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    asked = settings(
        folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=a_step,
        max_length=longest,
        packing=True,
        completion_only_loss=True,
        gradient_checkpointing=False,
        include_num_input_tokens_seen="all",  # one packed row a pass: no padding among them
    )
    timer = clock()
    trainer = SFTTrainer(
        model=peft_model(), args=SFTConfig(**asked), train_dataset=data, processing_class=tokenizer, callbacks=[timer]
    )
    trainer.train()
    return [Step(*one) for one in zip(timer.ends, timer.losses, timer.tokens, strict=True)]


CONTENDERS: dict[str, Callable[[Sequence[Encoded], Path], list[Step]]] = {
    "orchd": orchd,
    "hf-padmax": hf(to_maximum=True),
    "hf-pad": hf(to_maximum=False),
    "trl": trl,
}


def main() -> None:
    name = sys.argv[1]
    torch.set_num_threads(chats.THREADS)
    with tempfile.TemporaryDirectory() as folder:
        steps = CONTENDERS[name](chats.rows(), Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"steps": [asdict(step) for step in steps], "peak_bytes": peak}))


if __name__ == "__main__":
    main()
