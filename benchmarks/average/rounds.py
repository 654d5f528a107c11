"""Rows `rounds-gap`, `rounds-gap-4` and `gate-honest-rejected`: rounds without a coordinator against what else could be
done with the same steps, on the invented language of the demo base, whose words are divided among the members.

In one process, with the product's own training loop, its average of a round (increments clipped, copies one vote, none
above a third, momentum from four members on) and its gate (a new global that is worse for most members, each on its own
held-out sentences, is not adopted). All begin with the same schedule over all rounds, rank and rate:

* `factorwise`: A and B averaged by themselves, from a common start, what most tools do;
* `pooled`: one training on everybody's sentences with as many steps as all members together.

The row is 100·(factorwise - orchd)/(factorwise - pooled) of the mean losses on sentences that mix all words: 100 is as
good as pooling the data. `gate-honest-rejected` is per cent of honest members' increments that were in an average that
was not adopted; its figures are those of 2, 4 and 8 members. `ORCHD_BENCH_SEEDS` says how many seeds (5).
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.average.shapes import Nobody
from benchmarks.report import Row
from orchd.average.adapter import Adapter, AdapterWriter
from orchd.average.gram import Factors
from orchd.average.round_worker import run as average_round
from orchd.average.rounds_specs import IncrementPath, RoundSpec
from orchd.average.rounds_state import Outer
from orchd.jobs.context import JobContext
from orchd.train import evaluate, loop
from orchd.train.datasets import worker as importing
from orchd.train.datasets.specs import ImportSpec
from orchd.train.specs import AdapterPath, EvaluateSpec, TrainSpec
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS

SMALL: Final = os.environ.get("ORCHD_BENCH_SMALL") == "1"
SEEDS: Final = int(os.environ.get("ORCHD_BENCH_SEEDS", "1" if SMALL else "5"))
BASE: Final = Path(loop.__file__).parent / "base" / "demo"
ROUNDS, STEPS = (2, 4) if SMALL else (6, 50)
SENTENCES, EXAM = (40, 20) if SMALL else (190, 300)
MEMBERS: Final = (2, 4) if SMALL else (2, 4, 8)
RANK, RATE, WORDS = 16, 5e-3, 104
GOAL, GOAL_REJECTED = 85.0, 5.0
INVENTED: Final = {word: INVENTED_WORDS[at * 41 % len(INVENTED_WORDS)] for at, word in enumerate(ENGLISH_WORDS)}
LENGTHS: Final = (3, 4, 2, 5, 3, 4, 1, 3, 4, 5)


@dataclass(frozen=True)
class Played:
    """Losses on the mixed sentences (nats a token), and increments that were in averages which were not adopted."""

    factorwise: float
    orchd: float
    pooled: float
    rejected: int
    increments: int

    @property
    def gap(self) -> float:
        return 100 * (self.factorwise - self.orchd) / (self.factorwise - self.pooled)


def rows() -> list[Row]:
    played = {members: [_play(members, seed) for seed in range(SEEDS)] for members in MEMBERS}
    found = []
    for members, name in ((MEMBERS[-1], "rounds-gap"), (4, "rounds-gap-4")):
        if members in played and (name == "rounds-gap" or members != MEMBERS[-1]):
            found.append(_gap_row(name, played[members]))
    rejected = {
        f"members_{members}": 100 * sum(one.rejected for one in each) / sum(one.increments for one in each)
        for members, each in played.items()
    }
    worst = max(rejected.values())
    goal = f"at most {GOAL_REJECTED:g}"
    met = worst <= GOAL_REJECTED
    found.append(Row("gate-honest-rejected", "per cent, worst", worst, "none", 0.0, None, goal, met, rejected))
    return found


def _gap_row(name: str, played: Sequence[Played]) -> Row:
    mean = {kind: statistics.mean(getattr(one, kind) for one in played) for kind in ("factorwise", "orchd", "pooled")}
    gap = 100 * (mean["factorwise"] - mean["orchd"]) / (mean["factorwise"] - mean["pooled"])
    each = [one.gap for one in played]
    spread = {"least": min(each), "most": max(each), "seeds": float(len(each))}
    goal = f"at least {GOAL:g}" if name == "rounds-gap" else "beside it"
    met = gap >= GOAL or name != "rounds-gap"
    return Row(name, "per cent of the gap", round(gap, 1), "pooled", 100.0, None, goal, met, mean | spread)


class Stage:
    """The members' data sets, and what is done on them. `mixed` is of sentences with words of all."""

    def __init__(self, place: Path, members: int, seed: int) -> None:
        self.place, self.seed, self._count = place, seed, 0
        rng = random.Random(seed)
        words = list(ENGLISH_WORDS[:WORDS])
        rng.shuffle(words)
        parts = [words[member::members] for member in range(members)]
        drawn = [_draw(part, SENTENCES, rng) for part in parts]
        self.own = [self._dataset(sentences, "auto") for sentences in drawn]
        self.pooled = self._dataset([one for sentences in drawn for one in sentences], "train")
        self.mixed = self._dataset(_draw(words, EXAM, rng), "test")

    def _dataset(self, sentences: Sequence[tuple[str, ...]], split: str) -> Path:
        work = self.folder()
        source = work / "sentences.jsonl"
        source.write_text("".join(map(_line, sentences)))
        spec = ImportSpec(
            source=str(source),
            name=work.name,
            split=split,  # type: ignore[arg-type]
            near_duplicates="keep",
            synthetic=True,
            seed=self.seed,
        )
        return work / importing.run(spec, JobContext(work, 1, Nobody())).folder

    def folder(self) -> Path:
        self._count += 1
        made = self.place / str(self._count)
        made.mkdir()
        return made

    def train(self, data: Path, steps: int, offset: int, total: int, initial: Path | None, seed: int) -> Path:
        work = self.folder()
        spec = TrainSpec(
            base=str(BASE),
            dataset=str(data),
            initial=None if initial is None else str(initial),
            rank=RANK,
            learning_rate=RATE,
            steps=steps,
            schedule_total=total,
            schedule_offset=offset,
            seed=seed,
        )
        result = loop.run(spec, JobContext(work, 1, Nobody()))
        return work / result.adapter

    def losses(self, adapters: Sequence[Path | None], data: Path, split: str) -> list[float]:
        """None is the base."""
        spec = EvaluateSpec(
            base=str(BASE),
            adapters=tuple(AdapterPath(id=str(one), name="", path=str(one)) for one in adapters if one is not None),
            dataset=str(data),
            split=split,
            include_base=None in adapters,
            answers=False,
            speed=False,
        )
        found = evaluate.run(spec, JobContext(self.folder(), 1, Nobody()))
        return [row.loss for row in found.rows]


