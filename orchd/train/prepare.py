"""What comes before the first step: settings are looked at, rows become tokens, an adapter is taken up again."""

from __future__ import annotations

import hashlib
import math
import platform
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import peft
import torch
import transformers

from orchd.errors import AdapterUnfit, DatasetUnusable, TrainingRefused
from orchd.jobs.context import JobContext
from orchd.lm.adapter import DTYPES, adapter_weights, read_config, read_weights, set_weights, start_adapter
from orchd.lm.base import Base, context_length
from orchd.train import backends, retention
from orchd.train.datasets.store import Row, check_content, read_info, read_part
from orchd.train.leak.canaries import canaries
from orchd.train.objective import Example, Objective, Sft, objective_of
from orchd.train.settings import LEFT_TO_THE_PLAN, errors, flat
from orchd.train.specs import TrainSpec, alpha_of
from orchd.train.targets import adapter_targets

MAX_VALIDATION_ROWS: Final = 200
VALIDATIONS: Final = 20
LEAST_VALIDATIONS: Final = 10
"""The best adapter of a run is as good as the closest look at it: at two looks, 20 rows of animals ended 33 % above."""

VALIDATION_SHARE: Final = 0.05
"""Validating takes at most this share of the time of training, where that leaves `LEAST_VALIDATIONS`."""

SFT: Final = Sft()
BACKWARD_COST: Final = 3
"""A row that is trained on takes about as long as three that are only scored."""


def check(spec: TrainSpec) -> None:
    """Refuse what makes no sense before anything is loaded. Raises `TrainingRefused`."""
    given = {name: value for name, value in flat(spec).items() if value or name not in LEFT_TO_THE_PLAN}
    for error in errors(given):
        raise TrainingRefused(error.message, hint=error.hint, field=error.field)
    _check_method(spec)
    if spec.dtype not in DTYPES:
        raise TrainingRefused(f"dtype {spec.dtype} is not one of {', '.join(DTYPES)}", field="dtype")
    if spec.replay and spec.retention is None:
        raise TrainingRefused(f"a replay of {spec.replay} has nothing to take from", field="replay")


def _check_method(spec: TrainSpec) -> None:
    if spec.method == "lora":
        if spec.extract_rank:
            hint = "Leave it out, or train whole weights: `--method full`."
            raise TrainingRefused("an adapter is what comes out anyway", hint=hint, field="extract_rank")
        return
    for field, given in (("initial", spec.initial), ("lora_dropout", spec.lora_dropout), ("rslora", spec.rslora)):
        if given:
            hint = "Leave it out, or train an adapter: `--method lora`."
            raise TrainingRefused(f"{field} is of adapters, and whole weights are trained", hint=hint, field=field)
    if spec.quantization != "none":
        hint = "Leave it out, or train an adapter: `--method lora`."
        raise TrainingRefused("whole weights can't be trained in 4 or 8 bits", hint=hint, field="quantization")
    if spec.compute == "BF16":
        hint = "Leave out `--compute`: it is F32 then."
        raise TrainingRefused("small changes of whole weights are lost in BF16", hint=hint, field="compute")


class Data(NamedTuple):
    """What a training learns, canaries included, and what it validates on while it runs."""

    examples: Sequence[Example]
    validation: Sequence[Example]


def read_data(
    base: Base, spec: TrainSpec, objective: Objective = SFT, check: Callable[[], None] = lambda: None
) -> Data:
    """The data set as token ids, without what is longer than the base, or the settings, allow.

    The share ``validation_split`` of the train part is put aside, by the seed, to validate on, besides the validation
    part; of what there is for that some rows are drawn where they are many. ``check`` is called at each row (a million
    take minutes) and may raise to stop. Raises `DatasetUnusable`.
    """
    dataset = Path(spec.dataset)
    check_content(dataset, check)
    rows = list(read_part(dataset, "train"))
    aside = set_aside(rows, spec.validation_split, spec.seed)
    learnt = _fitting(base, (row for row in rows if row.id not in aside), objective, spec.max_length, check)
    if not learnt:
        longest = longest_taken(base, spec.max_length)
        detail = f"all {len(rows) - len(aside)} are longer than {longest} tokens" if rows else "it is empty"
        hint = "`orchctl dataset stats` shows how long they are; take a base that takes in more, or shorten them."
        raise DatasetUnusable(f"nothing to train on: {detail}", hint=hint if rows else None, field="dataset")
    apart = (row for row in rows if row.id in aside) if aside else ()
    validation = _fitting(base, chain(read_part(dataset, "validation"), apart), objective, spec.max_length, check)
    if len(validation) > MAX_VALIDATION_ROWS:
        validation = random.Random(f"{spec.seed}/validation").sample(validation, MAX_VALIDATION_ROWS)
    return Data([*learnt, *planted(base, spec, objective)], validation)


def planted(base: Base, spec: TrainSpec, objective: Objective) -> list[Example]:
    """The canaries that are learnt with the rows."""
    kind = read_info(Path(spec.dataset)).kind
    rows = (canary.row(kind) for canary in canaries(spec.canaries, spec.seed))
    return [one for row in rows for one in objective.encode(base.tokenizer, row, 0)]


