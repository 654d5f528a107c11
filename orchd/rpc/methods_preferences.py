"""Which of two deployments the user likes better, asked blindly by `orchctl chat --ab`.

What is kept is counts, by the two files and not by the names: what is deployed anew begins anew, and what was begun
goes on another day. Neither questions nor answers are kept, and nothing of it leaves the machine.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import trio

from orchd.errors import PreferenceRefused
from orchd.lm.significance import wilson
from orchd.node import Node, in_thread
from orchd.registry.local import put
from orchd.registry.local_rows import Deployment, Preference
from orchd.rpc.table import Params, Result, method

_counting = trio.Lock()


class ChatStanding(Params, frozen=True, kw_only=True):
    """Names of two deployments that answer differently."""

    first: str
    second: str


class ChatPick(ChatStanding, frozen=True, kw_only=True):
    picked: Literal["first", "second", "neither"]


class Standing(Result, frozen=True, kw_only=True):
    """How often each was picked. `rate` is the share of `second` among the picks of either, with its 95 % interval
    (Wilson's); all three None before the first. `better` is who is ahead beyond that interval, or empty."""

    first: str
    second: str
    first_picked: int
    second_picked: int
    neither: int
    rate: float | None
    low: float | None
    high: float | None
    better: str


@method("chat.standing", ChatStanding, Standing, "Which of two deployments was preferred so far, asked blindly.")
async def chat_standing(node: Node, p: ChatStanding) -> Standing:
    rows = await _two(node, p)
    return _standing(rows, await in_thread(_counts, node, rows))


@method("chat.pick", ChatPick, Standing, "Note which of two answers was preferred.")
async def chat_pick(node: Node, p: ChatPick) -> Standing:
    rows = await _two(node, p)
    async with _counting:
        counts = await in_thread(_counts, node, rows)
        swapped = rows[0].blob > rows[1].blob
        field = {"first": "second", "second": "first"}.get(p.picked, p.picked) if swapped else p.picked
        counts = msgspec.structs.replace(counts, **{field: getattr(counts, field) + 1})
        await in_thread(node.registry.local.act, "chat.pick", put(counts))
    return _standing(rows, counts)


async def _two(node: Node, p: ChatStanding) -> tuple[Deployment, Deployment]:
    """Raises DeploymentUnknown, PreferenceRefused for two names of one file."""
    first, second = [await in_thread(node.deployments.get, name) for name in (p.first, p.second)]
    if first.blob == second.blob:
        raise PreferenceRefused(f"{first.name} and {second.name} are one file: they answer alike", field="second")
    return first, second


def _counts(node: Node, rows: tuple[Deployment, Deployment]) -> Preference:
    pair = " ".join(sorted(row.blob for row in rows))
    new = Preference(pair=pair, first=0, second=0, neither=0, since=node.clock())
    return node.registry.local.get(Preference, pair) or new


def _standing(rows: tuple[Deployment, Deployment], counts: Preference) -> Standing:
    first, second = counts.first, counts.second
    if rows[0].blob > rows[1].blob:
        first, second = second, first
    picks = first + second
    interval = wilson(second / picks, picks) if picks else None
    better = ""
    if interval is not None and not interval.low <= 0.5 <= interval.high:
        better = rows[1].name if interval.low > 0.5 else rows[0].name
    return Standing(
        first=rows[0].name,
        second=rows[1].name,
        first_picked=first,
        second_picked=second,
        neither=counts.neither,
        rate=second / picks if picks else None,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        better=better,
    )
