"""What is fetched without asking: adapters of followed authors, and newer versions of what is here.

A newer version passes the door like anything else, and then the gate (`orchd/gate.py`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from orchd.errors import (
    NetworkDown,
    NoProvider,
    OrchdError,
    PeerBusy,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
)
from orchd.gate import Gate, ended_well, waits
from orchd.net.policy.again import Again
from orchd.records import Manifest, Verified, text_id
from orchd.records.ids import ADAPTER
from orchd.registry.trust import FOLLOWED, View
from orchd.registry.versions import Made, older
from orchd.rpc.methods_adapters import start_fetch

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger(__name__)
#: Adapters that are looked at, fetched or measured at once.
AT_ONCE = 2
#: A peer that has just connected has told its topics after so many seconds.
GREETED_S = 5.0
#: What is no refusal: somebody else may give it, or later.
AWAY = (NoProvider, NetworkDown)
LEFT = frozenset(kind.__name__ for kind in (*AWAY, PeerBusy, PeerRefused, PeerTimeout, PeerUnreachable))


class Updates:
    """Started by the daemon; listens to what is announced."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._seen: set[str] = set()
        #: Adapters with who announced them, that nobody who is there could give.
        self._again: Again[tuple[str, str]] = Again()
        self._waits = trio.Event()
        self._gate = Gate(node)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. What was announced before is looked at when somebody is followed or a policy is set."""
        heard = self._node.events.subscribe(kinds=("adapter.announced", "trust.changed", "net.peer.connected"))
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                nursery.start_soon(self._gate.finish)
                nursery.start_soon(self._look_back, nursery)
                nursery.start_soon(self._try_again, nursery)
                async for event in heard:
                    if event.kind == "trust.changed":
                        self._seen.clear()
                        nursery.start_soon(self._gate.finish)
                        nursery.start_soon(self._look_back, nursery)
                    elif event.kind == "net.peer.connected":
                        self._again.somebody_came(trio.current_time() + GREETED_S)
                        self._waits.set()
                    else:
                        nursery.start_soon(self._consider, event.data["id"], event.data["author"])
        finally:
            heard.close()

    async def _look_back(self, nursery: trio.Nursery) -> None:
        view = await self._view()
        if not any(any(_wanted(view, author)) for author in view.opinions):
            return  # as nearly always: nothing is read
        for row in await trio.to_thread.run_sync(self._node.registry.announcements):
            if not row.here and any(_wanted(view, row.author)):
                nursery.start_soon(self._consider, row.adapter, row.author)

    async def _view(self) -> View:
        return await trio.to_thread.run_sync(self._node.registry.people.view)

    async def _consider(self, adapter: str, announcer: str) -> None:
        async with self._limiter:
            try:
                if adapter not in self._seen and any(_wanted(await self._view(), announcer)):
                    self._seen.add(adapter)
                    await self._bring(adapter)
                self._again.forget((adapter, announcer))
            except OrchdError as error:
                self._seen.discard(adapter)
                LOG.info("%s was not fetched by itself: %s", adapter, error)
                if isinstance(error, AWAY):
                    self._again.failed((adapter, announcer), trio.current_time())
                    self._waits.set()
                else:
                    self._again.forget((adapter, announcer))

    async def _try_again(self, nursery: trio.Nursery) -> None:
        """Whoever has it may have been away."""
        while True:
            for adapter, announcer in self._again.take_due(trio.current_time()):
                nursery.start_soon(self._consider, adapter, announcer)
            self._waits = trio.Event()
            with trio.CancelScope(deadline=self._again.next_at()):
                await self._waits.wait()

    async def _bring(self, adapter: str) -> None:
        node = self._node
        if await trio.to_thread.run_sync(node.registry.has_adapter, adapter):
            return
        manifest = await node.network.peek(adapter)
        view = await self._view()
        everything, newer = _wanted(view, manifest.author)
        newer = newer and await trio.to_thread.run_sync(_is_newer, node, view, manifest)
        if not everything and not (newer and manifest.record.supersedes is not None):
            return
        checks = (await trio.to_thread.run_sync(waits, node),) if newer else ()
        job = await start_fetch(node, adapter, checks=checks)
        ended = await node.jobs.wait(job.id)
        if ended.error is not None and ended.error.name in LEFT:
            raise NoProvider(ended.error.message)
        await ended_well(node, job)
        if newer:
            await self._gate.pass_through(adapter)


def _wanted(view: View, author: str) -> tuple[bool, bool]:
    """Whether all that an author made is fetched without asking, and whether newer versions of what is here are."""
    if view.level(author) != FOLLOWED:
        return False, False
    opinion = view.opinion(author)
    return view.policies.auto_fetch == "followed", opinion is not None and opinion.auto_update


def _is_newer(node: Node, view: View, manifest: Verified[Manifest]) -> bool:
    """Whether an adapter that is not here comes after a version of it, by its author, that is here."""
    record = manifest.record
    new = Made(
        id=manifest.id,
        name=record.name,
        supersedes=None if record.supersedes is None else text_id(ADAPTER, record.supersedes),
        created=record.created_ms,
        received=node.clock(),
        admitted=False,
    )
    return bool(older(node.registry.index, view, new, manifest.author))
