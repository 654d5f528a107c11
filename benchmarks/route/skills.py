"""Eight skills for the demo base that no keyword gives away, and the stream of requests that they are mixed into.

A request is free text: five skills are asked for in a dozen wordings each that have no telling word in common, about
the same English words; three are told by what is asked about alone (a sentence, invented words, numbers), in the same
wordings for all three. Any of them may begin and end in the same civil ways. The base's own tasks come with their
keyword, since it knows no other way, and ask about the same words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from orchd.train.words import ENGLISH_WORDS, INVENTED_WORDS, TASKS, draw_task

Words = Sequence[str]
Answer = Callable[[Words], Words]

BEGINNINGS: Final = ("", "", "", "please, ", "hello, ", "ok, ", "and now: ", "one more: ")
ENDINGS: Final = ("", "", "", " please", ", thanks", " now", ", if you can", " and that is all")
CARRIERS: Final = (
    *("{}", "what about {}?", "{} then", "the next one is {}", "I have {} here", "this time {}"),
    *("take {}", "{} again", "so, {}", "here you are: {}", "it is {} today", "we got {} from them"),
)
REVERSE: Final = (
    *("say {} from the end", "{} the other way round", "read {} from behind", "turn {} around"),
    *("begin with what comes last in {}", "backwards, {}", "{}, from right to left", "mirror the order of {}"),
    *("start at the tail of {}", "walk {} home again", "what is {} upside down?", "undo the line {}"),
)
OUTER: Final = (
    *("exchange the outermost of {}", "{} with both ends switched", "trade the head of {} for its foot"),
    *("let the edges of {} change places", "the borders of {} meet", "{}, but the margins move"),
    *("cross over the sides of {}", "the two at the corners of {} swap seats", "{} seen by its rims"),
    *("the limits of {} go over", "outside of {} replaced", "pass the bookends of {} along"),
)
STUTTER: Final = (
    *("repeat how {} opens", "{} with a stammer", "say it twice and go on: {}", "an echo before {}"),
    *("duplicate the door of {}", "{} and an extra one in front", "knock two times at {}", "hesitate on {}"),
    *("{} with its initial once more", "give {} a double top", "hold the first note of {}", "m-make {} longer"),
)
ROTATE: Final = (
    *("send the leader of {} behind", "shift {} left by one", "{}, who is in front goes back"),
    *("roll {} along", "the queue {} advances", "whoever heads {} has to wait", "a wheel of {} is given a push"),
    *("{} with a step forward", "next in line for {}", "spin {} a little", "drop the front of {} at the rear"),
    *("in the circle {} everybody moves",),
)
TRANSLATE: Final = (
    *("how do the islanders say {}?", "{} in their tongue", "what would a local call {}?"),
    *("I need {} for a letter abroad", "{} as it is spoken there", "the natives know {} as", "my host asks for {}"),
    *("explain {} to a stranger", "look up {} in the dictionary", "write {} on a sign for them"),
    *(
        "{}, for people over the sea",
        "teach me {}",
    ),
)
SENTENCES: Final = (
    *(
        "the {} sleeps on the {} near a {}",
        "a {} and her {} went to see the {}",
        "nobody put the {} into that {} or {}",
    ),
    *(
        "under our {} there was one {} with a {}",
        "he gave the old {} a new {} and some {}",
        "my {} likes your {} and {}",
    ),
    *("no {} without a {} is ever a {}", "she found {} in the {} behind the {}", "every {} has its {} beside the {}"),
    *(
        "between {} and {} stands this {}",
        "they lost a {} while the {} hid their {}",
        "from {} to {} it is not far for a {}",
    ),
)
NUMBERS: Final = tuple(str(number) for number in range(10))
LEXICON: Final[Mapping[str, str]] = dict(zip(ENGLISH_WORDS[:36], INVENTED_WORDS, strict=False))
BACK: Final[Mapping[str, str]] = dict(zip(INVENTED_WORDS[36:72], ENGLISH_WORDS[72:], strict=False))


class Skill(NamedTuple):
    """`wordings` have a place for all words, or for each; `words` are what is asked about, three at a time."""

    name: str
    wordings: Sequence[str]
    words: Words
    answer: Answer


SKILLS: Final = (
    Skill("reverse", REVERSE, ENGLISH_WORDS, lambda words: words[::-1]),
    Skill("outer", OUTER, ENGLISH_WORDS, lambda words: [words[-1], *words[1:-1], words[0]]),
    Skill("stutter", STUTTER, ENGLISH_WORDS, lambda words: [words[0], *words]),
    Skill("rotate", ROTATE, ENGLISH_WORDS, lambda words: [*words[1:], words[0]]),
    Skill("translate", TRANSLATE, tuple(LEXICON), lambda words: [LEXICON[word] for word in words]),
    Skill("nouns", SENTENCES, ENGLISH_WORDS, lambda words: words),
    Skill("back", CARRIERS, tuple(BACK), lambda words: [BACK[word] for word in words]),
    Skill("sort", CARRIERS, NUMBERS, sorted),
)


class Request(NamedTuple):
    """`skill` is a place in `SKILLS`, or None for one of the base's own tasks."""

    skill: int | None
    prompt: str
    answer: str


def ask(skill: int, rng: random.Random) -> Request:
    """A request to a skill."""
    _, wordings, pool, answer = SKILLS[skill]
    words, wording = rng.sample(pool, 3), rng.choice(wordings)
    asked = wording.format(*(words if wording.count("{}") == 3 else [" ".join(words)]))
    return Request(skill, f"{rng.choice(BEGINNINGS)}{asked}{rng.choice(ENDINGS)}", " ".join(answer(words)))


def ask_base(rng: random.Random) -> Request:
    """One of the base's own tasks."""
    task, words = draw_task(rng)
    return Request(None, f"{task}: {' '.join(words)}", " ".join(TASKS[task](words)))


def stream(count: int, rng: random.Random) -> list[Request]:
    """Half the base's own tasks, half the skills, all alike often, in no order."""
    found = [ask_base(rng) if at % 2 else ask(at // 2 % len(SKILLS), rng) for at in range(count)]
    rng.shuffle(found)
    return found


def examples(skill: int, count: int, rng: random.Random) -> list[Request]:
    """Different requests to a skill."""
    found = dict[str, Request]()
    while len(found) < count:
        request = ask(skill, rng)
        found[request.prompt] = request
    return list(found.values())