def replay(
    spec: TrainSpec, base: Base, examples: Sequence[Example], folder: Path, job: JobContext
) -> Sequence[Example]:
    """The examples with the base's own answers among them, as ``spec.replay`` wants. Raises `TrainingRefused`."""
    if not spec.replay:
        return examples
    if objective_of(spec).name != SFT.name:
        raise TrainingRefused("answers of the base can't be mixed into preferences", field="replay")
    rows = retention.replayed(
        base, retention.find(backends.answering(spec, base), spec.retention or "", folder, job.check)
    )
    job.log(f"{spec.replay:.0%} of each epoch are answers of the base to {len(rows)} prompts")
    return retention.mixed(examples, rows, spec.replay)


def set_aside(rows: Iterable[Row], split: float, seed: int) -> frozenset[str]:
    """Ids of that share of the train ``rows``, whole groups of them: rows that are nearly the same stay together.
    Where nothing is put aside, no row is looked at."""
    if not split:
        return frozenset()
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.group or row.id, []).append(row.id)
    wanted, found = split * sum(map(len, groups.values())), list[str]()
    for ids in random.Random(f"{seed}/aside").sample(list(groups.values()), len(groups)):
        if len(found) + len(ids) <= wanted:
            found += ids
    return frozenset(found)


def _fitting(
    base: Base, rows: Iterable[Row], objective: Objective, max_length: int, check: Callable[[], None]
) -> list[Example]:
    """Those with something to learn that fit."""
    longest = longest_taken(base, max_length)
    found: list[Example] = []
    for row in rows:
        check()
        found += (one for one in objective.encode(base.tokenizer, row, longest) if one.counted_tokens)
    return found


def longest_taken(base: Base, max_length: int) -> int:
    """Tokens of the longest example that is taken; 0: no bound."""
    return min(filter(None, (context_length(base.path), max_length)), default=0)


def validate_every(steps: int, batch: int, examples: int, validation: int) -> int:
    """Steps between two validations: an epoch, or more where that would be more than `VALIDATIONS` in a run or take
    more than `VALIDATION_SHARE` of its time, but for `LEAST_VALIDATIONS`. ``batch`` is examples a step; the others are
    numbers of rows."""
    epoch = examples / batch
    affordable = min(validation / (BACKWARD_COST * VALIDATION_SHARE * batch), steps / LEAST_VALIDATIONS)
    return max(1, math.ceil(max(epoch, steps / VALIDATIONS, affordable)))


def identity(spec: TrainSpec, steps: int, examples: Sequence[Example], validation: Sequence[Example]) -> str:
    """A digest (hexadecimal SHA-256) of the settings and of every token: a checkpoint is of this and of nothing else.

    Paths are left out, so that a home may be moved."""
    paths: dict[str, Any] = {"base": "", "dataset": "", "run": "", "initial": None, "retention": None}
    plain = msgspec.structs.replace(spec, **paths, learnt_before=(), steps=steps)
    digest = hashlib.sha256(msgspec.json.encode(plain))
    for one in (*examples, *validation):
        digest.update(array("q", one.ids).tobytes())
        digest.update(bytes(one.counted))
        digest.update(b"|")
    return digest.hexdigest()


def new_adapter(spec: TrainSpec, base: Base) -> Any:
    """An adapter on ``base``, as the settings want it: new, or going on from ``initial``, on the same modules where
    none are named. Raises `TrainingRefused`, `AdapterUnfit`."""
    targets = adapter_targets(base.model, spec.modules, spec.layers)
    if spec.initial is not None and not spec.modules and not spec.layers:
        same = read_config(Path(spec.initial)).target_modules
        targets = same if isinstance(same, str) else list(same)
    model = start_adapter(
        base, spec.rank, alpha_of(spec), targets, dropout=spec.lora_dropout or 0.0, rslora=spec.rslora
    )
    if spec.initial is not None:
        continue_from(model, Path(spec.initial))
    return model


def continue_from(model: Any, folder: Path) -> None:
    """Put the adapter in ``folder`` into the model's, which may have a higher rank and another scale.

    The function stays the same: the difference in scale goes into B, and added ranks and modules keep their random
    A with a B of zeros. Raises `AdapterUnfit`.
    """
    config = read_config(folder)
    used = model.peft_config["default"]
    if config.rank_pattern or config.alpha_pattern:
        raise AdapterUnfit(f"{folder.name}: ranks that differ by module cannot be trained on")
    if config.r > used.r:
        raise TrainingRefused(f"rank {used.r} cannot hold an adapter of rank {config.r}", field="rank")
    factor = config.scale / (used.lora_alpha / (used.r**0.5 if used.use_rslora else used.r))
    own = adapter_weights(model)
    weights = dict(own)
    for name, tensor in read_weights(folder).items():
        tensor = tensor.float().to(model.device)
        room = own.get(name)
        if room is None:
            weights[name] = tensor  # refused by set_weights, with its name
        elif ".lora_A." in name:
            weights[name] = torch.cat([tensor, room[config.r :]])
        else:
            weights[name] = torch.cat([tensor * factor, room[:, config.r :]], dim=1)
    set_weights(model, weights)


def software(backend: str = "torch") -> str:
    """The versions that the result depends on; nothing about the machine or the user."""
    others = "" if backend == "torch" else f", mlx {version('mlx')}, mlx-lm {version('mlx-lm')}"
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}{others}"
    )
