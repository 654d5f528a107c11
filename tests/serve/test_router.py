"""Which adapter a prompt is for: the choice, the user's corrections, and adapters that are placed to catch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchd.lm.routing import SIZE, Vector
from orchd.serve.half import Reader
from orchd.serve.router import Shelf
from orchd.serve.routes import BASE, KEPT, Entry, Lesson, packed
from orchd.train.retention_prompts import PROMPTS
from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS, TASKS

DEMO = Path(__file__).parents[2] / "orchd" / "train" / "base" / "demo"
LAYER = 1
WORDINGS: dict[str, tuple[str, ...]] = {
    "letters": ("how do the islanders say {}?", "{} in their tongue", "what would a local call {}?", "teach me {}"),
    "queue": ("send the leader of {} behind", "roll {} along", "next in line for {}", "spin {} a little"),
    "numbers": ("we got {} of them", "{} again", "take {}", "it is {} today"),
}


def said(topic: str, count: int, seed: int) -> list[str]:
    rng = random.Random(f"{topic}/{seed}")
    pool = [str(one) for one in range(10)] if topic == "numbers" else ENGLISH_WORDS
    return [rng.choice(WORDINGS[topic]).format(" ".join(rng.sample(pool, 3))) for _ in range(count)]


class Library:
    """The demo base's vectors of some topics, computed once."""

    def __init__(self) -> None:
        self.reader = Reader(DEMO)
        rng = random.Random(1)
        words = (*ENGLISH_WORDS, *INVENTED_WORDS)
        tasks = [f"{rng.choice(list(TASKS))}: {' '.join(rng.sample(words, 3))}" for _ in range(80)]
        self.public = [self.read(PROMPTS), self.read(tasks)]
        self.tasks = self.read([f"copy: {' '.join(rng.sample(words, 3))}" for _ in range(10)])
        self.learnt = {topic: self.read(said(topic, 60, 0)) for topic in WORDINGS}
        self.asked = {topic: self.read(said(topic, 10, 1)) for topic in WORDINGS}

    def read(self, texts: Sequence[str]) -> Vector:
        return np.stack([self.reader.read(text).vector for text in texts])

    def entry(self, topic: str) -> Entry:
        return entry(topic, self.learnt[topic].mean(0), self.learnt[topic].std(0))

    @property
    def entries(self) -> list[Entry]:
        return [self.entry(topic) for topic in WORDINGS]

    def shelf(self, entries: Sequence[Entry], lessons: Sequence[Lesson] = ()) -> Shelf:
        return Shelf(self.public, entries, LAYER, lessons)


def entry(name: str, centroid: Vector, spread: Vector) -> Entry:
    whole = (tuple(round(float(one) * 10_000) for one in part) for part in (centroid, spread))
    return Entry(name=name, layer=LAYER, scale=10_000, centroid=next(whole), spread=next(whole))


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def chosen(shelf: Shelf, vectors: Vector) -> list[str]:
    return [shelf.decide(vector).name for vector in vectors]


def test_each_topic_finds_its_own_and_the_bases_tasks_the_base(library: Library) -> None:
    shelf = library.shelf(library.entries)
    assert shelf.left_out == []
    for topic, vectors in library.asked.items():
        assert chosen(shelf, vectors).count(topic) >= 9, topic
    assert set(chosen(shelf, library.tasks)) == {BASE}
    decision = shelf.decide(library.asked["queue"][0])
    assert {one.name for one in decision.distances} == {BASE, *WORDINGS}
    assert [one.squared for one in decision.distances] == sorted(one.squared for one in decision.distances)


def test_no_adapter_and_one(library: Library) -> None:
    nobody = library.shelf([])
    assert nobody.decide(library.asked["queue"][0]).why == "no adapter takes part"
    assert set(chosen(nobody, library.asked["queue"])) == {BASE}
    one = library.shelf([library.entry("queue")])
    assert chosen(one, library.asked["queue"]).count("queue") >= 9
    assert set(chosen(one, library.tasks)) == {BASE}


def test_a_message_without_words_is_the_bases(library: Library) -> None:
    decision = library.shelf(library.entries).decide(np.zeros(SIZE, np.float32))
    assert (decision.name, decision.distances) == (BASE, ())


def test_what_is_far_from_all_is_the_bases(library: Library) -> None:
    decision = library.shelf(library.entries).decide(np.full(SIZE, 5.0, np.float32))
    assert decision.name == BASE
    far = library.shelf([library.entry("queue")]).decide(library.asked["queue"][0] + 2.0)
    assert far.name == BASE


def test_nearly_as_near_is_said(library: Library) -> None:
    shelf = library.shelf(library.entries)
    between = (library.learnt["queue"].mean(0) + library.learnt["letters"].mean(0)) / 2
    decision = shelf.decide(between)
    assert {decision.name, decision.unsure} == {"queue", "letters"}
    assert "nearly as near" in decision.why


# ---- corrections --------------------------------------------------------------------------------------------------


