"""Routing at the node: who takes part in `orchd/auto`, what was chosen, and what the user says of it.

What takes part are deployments of one base in the embedded runtime whose adapters are admitted and whose authors are
trusted, and the plain base. The line-up is made again whenever anything was decided or received here (the journal says
so), so that what was revoked, blocked, quarantined or taken out is gone with the next request.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from orchd.answering import Resolved
from orchd.errors import DatasetUnusable, OrchdError, RouteUnknown, RouteUnready
from orchd.importers.conversation import Message
from orchd.lm.routing import last_asked
from orchd.registry import ADMITTED, AdapterRow
from orchd.registry.held import hold
from orchd.registry.local import put
from orchd.registry.local_rows import Deployment, RouteLesson, Run
from orchd.registry.trust import ALLOWED, FOLLOWED, SELF
from orchd.rollback import ROLLING_BACK
from orchd.serve.routes import BASE, KEPT, Decision, Entry, LeftOut, Lesson, RouteSpec
from orchd.serve.routing import RouterRuntime
from orchd.train.datasets.store import ChatRow, CompletionRow, PreferenceRow, TextRow, read_part
from orchd.train.retention_prompts import PROMPTS
from orchd.train.retention_store import read

if TYPE_CHECKING:
    from orchd.node import Node

AUTO = "orchd/auto"
TRUSTED = (SELF, FOLLOWED, ALLOWED)
"""In the order of preference: of two adapters that are too near to each other the first takes part."""

OWN_PROMPTS = 200
LEAST_PROMPTS = 8
LOG = logging.getLogger("orchd.route")


class Lineup(msgspec.Struct, frozen=True, kw_only=True):
    """Who takes part for one base. ``entries`` go by the names of deployments; ``adapters`` has the adapter of each.
    ``prompts`` are those of adapters whose manifest has no centroid."""

    base: str
    plain: str
    spec: RouteSpec
    entries: tuple[Entry, ...]
    adapters: dict[str, str]
    prompts: dict[str, tuple[str, ...]]
    left_out: tuple[LeftOut, ...]
    lessons: tuple[Lesson, ...]
    key: str


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: ``deployment``, and its ``adapter`` (None: the plain base). ``lost``: the router could not say."""

    deployment: str
    adapter: str | None
    why: str
    decision: Decision
    ms: float = 0.0
    lost: bool = False


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    base: str
    routed: Routed


