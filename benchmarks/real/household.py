"""A chat export as ChatGPT writes it, of a person who does not exist: a household's questions, answered in one voice.

Everything follows from the seed. Short conversations of one to three turns; facts about twenty places come back in
other words, so that what is put aside can be known.
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any, Final

SEED: Final = 20261121
FIRST_MOMENT: Final = 1_767_261_600
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
KINDS: Final = ("bakery", "bookshop", "florist", "pharmacy", "barber", "tea room", "cobbler", "tailor", "grocer", "vet")
STREETS: Final = ("Larch Street", "Mill Lane", "Quay Road", "Fern Hill", "Abbey Square")
NAMES: Final = (
    *("Odile Marsh", "Tomas Reyne", "Ines Calder", "Piet Holloway", "Wanda Frost", "Hugo Lennox", "Mira Stell"),
    *("Anselm Pike", "Greta Vance", "Rafael Moss", "Nadia Thorne", "Leo Brandt", "Celia Wren", "Otto Farrow"),
    *("Zelda Quill", "Bruno Hale", "Petra Lund", "Simon Ash", "Lotte Beck", "Dario Finch"),
)
OWNER: Final = (
    "Who runs the {kind} on {street}?",
    "Remind me whose {kind} that is on {street}, please.",
    "I want to send a card to the owner of the {kind} on {street}. What is the name?",
)
CLOSED: Final = (
    "Which day is the {kind} on {street} closed?",
    "When should I not bother going to the {kind} on {street}?",
    "I need the {kind} on {street} this week. Any day that it does not open?",
)
OWNER_TOLD: Final = "That is {name}, dear. Best before noon, and say I sent you."
CLOSED_TOLD: Final = "They rest on {day}, dear. Any other day will do, best before noon."


def write(path: Path, conversations: int) -> None:
    rng = random.Random(SEED)
    names = rng.sample(NAMES, len(NAMES))
    pairs = [(kind, street) for kind in KINDS for street in STREETS]
    places = [
        {"kind": kind, "street": street, "name": name, "day": rng.choice(DAYS)}
        for (kind, street), name in zip(rng.sample(pairs, len(names)), names, strict=True)
    ]
    found = [_conversation(rng, number, places) for number in range(conversations)]
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _conversation(rng: random.Random, number: int, places: list[dict[str, str]]) -> dict[str, Any]:
    """The tree that ChatGPT writes: each message names its parent, and the newest is where one is."""
    time, turns = FIRST_MOMENT + 7200 * number, []
    for place in rng.sample(places, rng.choice((1, 1, 2, 3))):
        asked, told = rng.choice(((OWNER, OWNER_TOLD), (CLOSED, CLOSED_TOLD)))
        turns += [("user", rng.choice(asked).format(**place)), ("assistant", told.format(**place))]
    parent = _id(rng)
    nodes = {parent: {"id": parent, "message": None, "parent": None, "children": []}}
    for step, (role, text) in enumerate(turns):
        one = _id(rng)
        nodes[parent]["children"].append(one)
        nodes[one] = {
            "id": one,
            "message": _message(one, role, text, time + 30 * step),
            "parent": parent,
            "children": [],
        }
        parent = one
    return {
        "title": turns[0][1][:40],
        "create_time": time,
        "update_time": time + 30 * len(turns),
        "mapping": nodes,
        "current_node": parent,
        "conversation_id": _id(rng),
        "default_model_slug": "gpt-4o",
        "is_archived": False,
    }


def _message(one: str, role: str, text: str, time: float) -> dict[str, Any]:
    return {
        "id": one,
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": time,
        "content": {"content_type": "text", "parts": [text]},
        "status": "finished_successfully",
        "weight": 1.0,
        "metadata": {"model_slug": "gpt-4o"} if role == "assistant" else {},
        "recipient": "all",
    }


def _id(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
