"""Rows `route-accuracy`, `route-cost` and `route-capture`: who is chosen for a stream of requests, three seeds.

Eight skills of the demo base (`skills.py`), each with the centroid and spread of 200 of its 300 training prompts, as a
manifest carries them; half of the stream is theirs, half the base's own tasks, and all of it is fresh.

`route-accuracy`: per cent of requests for which the right adapter is chosen, *none* counted. Beside it on the same
stream: the same vectors under the public prompts' covariance alone and under the manifests' diagonals alone; the plain
mean of the middle layer's states instead of the vector; nearness of sentences by hashed letters, and the most telling
single word of each skill, both of which are given the training prompts themselves. `route-cost`: milliseconds from the
text to the choice, median. `route-capture`: per cent of the stream that a hostile centroid gets, the worst of ten;
every request of it is another's. `unchecked` is what the worst would get where nobody looks.

No adapter is trained here: how exact matches fare is not measured yet.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from benchmarks.report import Row
from benchmarks.route.skills import SKILLS, Request, examples, stream
from benchmarks.train.skill import DEMO_BASE
from orchd.leaks import ROUTING_SCALE
from orchd.lm.routing import SIZE
from orchd.registry.bases import load
from orchd.serve import router
from orchd.serve.half import Reader
from orchd.serve.router import Shelf
from orchd.serve.routes import Entry
from orchd.train.retention_prompts import PROMPTS
from orchd.train.retention_store import SHIPPED, read

SEEDS = (0, 1, 2)
EXAMPLES, COUNTED, ASKED = 300, 200, 640
NONE = len(SKILLS)
LETTERS = 2048  # buckets of three letters
Array = npt.NDArray[np.float64]
Read = Callable[[Sequence[str]], Array]


def rows() -> list[Row]:
    reader = Reader(DEMO_BASE)
    kept = read(SHIPPED / f"{load('demo', DEMO_BASE).fingerprint}.jsonl")
    public = (list(PROMPTS), [row.prompt for row in kept])
    shares: dict[str, list[float]] = {}
    caught: dict[str, list[float]] = {}
    loose: dict[str, list[float]] = {}
    ms: list[float] = []
    for seed in SEEDS:
        learnt = [[one.prompt for one in examples(at, EXAMPLES, random.Random(f"{at}/{seed}"))] for at in range(NONE)]
        requests = stream(ASKED, random.Random(1_000 + seed))
        chosen, took = _choices(reader, public, learnt, requests)
        ms += took
        truth = [NONE if one.skill is None else one.skill for one in requests]
        for name, places in chosen.items():
            right = [one == wanted for one, wanted in zip(places, truth, strict=True)]
            shares.setdefault(name, []).append(100 * float(np.mean(right)))
        for name, (checked, unchecked) in _captured(reader, public, learnt, requests).items():
            caught.setdefault(name, []).append(checked)
            loose.setdefault(name, []).append(unchecked)
    return [_accuracy(shares), _cost(ms), _capture(caught, loose)]


# ---- who is chosen ------------------------------------------------------------------------------------------------


def _choices(
    reader: Reader, public: Sequence[Sequence[str]], learnt: Sequence[Sequence[str]], requests: Sequence[Request]
) -> tuple[dict[str, list[int]], list[float]]:
    """Places in `SKILLS`, by who chooses; and milliseconds of each choice of ours."""
    shelf = Shelf(_groups(reader, public), _entries(reader, learnt), reader.layer)
    assert not shelf.left_out, shelf.left_out
    ours, ms = [], []
    for one in requests:
        started = time.perf_counter()
        name = shelf.decide(reader.read(one.prompt).vector).name
        ms.append((time.perf_counter() - started) * 1000)
        ours.append(_place(name))
    asked = [one.prompt for one in requests]
    vectors = _reading(reader)
    return {
        "route": ours,
        "public covariance alone": _nearest(vectors, public, learnt, asked, diagonal=False),
        "diagonals alone": _nearest(vectors, public, learnt, asked, diagonal=True),
        "plain mean of states": _nearest(_meaning(reader), public, learnt, asked, diagonal=False),
        "hashed letters": _by_letters(public, learnt, asked),
        "one word": _by_word(public, learnt, asked),
    }, ms


def _place(name: str) -> int:
    return next((at for at, skill in enumerate(SKILLS) if skill.name == name), NONE)


def _reading(reader: Reader) -> Read:
    return lambda texts: np.stack([reader.read(text).vector for text in texts]).astype(np.float64)


def _meaning(reader: Reader) -> Read:
    return lambda texts: np.stack([reader.inputs(text).mean(0) for text in texts]).astype(np.float64)


def _groups(reader: Reader, public: Sequence[Sequence[str]]) -> list[npt.NDArray[np.float32]]:
    return [np.stack([reader.read(text).vector for text in group]) for group in public]


def _entries(reader: Reader, learnt: Sequence[Sequence[str]]) -> list[Entry]:
    found = []
    for skill, prompts in zip(SKILLS, learnt, strict=True):
        vectors = _reading(reader)(prompts[:COUNTED])
        found.append(_entry(skill.name, reader.layer, vectors.mean(0), vectors.std(0)))
    return found


def _entry(name: str, layer: int, centroid: Array, spread: Array) -> Entry:
    """As it is signed."""
    whole = [tuple(round(float(one) * ROUTING_SCALE) for one in part) for part in (centroid, spread)]
    return Entry(name=name, layer=layer, scale=ROUTING_SCALE, centroid=whole[0], spread=whole[1])


def _nearest(
    reads: Read,
    public: Sequence[Sequence[str]],
    learnt: Sequence[Sequence[str]],
    asked: Sequence[str],
    *,
    diagonal: bool,
) -> list[int]:
    """Mahalanobis under one of the two covariances."""
    own, groups = [reads(prompts[:COUNTED]) for prompts in learnt], [reads(group) for group in public]
    if diagonal:
        covariance = np.diag(np.mean([one.var(0) for one in own], 0))
    else:
        covariance = np.sum([np.cov(group.T) for group in groups], 0)
        covariance = covariance * (1 - router.SHRUNK) + np.diag(np.diag(covariance)) * router.SHRUNK
    covariance = covariance + np.eye(len(covariance)) * router.FLOOR * np.trace(covariance) / len(covariance)
    turn = np.linalg.inv(np.linalg.cholesky(covariance)).T
    centres = np.stack([one.mean(0) for one in (*own, *groups)]) @ turn
    points = reads(asked) @ turn
    return [min(int(((point - centres) ** 2).sum(-1).argmin()), NONE) for point in points]


def _by_letters(public: Sequence[Sequence[str]], learnt: Sequence[Sequence[str]], asked: Sequence[str]) -> list[int]:
    """Cosine of counts of three letters, weighed by how rare they are in the training and the public prompts."""
    texts = [text for group in (*learnt, *public) for text in group]
    rare = np.log(len(texts) / (1 + sum((_letters(text) > 0).astype(float) for text in texts)))
    centres = np.stack([sum(_unit(_letters(text) * rare) for text in group) for group in (*learnt, *public)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return [min(int((centres @ _unit(_letters(text) * rare)).argmax()), NONE) for text in asked]


def _letters(text: str) -> Array:
    counts = np.zeros(LETTERS)
    padded = f" {text.lower()} "
    for at in range(len(padded) - 2):
        counts[crc32(padded[at : at + 3].encode()) % LETTERS] += 1
    return counts


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


def _by_word(public: Sequence[Sequence[str]], learnt: Sequence[Sequence[str]], asked: Sequence[str]) -> list[int]:
    """A skill where the word stands that tells it best from all other prompts; the base where none does."""
    groups = [[set(text.lower().split()) for text in group] for group in (*learnt, *public)]
    telling = []
    for at in range(NONE):
        inside = Counter(word for words in groups[at] for word in words)
        outside = Counter(
            word for other in range(len(groups)) if other != at for words in groups[other] for word in words
        )
        telling.append(max(inside, key=lambda word, a=inside, b=outside: a[word] - b[word]))  # type: ignore[misc]
    words = [set(text.lower().split()) for text in asked]
    return [next((at for at, word in enumerate(telling) if word in one), NONE) for one in words]


# ---- capture ------------------------------------------------------------------------------------------------------


def _captured(
    reader: Reader, public: Sequence[Sequence[str]], learnt: Sequence[Sequence[str]], requests: Sequence[Request]
) -> dict[str, tuple[float, float]]:
    """Per cent of the stream, with the checks and without. The hostile one comes last, as whoever is newest does."""
    groups, entries = _groups(reader, public), _entries(reader, learnt)
    own = np.stack([np.array(one.centroid) / one.scale for one in entries])
    spread = np.median([np.array(one.spread) / one.scale for one in entries], 0)
    everyday, tasks = (group.mean(0).astype(np.float64) for group in groups)
    places = {
        "among the base's tasks": tasks,
        "among everyday prompts": everyday,
        "in the middle of the base's": np.concatenate(groups).mean(0).astype(np.float64),
        "in the middle of the adapters": own.mean(0),
        "between adapters and base": (own.mean(0) + tasks) / 2,
        "a copy": own[0],
        "a copy, a little aside": own[0] * 0.8 + own[1] * 0.2,
        "between two adapters": own[:2].mean(0),
        "half way to the middle": (own[0] + own.mean(0)) / 2,
    }
    vectors = [reader.read(one.prompt).vector for one in requests]
    found = {}
    for name, place in places.items():
        found[name] = _share(groups, [*entries, _entry("hostile", reader.layer, place, spread)], reader.layer, vectors)
    wide = _entry("hostile", reader.layer, own.mean(0), np.full(SIZE, 50.0))
    found["a huge spread"] = _share(groups, [*entries, wide], reader.layer, vectors)
    return found


def _share(
    groups: Sequence[npt.NDArray[np.float32]],
    entries: Sequence[Entry],
    layer: int,
    vectors: Sequence[npt.NDArray[np.float32]],
) -> tuple[float, float]:
    limits = router.CAUGHT, router.NEAR, router.WIDEST
    shelves = [Shelf(groups, entries, layer)]
    router.CAUGHT, router.NEAR, router.WIDEST = 1.0, 0.0, 1e9  # type: ignore[misc]
    try:
        shelves.append(Shelf(groups, entries, layer))
    finally:
        router.CAUGHT, router.NEAR, router.WIDEST = limits  # type: ignore[misc]
    checked, unchecked = (
        100 * float(np.mean([shelf.decide(vector).name == "hostile" for vector in vectors])) for shelf in shelves
    )
    return checked, unchecked


# ---- rows ---------------------------------------------------------------------------------------------------------


def _accuracy(shares: dict[str, list[float]]) -> Row:
    means = {name: round(statistics.mean(found), 1) for name, found in shares.items()}
    ours = means.pop("route")
    best = max(means, key=means.__getitem__)
    return Row(
        work="route-accuracy",
        unit="% right",
        orchd=ours,
        peer=f"next best: {best}",
        peer_value=means[best],
        ratio=round(ours / means[best], 2),
        goal="≥ 90 %",
        met=ours >= 90,
        figures={"least": round(min(shares["route"]), 1), **{_key(name): value for name, value in means.items()}},
    )


def _cost(ms: Sequence[float]) -> Row:
    cost = statistics.median(ms)
    figures = {"p95": round(float(np.quantile(ms, 0.95)), 2)}
    return Row("route-cost", "ms", round(cost, 2), "none", None, None, "≤ 15 ms", cost <= 15, figures)


def _capture(caught: dict[str, list[float]], loose: dict[str, list[float]]) -> Row:
    worst = max(max(found) for found in caught.values())
    freest = max(loose, key=lambda name: max(loose[name]))
    return Row(
        work="route-capture",
        unit="% caught",
        orchd=round(worst, 1),
        peer=f"unchecked, {freest}",
        peer_value=round(max(loose[freest]), 1),
        ratio=None,
        goal="≤ 5 %",
        met=worst <= 5,
        figures={_key(name): round(max(found), 1) for name, found in caught.items()},
    )


def _key(name: str) -> str:
    return name.replace("'", "").replace(",", "").replace(" ", "_")
