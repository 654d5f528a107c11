"""`orchctl chat --ab X Y`: both answer, nobody says which is which, the user picks."""

from __future__ import annotations

import random
from typing import Any

from orchd.cli.context import Context
from orchd.cli.text import percent, word
from orchd.errors import GOES_ON_AFTER, OrchdError, UsageInvalid

PICKS = 10
ASK = "better: 1, 2, or = for neither; s skips, q ends> "
HOW = (
    "Ask something; two answers come, in an order that is drawn anew each time. {picks} picks, then you see who is who."
)
LEAVE = frozenset({"q", "/quit", "/exit", "/q"})


def compare(context: Context, first: str, second: str, picks: int, params: dict[str, Any]) -> None:
    """Ask until `picks` more are made or the user leaves, then show the standing and offer the switch."""
    rows = [context.call("deployment.show", deployment=name) for name in (first, second)]
    standing = context.call("chat.standing", first=first, second=second)
    if context.json:
        context.show(standing)
        return
    if picks < 1:
        raise UsageInvalid(f"--picks {picks} is no number of picks", hint="Give 1 or more.")
    before = standing["first_picked"] + standing["second_picked"] + standing["neither"]
    context.note(HOW.format(picks=picks) + (f" {before} were made before." if before else ""))
    made = 0
    while made < picks and (said := _said("> ", context)) is not None:
        if not said:
            continue
        picked = _ask_both(context, [first, second], said, params)
        if picked == "end":
            break
        if picked:
            standing = context.call("chat.pick", first=first, second=second, picked=picked)
            made += 1
    context.show(standing, human)
    _offer(context, standing, rows)


def _ask_both(context: Context, names: list[str], text: str, params: dict[str, Any]) -> str:
    """first, second, neither; empty for none, and `end`."""
    messages = [*params.get("before", ()), {"role": "user", "content": text}]
    sides = [0, 1]
    random.SystemRandom().shuffle(sides)
    try:
        found = [context.call("chat.complete", deployment=name, messages=messages, **params["given"]) for name in names]
    except OrchdError as error:
        if error.code not in GOES_ON_AFTER:
            raise
        context.show_error(error)
        return ""
    answers = [str(one["text"]).strip() for one in found]
    if answers[0] == answers[1]:
        print(f"both say: {answers[0]}\n(nothing to pick)", file=context.out, flush=True)
        return ""
    for place, side in enumerate(sides):
        print(f"{place + 1}: {answers[side]}", file=context.out, flush=True)
    while (said := _said(ASK, context)) is not None:
        if said in LEAVE:
            return "end"
        if said in ("1", "2"):
            return ("first", "second")[sides[int(said) - 1]]
        if said in ("=", "s"):
            return "neither" if said == "=" else ""
    return "end"


def _said(prompt: str, context: Context) -> str | None:
    """None when the user leaves."""
    try:
        said = input(prompt).strip()
    except EOFError:
        print(file=context.out)
        return None
    return None if said in LEAVE and prompt != ASK else said


def human(standing: dict[str, Any]) -> str:
    first, second = standing["first"], standing["second"]
    told = f"{first} was picked {standing['first_picked']} times, {second} {standing['second_picked']} times"
    if standing["neither"]:
        told += f", neither {standing['neither']} times"
    if standing["rate"] is None:
        return told
    low, high = percent(standing["low"]), percent(standing["high"])
    told += f"\n{second} wins {percent(standing['rate'])} (95 % interval {low} to {high})"
    if standing["better"]:
        return f"{told}: {standing['better']} is better"
    return f"{told}: not enough to tell them apart; `orchctl chat --ab {word(first)} {word(second)}` goes on"


def _offer(context: Context, standing: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The name of the first for the second's adapter, where that one is ahead."""
    mine, other = rows
    if not standing["second_picked"] > standing["first_picked"]:
        return
    adapter = other["adapter"]
    who = adapter["name"] if adapter else "the plain base"
    if (said := _said(f"let {who} answer as {mine['name']}? [y/N] ", context)) is None or said.lower() not in (
        "y",
        "yes",
    ):
        return
    given = {"adapter": adapter["id"]} if adapter else {"base": other["base"]}
    started = context.call(
        "deploy.start", name=mine["name"], target=mine["target"], quantize=other["quantize"], **given
    )
    if started["job"] is not None:
        context.follow(started["job"])
    context.note(f"{who} answers as {mine['name']}; `orchctl deployment rollback {word(mine['name'])}` takes that back")