class Routes:
    """Chooses for `orchd/auto`. ``counts`` is how often each deployment was chosen since the daemon started."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.runtime = RouterRuntime(
            node.paths.cache / "routing", threads=node.config.jobs.threads, sandbox=node.config.jobs.sandbox
        )
        self.counts: Counter[str] = Counter()
        self._last: _Asked | None = None
        self._known: dict[str | None, tuple[int, Lineup]] = {}
        self._found_out: dict[str, dict[str, tuple[str, LeftOut]]] = {}  # by base and deployment, of which adapter
        self._shelving = trio.Lock()
        node.answerers.resolvers[AUTO] = self._resolve

    async def _resolve(self, messages: Sequence[Message]) -> Resolved:
        routed = await self.choose(messages)
        return Resolved(routed.deployment, routed.why)

    async def choose(self, messages: Sequence[Message], base: str | None = None) -> Routed:
        """Who answers this conversation; counted, and told as an event. Raises RouteUnready."""
        text = last_asked(messages)
        lineup, routed = await self.explain(text, base)
        self.counts[routed.deployment] += 1
        self._last = _Asked(text=text, base=lineup.base, routed=routed)
        told = {"deployment": routed.deployment, "adapter": routed.adapter or "", "why": routed.why}
        self._node.events.emit("route.chosen", told)
        return routed

    async def explain(self, text: str, base: str | None = None) -> tuple[Lineup, Routed]:
        """As `choose`, and nothing is counted. The plain base answers where the router can't. Raises RouteUnready."""
        lineup = await self.lineup(base)
        if not lineup.entries and not lineup.prompts and not lineup.lessons:
            why = "no adapter takes part"
            return lineup, Routed(deployment=lineup.plain, adapter=None, why=why, decision=Decision(name=BASE, why=why))
        try:
            lineup = await self._shelved(lineup)
            chosen = await self.runtime.choose(lineup.spec, text)
        except OrchdError as error:
            LOG.warning("the router could not say who answers: %s", error)
            why = f"the plain base, since the router could not say: {error.message}"
            decision = Decision(name=BASE, why=why)
            return lineup, Routed(deployment=lineup.plain, adapter=None, why=why, decision=decision, lost=True)
        name = chosen.decision.name
        return lineup, Routed(
            deployment=name or lineup.plain,
            adapter=lineup.adapters.get(name),
            why=_why(lineup, chosen.decision),
            decision=chosen.decision,
            ms=chosen.ms,
        )

    async def lineup(self, base: str | None = None) -> Lineup:
        """Who takes part now. Raises RouteUnready."""
        last = self._node.registry.local.last
        known = self._known.get(base)
        if known is None or known[0] != last:
            known = self._known[base] = (last, await trio.to_thread.run_sync(lineup, self._node, base))
        return known[1]

    def left_out(self, lineup: Lineup) -> tuple[LeftOut, ...]:
        """Who does not take part, and why, with what the router found out when it had them last."""
        found = self._found_out.get(lineup.base, {})
        return (
            *lineup.left_out,
            *(one for name, (adapter, one) in found.items() if lineup.adapters.get(name) == adapter),
        )

    async def correct(self, right: str | None, text: str | None, base: str | None) -> tuple[str, str]:
        """From now on `right` (a deployment's name; None: the next nearest) answers what is like `text` (None: what was
        routed last). The deployment before and after. Raises RouteUnknown, RouteUnready, RouterLost."""
        asked = self._last
        if text is not None:
            lineup, routed = await self.explain(text, base)
            asked = _Asked(text=text, base=lineup.base, routed=routed)
        if asked is None:
            hint = 'Say which request: `orchctl route correct NAME --text "..."`.'
            raise RouteUnknown("nothing was routed since the daemon started", hint=hint, field="text")
        lineup = await self.lineup(asked.base)
        right = _next(lineup, asked.routed) if right is None else right
        if right != lineup.plain and right not in lineup.adapters:
            known = ", ".join((*lineup.adapters, lineup.plain))
            raise RouteUnknown(f"{right[:80]!r} does not take part; there is {known}", field="deployment")
        vector = await self.runtime.look((await self._shelved(lineup)).spec, asked.text)
        key = hashlib.sha256(lineup.base.encode() + b"\n" + vector).hexdigest()
        lesson = RouteLesson(
            key=key,
            base=lineup.base,
            adapter=lineup.adapters.get(right, BASE),
            vector=vector,
            since=self._node.clock(),
        )
        act = self._node.registry.local.act
        await trio.to_thread.run_sync(lambda: act("route.correct", put(lesson), undoable=True))
        return asked.routed.deployment, right

    async def _shelved(self, lineup: Lineup) -> Lineup:
        """The router has this line-up; what turned out to be placed against others is in quarantine."""
        async with self._shelving:
            if self.runtime.shelved(lineup.spec, lineup.key):
                return lineup
            entries = list(lineup.entries)
            for name, prompts in lineup.prompts.items():
                found = await self.runtime.average(lineup.spec, prompts)
                entries.append(
                    Entry(name=name, layer=found.layer, scale=KEPT, centroid=found.centroid, spread=found.spread)
                )
            left_out = await self.runtime.shelve(lineup.spec, lineup.key, entries, lineup.lessons)
            self._found_out[lineup.base] = {one.name: (lineup.adapters[one.name], one) for one in left_out}
        await trio.to_thread.run_sync(self._hold, lineup, left_out)
        return lineup

    def _hold(self, lineup: Lineup, left_out: Sequence[LeftOut]) -> None:
        """Strangers' that are placed to catch others' requests; one's own is left out, no more."""
        for one in left_out:
            adapter = lineup.adapters[one.name]
            LOG.warning("%s does not take part in routing: %s", one.name, one.reason)
            if one.hostile and self._node.registry.adapter(adapter).trust != SELF:
                hold(self._node.registry, adapter, f"as a route {one.reason}")


def _why(lineup: Lineup, decision: Decision) -> str:
    told = decision.why.replace("the plain base", lineup.plain)
    return f"{told}; the first {decision.tokens} tokens were looked at" if decision.cut else told


def _next(lineup: Lineup, routed: Routed) -> str:
    """The nearest one that did not answer. Raises RouteUnknown."""
    names = [one.name or lineup.plain for one in routed.decision.distances]
    found = next((name for name in names if name != routed.deployment), None)
    if found is None:
        hint = "Name the one that should have answered: `orchctl route correct NAME`."
        raise RouteUnknown("there is no other one that could have answered", hint=hint, field="deployment")
    return found


# ---- who takes part -----------------------------------------------------------------------------------------------


def lineup(node: Node, base: str | None) -> Lineup:
    """Blocks on the disk. Raises RouteUnready."""
    here = [row for row in node.deployments.list() if row.target == "embedded" and row.state != ROLLING_BACK]
    base = base or _usual_base(here)
    plain = next((row for row in here if row.base == base and row.adapter is None and not row.was), None)
    plain = plain or next((row for row in here if row.base == base and row.adapter is None), None)
    if plain is None:
        option = "" if base == "demo" else f" --base {base}"
        hint = f"`orchctl deploy --name plain{option}` makes one: it answers what no adapter is for."
        raise RouteUnready(f"routing needs the plain base {base} as a deployment", hint=hint, field="base")
    entries, adapters, prompts, out = (
        dict[str, Entry](),
        dict[str, str](),
        dict[str, tuple[str, ...]](),
        list[LeftOut](),
    )
    for row, adapter in _in_order(node, [row for row in here if row.base == base and row.adapter is not None]):
        reason = _kept_out(row, adapter, adapters)
        if reason or adapter is None:
            out.append(LeftOut(name=row.name, reason=reason))
            continue
        routing = node.registry.manifest(adapter.id).record.routing
        if routing is not None:
            entries[row.name] = Entry(name=row.name, **msgspec.structs.asdict(routing))
        elif own := _own_prompts(node, adapter.id):
            prompts[row.name] = own
        else:
            reason = "its manifest has no centroid, and none of its prompts are here: it answers by name only"
            out.append(LeftOut(name=row.name, reason=reason))
            continue
        adapters[row.name] = adapter.id
    return _made(node, plain, entries, adapters, prompts, out)


