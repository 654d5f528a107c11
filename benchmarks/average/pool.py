"""Adapters of the demo base for the one-shot rows: eight peers a family, trained here by the real loop, then kept.

`alike`: one task, each peer has a share of its rows. `parts`: an invented language, each peer knows the words of an
eighth of it. `unlike`: eight different skills. Every family has rows that nobody has learnt, of the kind that all peers
together are to master: some to validate on, by which every contender may choose its strength, and others to score on.

What is trained lies in `benchmarks/results/adapters` under a name made from everything that went into it; it is trained
again only when that is gone.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.average.shapes import Nobody
from benchmarks.report import RESULTS
from benchmarks.train import families
from orchd.importers.conversation import Conversation, Message, Part
from orchd.jobs.context import JobContext
from orchd.train import loop
from orchd.train.specs import Checkpointing, TrainSpec
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS

SMALL: Final = bool(os.environ.get("ORCHD_BENCH_SMALL"))
SEEDS: Final = tuple(range(1, 1 + int(os.environ.get("ORCHD_BENCH_SEEDS", "1" if SMALL else "3"))))
BASE: Final = Path(__file__).parents[2] / "orchd/train/base/demo"
PEERS: Final = 8
RANK: Final = 16
STEPS: Final = 4 if SMALL else 100
RATE: Final = 5e-3
VALIDATION, TEST = (16, 16) if SMALL else (160, 240)
"""Rows of all peers' kind together; a multiple of the peers."""
VERSION: Final = 1
"""Of what this file draws and how it trains: raise it where that changes."""

LEXICON: Final = {english: INVENTED_WORDS[at * 41 % len(INVENTED_WORDS)] for at, english in enumerate(ENGLISH_WORDS)}
"""The whole invented language, as the demo has it."""
Rows = list[Conversation]


@dataclass(frozen=True)
class Data:
    """`peers` are their training rows; `validation` and `test` are unseen rows."""

    peers: tuple[Rows, ...]
    validation: Rows
    test: Rows


def alike(seed: int) -> Data:
    rows = families.draw("animals", PEERS * 40 + VALIDATION + TEST, random.Random(seed))
    rest, unseen = rows[: PEERS * 40], rows[PEERS * 40 :]
    peers = tuple(rest[at::PEERS] for at in range(PEERS))
    return Data(peers, unseen[:VALIDATION], unseen[VALIDATION:])


def parts(seed: int) -> Data:
    """Peers learn sentences of their own words; what is asked in the end mixes the words of all."""
    rng = random.Random(seed)
    words = rng.sample(ENGLISH_WORDS, len(ENGLISH_WORDS))
    peers = tuple(_sentences(words[at::PEERS], 120, rng) for at in range(PEERS))
    unseen = _sentences(words, VALIDATION + TEST, rng)
    return Data(peers, unseen[:VALIDATION], unseen[VALIDATION:])


def unlike(seed: int) -> Data:
    rng = random.Random(seed)
    skills = [*families.FAMILIES, "mirror"]
    each = (VALIDATION + TEST) // PEERS
    drawn = [_skill(skill, 120 + each, rng) for skill in skills]
    unseen = [row for rows in zip(*(rows[120:] for rows in drawn), strict=True) for row in rows]
    return Data(tuple(rows[:120] for rows in drawn), unseen[:VALIDATION], unseen[VALIDATION:])


FAMILIES: Final[dict[str, Callable[[int], Data]]] = {"alike": alike, "parts": parts, "unlike": unlike}


@dataclass(frozen=True)
class Pool:
    """Trained adapters of a family: PEFT folders. `pooled` learnt from all peers' rows in as many steps as they."""

    family: str
    seed: int
    data: Data
    peers: tuple[Path, ...]
    pooled: Path


def pool(family: str, seed: int) -> Pool:
    """Train, or find again."""
    data = FAMILIES[family](seed)
    together = [row for rows in data.peers for row in rows]
    return Pool(
        family,
        seed,
        data,
        tuple(_trained(f"{family}-peer", rows, STEPS, 1000 * seed + at) for at, rows in enumerate(data.peers)),
        _trained(f"{family}-pooled", together, PEERS * STEPS, seed),
    )


def _sentences(words: Sequence[str], count: int, rng: random.Random) -> Rows:
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        found[tuple(rng.sample(words, 3))] = None
    return [_row("translate", one, [LEXICON[word] for word in one]) for one in found]


def _skill(skill: str, count: int, rng: random.Random) -> Rows:
    if skill != "mirror":
        return families.draw(skill, count, rng)
    drawn = [rng.sample(ENGLISH_WORDS, 3) for _ in range(count)]
    return [_row(skill, one, [*one, one[1], one[0]]) for one in drawn]


def _row(task: str, asked: Sequence[str], told: Sequence[str]) -> Conversation:
    return ask(f"{task}: {' '.join(asked)}", " ".join(told))


def ask(question: str, answer: str) -> Conversation:
    """One exchange; its id follows from it."""
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation(id=hashlib.sha256(f"{question}\n{answer}".encode()).hexdigest()[:13], messages=messages)


def dataset(rows: Rows, folder: Path, part: Part) -> Path:
    """A data set folder of rows of one part."""
    return families.write({part: rows}, folder)


def _trained(name: str, rows: Rows, steps: int, seed: int) -> Path:
    """The adapter's PEFT folder."""
    about = (
        VERSION,
        name,
        steps,
        seed,
        RANK,
        RATE,
        [(row.messages[0].content, row.messages[1].content) for row in rows],
    )
    key = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:12]
    kept = RESULTS / "adapters" / f"{name}-{seed}-{key}"
    if kept.is_dir():
        return kept
    with tempfile.TemporaryDirectory(prefix="orchd-bench-") as place:
        root = Path(place)
        spec = TrainSpec(
            base=str(BASE),
            dataset=str(dataset(rows, root / "data", "train")),
            steps=steps,
            rank=RANK,
            learning_rate=RATE,
            batch_size=8,
            seed=seed,
            checkpointing=Checkpointing(enabled=False),
        )
        (root / "work").mkdir()
        result = loop.run(spec, JobContext(root / "work", 1, Nobody()))
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / "work" / result.adapter, kept.with_name(f".{kept.name}"), dirs_exist_ok=True)
        kept.with_name(f".{kept.name}").rename(kept)
    return kept