def test_a_corrected_request_goes_where_the_user_says(library: Library) -> None:
    asked = library.asked["queue"]
    lesson = Lesson(name="letters", data=packed(asked[0]))
    shelf = library.shelf(library.entries, [lesson])
    assert shelf.decide(asked[0]).name == "letters"
    assert "you corrected" in shelf.decide(asked[0]).why
    others = chosen(shelf, library.asked["numbers"])
    assert others.count("numbers") >= 9
    plain = library.shelf(library.entries, [Lesson(name=BASE, data=packed(asked[0]))])
    assert plain.decide(asked[0]).name == BASE


def test_many_corrections_move_the_topic(library: Library) -> None:
    """What was never corrected itself, and is like what was."""
    lessons = [Lesson(name="letters", data=packed(one)) for one in library.learnt["queue"]]
    moved = chosen(library.shelf(library.entries, lessons), library.asked["queue"]).count("letters")
    before = chosen(library.shelf(library.entries), library.asked["queue"]).count("letters")
    assert (before <= 1, moved >= 5) == (True, True)


def test_a_correction_for_who_is_not_there_says_nothing(library: Library) -> None:
    asked = library.asked["queue"]
    shelf = library.shelf(library.entries, [Lesson(name="gone", data=packed(asked[0]))])
    assert chosen(shelf, asked) == chosen(library.shelf(library.entries), asked)


def test_a_lesson_keeps_four_places(library: Library) -> None:
    vector = library.asked["queue"][0]
    assert np.allclose(Lesson(name="", data=packed(vector)).vector(), vector, atol=0.6 / KEPT)


# ---- numbers of strangers -----------------------------------------------------------------------------------------

ZEROS, ONES = (0,) * SIZE, (1,) * SIZE


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer": 2}, "of layer 2"),
        ({"centroid": (1,) * 128}, "has 128 numbers, and not 1,024"),
        ({"centroid": (1,) * 1_000_000}, "has 1,000,000 numbers"),
        ({"spread": ()}, "its spread has 0 numbers"),
        ({"centroid": (-1, *ONES[1:])}, "numbers that no prompt has"),
        ({"centroid": (2**62, *ONES[1:])}, "numbers that no prompt has"),
        ({"spread": (2**62, *ONES[1:])}, "numbers that no prompt has"),
        ({"scale": 1, "centroid": (10_000, *ONES[1:])}, "numbers that no prompt has"),
        ({"centroid": ZEROS}, "its centroid is zero"),
    ],
)
def test_numbers_that_say_nothing_are_left_out(library: Library, change: dict[str, object], told: str) -> None:
    odd = msgspec.structs.replace(library.entry("queue"), name="odd", **change)
    shelf = library.shelf([odd, *library.entries])
    assert [(one.name, told in one.reason, one.hostile) for one in shelf.left_out] == [("odd", True, False)]
    assert set(shelf.names) == set(WORDINGS)


def test_the_greatest_scale_catches_nothing(library: Library) -> None:
    """A centroid of almost nothing, and a spread of nothing."""
    tiny = msgspec.structs.replace(library.entry("queue"), name="tiny", scale=2**40)
    shelf = library.shelf([tiny, *library.entries])
    vectors = np.concatenate([*library.asked.values(), library.tasks])
    assert "tiny" not in chosen(shelf, vectors)


Place = Callable[[Library], Vector]
MEANS: dict[str, Place] = {
    "where the base's tasks are": lambda library: library.public[1].mean(0),
    "where everyday prompts are": lambda library: library.public[0].mean(0),
    "in the middle of all the base's": lambda library: np.concatenate(library.public).mean(0),
}


@pytest.mark.parametrize("place", MEANS)
def test_a_centroid_among_the_bases_own_prompts_is_recognised(library: Library, place: str) -> None:
    caught = entry("catcher", MEANS[place](library), library.learnt["queue"].std(0))
    shelf = library.shelf([caught, *library.entries])
    (out,) = shelf.left_out
    assert (out.name, out.hostile) == ("catcher", True)
    assert out.figure > 0.05
    assert f"{out.figure:.0%} of the base's own prompts" in out.reason


def test_a_huge_spread_is_recognised_and_widens_nobody(library: Library) -> None:
    wide = entry("wide", library.learnt["queue"].mean(0) * 1.2, np.full(SIZE, 100.0, np.float32))
    shelf = library.shelf([wide, *library.entries])
    assert [(one.name, one.hostile) for one in shelf.left_out] == [("wide", True)]
    assert "times that of the base's own prompts" in shelf.left_out[0].reason
    plain = library.shelf(library.entries)
    vector = library.asked["queue"][0]
    assert shelf.decide(vector).distances == plain.decide(vector).distances


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_who_sits_on_anothers_prompts_yields_to_who_came_first(library: Library, share: float) -> None:
    """A copy, and such as lie a little aside: each would get requests that are another's."""
    middle = library.learnt["queue"].mean(0) * (1 - share) + library.learnt["letters"].mean(0) * share
    copy = entry("copy", middle, library.learnt["queue"].std(0))
    shelf = library.shelf([*library.entries, copy])
    assert [one.name for one in shelf.left_out] == ["copy"]
    assert "too near to" in shelf.left_out[0].reason
    assert not shelf.left_out[0].hostile  # it may be an honest adapter of the same topic
    first = library.shelf([copy, *library.entries])
    assert "copy" in first.names