def _made(
    node: Node,
    plain: Deployment,
    entries: dict[str, Entry],
    adapters: dict[str, str],
    prompts: dict[str, tuple[str, ...]],
    out: list[LeftOut],
) -> Lineup:
    by_adapter = {adapter: name for name, adapter in adapters.items()} | {BASE: BASE}
    kept = node.registry.local.where(RouteLesson, "base = ?", (plain.base,))
    lessons = [
        Lesson(name=by_adapter[row.adapter], data=row.vector)
        for row in sorted(kept, key=lambda row: row.since)
        if row.adapter in by_adapter
    ]
    spec = _spec(node, plain.base)
    shelf = msgspec.json.encode((list(adapters.items()), sorted(prompts), lessons))
    return Lineup(
        base=plain.base,
        plain=plain.name,
        spec=spec,
        entries=tuple(entries.values()),
        adapters=adapters,
        prompts=prompts,
        left_out=tuple(out),
        lessons=tuple(lessons),
        key=hashlib.sha256(shelf).hexdigest(),
    )


def _usual_base(here: Sequence[Deployment]) -> str:
    """That of the most adapters; of several alike, the one deployed last."""
    counts = Counter(row.base for row in here if row.adapter is not None) or Counter(row.base for row in here)
    if not counts:
        raise RouteUnready("nothing is deployed in the embedded runtime")
    return counts.most_common(1)[0][0]


def _in_order(node: Node, rows: Sequence[Deployment]) -> list[tuple[Deployment, AdapterRow | None]]:
    """Whose author is trusted more comes first, then who was here first."""
    found = {row.id: row for row in node.registry.rows_of([row.adapter for row in rows if row.adapter])}

    def place(row: Deployment) -> tuple[int, int, int]:
        adapter = found.get(row.adapter or "")
        if adapter is None or adapter.trust not in TRUSTED:
            return len(TRUSTED), 0, row.created
        return TRUSTED.index(adapter.trust), adapter.received_ms, row.created

    return [(row, found.get(row.adapter or "")) for row in sorted(rows, key=place)]


def _kept_out(row: Deployment, adapter: AdapterRow | None, adapters: dict[str, str]) -> str:
    """Why it can't take part; empty where it can."""
    if adapter is None:
        return "its adapter is not here any more"
    if adapter.state != ADMITTED:
        return f"{adapter.name} is {adapter.state}: {adapter.reason}"
    if adapter.trust not in TRUSTED:
        return f"its author is not trusted; `orchctl trust follow {adapter.author}` lets it take part"
    same = next((name for name, id in adapters.items() if id == adapter.id), None)
    return "" if same is None else f"it is the same adapter as {same}"


def _own_prompts(node: Node, adapter: str) -> tuple[str, ...]:
    """What was asked in the data set that it was trained on here; nothing where that is gone or has few."""
    run = node.registry.local.get(Run, adapter)
    if run is None:
        return ()
    try:
        rows = list(islice(read_part(node.datasets.folder(run.dataset), "train"), OWN_PROMPTS))
    except (DatasetUnusable, OSError):
        return ()
    found = tuple(text for row in rows if (text := _asked(row)))
    return found if len(found) >= LEAST_PROMPTS else ()


def _asked(row: ChatRow | TextRow | CompletionRow | PreferenceRow) -> str:
    if isinstance(row, TextRow):
        return row.text
    if isinstance(row, CompletionRow):
        return row.prompt
    return last_asked(row.messages)


def _spec(node: Node, base: str) -> RouteSpec:
    """With everyday prompts, and what the base is known to answer, as its public prompts."""
    known = node.registry.known_bases.folder(base)
    groups = [PROMPTS]
    if path := node.retention.path(known.fingerprint):
        rows = read(Path(path))
        own = tuple(row.prompt for row in rows)
        groups.append(tuple(row.answer for row in rows) if set(own) <= set(PROMPTS) else own)
    public = tuple(group for group in groups if len(group) > 1)
    key = hashlib.sha256(msgspec.json.encode((known.fingerprint, public))).hexdigest()
    return RouteSpec(base=str(known.path), public=public, key=key)