def _line(sentence: Sequence[str]) -> str:
    """One conversation, as `examples/make_examples.py` has them."""
    asked = {"role": "user", "content": "translate: " + " ".join(sentence)}
    said = {"role": "assistant", "content": " ".join(INVENTED[word] for word in sentence)}
    return json.dumps({"messages": [asked, said]}) + "\n"


def _draw(words: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, ...]]:
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        found[tuple(rng.sample(words, LENGTHS[len(found) % len(LENGTHS)]))] = None
    return list(found)


def _play(members: int, seed: int) -> Played:
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as place:
        stage = Stage(Path(place), members, seed)
        ours, rejected = _rounds(stage, members, seed)
        theirs = _factorwise(stage, members, seed)
        total = members * ROUNDS * STEPS
        pooled = stage.train(stage.pooled, total, 0, total, None, seed)
        found = stage.losses([theirs, ours, pooled], stage.mixed, "test")
    played = Played(*found, rejected, members * ROUNDS)
    print(f"{members} members, seed {seed}: {played}", flush=True)
    return played


def _rounds(stage: Stage, members: int, seed: int) -> tuple[Path, int]:
    """The last global, and how many increments were in averages that the gate refused."""
    momentum = Outer().momentum(members)
    globals_: list[Path | None] = [None, None]
    rejected = 0
    for number in range(ROUNDS):
        previous, before = globals_[-1], globals_[-2]
        trained = [
            stage.train(own, STEPS, number * STEPS, ROUNDS * STEPS, previous, 1000 * seed + 10 * number + member)
            for member, own in enumerate(stage.own)
        ]
        start = None if previous is None else str(previous)
        spec = RoundSpec(
            increments=tuple(
                IncrementPath(id=f"{member:02}", path=str(path), start=start, weight_ppm=1, author=f"{member:02}")
                for member, path in enumerate(trained)
            ),
            previous=start,
            before=None if before is None else str(before),
            momentum_ppm=momentum,
            rank=RANK,
        )
        work = stage.folder()
        made = work / average_round(spec, JobContext(work, 1, Nobody())).adapter
        worse = sum(_is_worse(stage, own, previous, made) for own in stage.own)
        adopted = 2 * worse <= members
        rejected += 0 if adopted else members
        globals_.append(made if adopted else previous)
    last = globals_[-1]
    if last is None:
        raise RuntimeError("no average was adopted in any round")
    return last, rejected


def _is_worse(stage: Stage, own: Path, previous: Path | None, made: Path) -> bool:
    """As the product's gate where the rows are too few to tell: by more than a hundredth of a nat."""
    before, after = stage.losses([previous, made], own, "validation")
    return after > before + 0.01


def _factorwise(stage: Stage, members: int, seed: int) -> Path:
    """FedAvg of the factors: all begin with the same A, and have the same schedule over all rounds."""
    current: Path | None = None
    for number in range(ROUNDS):
        common = 1000 * seed + 10 * number
        trained = [
            stage.train(
                own, STEPS, number * STEPS, ROUNDS * STEPS, current, common + (0 if current is None else member)
            )
            for member, own in enumerate(stage.own)
        ]
        current = _mean_of_factors(stage, trained)
    if current is None:
        raise RuntimeError("no rounds")
    return current


def _mean_of_factors(stage: Stage, folders: Sequence[Path]) -> Path:
    out = stage.folder() / "adapter"
    opened = [Adapter(folder) for folder in folders]
    modules = list(opened[0].modules.values())
    writer = AdapterWriter(out, "BF16", RANK, modules)
    for module in modules:
        found = [adapter.factors(module.name) for adapter in opened]
        root = np.float32(found[0].scale) ** 0.5
        a = np.mean([one.a for one in found], axis=0, dtype=np.float32) * root
        b = np.mean([one.b for one in found], axis=0, dtype=np.float32) * root
        writer.add(module, Factors(a=a, b=b, scale=1.0))
    writer.finish(opened[0].target_modules)
    for adapter in opened:
        adapter.__exit__(None, None, None)
    return out
