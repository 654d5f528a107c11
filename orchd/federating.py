"""Federations at the node: what was joined, and for each the member whose commands are done (`federation_work.py`).

That a federation was joined or left is in the journal; how far it is, in a file beside it that is written whole after
each step. What the file lacks after a crash is in the registry, and is heard again at the start.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from orchd import federation_work as work
from orchd.average import rounds_events as ev
from orchd.average.rounds import Member
from orchd.average.rounds_state import Average, Increment, Outer, Phase, Rules, State
from orchd.errors import FederationUnfit, JobNotRunning, JobUnknown, NetworkDown, NoProvider, OrchdError
from orchd.federation_notes import heard
from orchd.federation_work import Membership, terms_of
from orchd.records import Attestation, Federation, Manifest, Verified, text_id, verify
from orchd.records.ids import BASE
from orchd.registry.blobs import write_durably
from orchd.registry.local import put
from orchd.registry.local_rows import FederationHere, Received
from orchd.registry.trust import ATTESTATION

if TYPE_CHECKING:
    from orchd.node import Node

LOG = logging.getLogger("orchd.federation")
AT_ONCE = 4
"""Adapters of one federation that are fetched or looked at at once."""
AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Between two tries to get what nobody who is there could give; the last stays."""
LOOKS = 30
STATES = msgspec.json.Decoder(State)
MAX_DAMAGE = "the file of the federation {} can't be read; it begins again: {}"


class Federations:
    """Started by the daemon. Each federation that was joined and not left has its `Runner`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._nursery: trio.Nursery | None = None
        self.runners: dict[str, Runner] = {}

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        told = self._node.events.subscribe(kinds=("adapter.announced", "adapter.attested"))
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for row in await trio.to_thread.run_sync(self._node.registry.local.all, FederationHere):
                    if row.left is None:
                        await self._begin(row)
                task_status.started()
                async for event in told:
                    for runner in list(self.runners.values()):
                        if event.kind == "adapter.attested" or runner.here.record.topic in event.data["topics"]:
                            runner.tell(event.kind, event.data["id"])
        finally:
            self._nursery = None
            told.close()

    async def join(self, row: FederationHere) -> None:
        """Take part from now on, or again. Durable on return."""
        local = self._node.registry.local
        await trio.to_thread.run_sync(partial(local.act, "federation.join", put(row)))
        if (runner := self.runners.get(row.id)) is None or runner.is_over:
            await self._begin(row)
        else:
            runner.announce_own()

    async def leave(self, row: FederationHere) -> None:
        """Take part no more: what is being trained for it is stopped, what was published stays so."""
        left = msgspec.structs.replace(row, left=self._node.clock())
        await trio.to_thread.run_sync(partial(self._node.registry.local.act, "federation.leave", put(left)))
        if (runner := self.runners.pop(row.id, None)) is not None:
            await runner.stop("you left it")

    def state(self, id: str) -> State | None:
        """How far a federation is, also one that was left; None for one that never began here."""
        runner = self.runners.get(id)
        if runner is not None and runner.member is not None:
            return runner.member.state
        return _read(self._path(id))

    async def _begin(self, row: FederationHere) -> None:
        node = self._node
        try:
            here = await trio.to_thread.run_sync(membership, node, row)
            await node.network.join(
                here.record.topic, await trio.to_thread.run_sync(node.topics.secret, here.record.topic)
            )
        except OrchdError as error:
            LOG.warning("the federation %s rests: %s", row.id, error)
            return
        assert self._nursery is not None
        runner = self.runners[row.id] = Runner(node, here, self._path(row.id))
        await self._nursery.start(runner.run)

    def _path(self, id: str) -> Path:
        return self._node.paths.data / "federations" / f"{id}.json"


def membership(node: Node, row: FederationHere) -> Membership:
    """Raises `FederationUnfit` where its base is not here, `DatasetUnknown`."""
    signed = verify(row.envelope, Federation)
    record = signed.record
    return Membership(
        id=signed.id,
        record=record,
        terms=(terms := terms_of(record)),
        rules=rules_of(record, terms),
        base=base_name(node, record),
        dataset=node.datasets.get(row.dataset).id,
    )


def rules_of(record: Federation, terms: work.Terms) -> Rules:
    return Rules(
        rounds=record.rounds,
        cadence_ms=1_000 * record.cadence_s,
        min_peers=record.min_members,
        rank=record.rank,
        outer=Outer(
            momentum_ppm=None if terms.momentum_ppm < 0 else terms.momentum_ppm, strength_ppm=terms.strength_ppm
        ),
    )


def base_name(node: Node, record: Federation) -> str:
    """What the base is called here. Raises `FederationUnfit`."""
    fingerprint = text_id(BASE, record.base)
    same = node.registry.known_bases.same(fingerprint)
    found = [base.name for base in node.registry.bases() if base.fingerprint in same]
    if not found:
        hint = "`orchctl base add` takes it in; whoever made the federation knows which it is."
        raise FederationUnfit(f"its base {fingerprint} is not here", hint=hint, field="federation")
    return found[0]


def _read(path: Path) -> State | None:
    try:
        return STATES.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        LOG.warning(MAX_DAMAGE.format(path.stem, error))
        return None


class Runner:
    """Feeds one member what happens, and has its commands done."""

    def __init__(self, node: Node, here: Membership, path: Path) -> None:
        self._node, self.here, self._path = node, here, path
        self.member: Member | None = None
        self._send, self._events = trio.open_memory_channel[ev.Event](10_000)
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._seen: set[str] = set()
        self._wanted: set[str] = set()
        self._training: dict[int, str] = {}
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.trouble = ""

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Until the federation is over, or it is cancelled. What fails here ends this federation's work alone."""
        task_status.started()
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await self._start()
                    await self._live()
                    nursery.cancel_scope.cancel()
            except* Exception as group:
                self.trouble = f"it rests ({group.exceptions[0]}); `orchctl federation join {self.here.id}` goes on"
                LOG.error("the federation %s rests", self.here.id, exc_info=group)
            finally:
                self._nursery = None
                self._gone.set()

    async def stop(self, reason: str) -> None:
        """Take part no more."""
        if self.member is not None and not self.member.state.phase.ended:
            await self._do(self.member.handle(ev.Stop(reason), self._node.clock()))
        for job in self._training.values():
            await self._cancel(job)
        self._scope.cancel()
        await self._gone.wait()

    @property
    def is_over(self) -> bool:
        return self._gone.is_set()

    def announce_own(self) -> None:
        """What was kept back may have been published by hand since."""
        if self.member is not None:
            for adapter, known in self.member.state.increments.items():
                if known.increment.author == self.member.state.me:
                    self._spawn(self._give, partial(work.announce, self._node, self.here, adapter))

    def tell(self, kind: str, adapter: str) -> None:
        """An event of the node: somebody announced or measured an adapter."""
        if self._nursery is None or self.member is None or self.member.state.phase.ended:
            return
        if kind == "adapter.attested":
            self._nursery.start_soon(self._look_at_attestations, adapter)
        else:
            self._nursery.start_soon(self._look, adapter)

    # ---- living -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        node, now = self._node, self._node.clock()
        state = await trio.to_thread.run_sync(_read, self._path)
        if state is None:
            self.member, commands = Member.join(self.here.rules, node.identity.author, now)
        else:
            self.member = Member(state)
            commands = self.member.rejoin(now) if state.phase is Phase.STOPPED else self.member.resume(now)
        await self._do(commands)
        for row in await trio.to_thread.run_sync(node.registry.announcements, self.here.record.topic):
            self.tell("adapter.announced", row.adapter)

    async def _live(self) -> None:
        assert self.member is not None
        while not self.member.state.phase.ended:
            due = self.member.next_ms
            patience = float("inf") if due is None else max(0.0, (due - self._node.clock()) / 1_000)
            event: ev.Event = ev.Tick()
            with trio.move_on_after(patience):
                event = await self._events.receive()
            await self._do(self.member.handle(event, self._node.clock()))

    async def _do(self, commands: list[ev.Command]) -> None:
        """What is known is kept before anything is done that follows from it."""
        assert self.member is not None
        await trio.to_thread.run_sync(_write, self._path, msgspec.json.encode(self.member.state))
        for command in commands:
            LOG.debug("%s: %s", self.here.id, command)
            await self._obey(command)

    async def _obey(self, command: ev.Command) -> None:
        node, here = self._node, self.here
        match command:
            case ev.Train():
                self._spawn(self._train, command)
            case ev.StopTraining(number):
                if (job := self._training.pop(number, None)) is not None:
                    await self._cancel(job)
            case ev.Announce(adapter):
                self._spawn(self._give, partial(work.announce, node, here, adapter))
            case ev.Fetch(adapter):
                if adapter not in self._wanted:
                    self._wanted.add(adapter)
                    self._spawn(self._fetch, adapter)
            case ev.Look(adapter):
                self._spawn(self._look, adapter)
            case ev.Make():
                self._spawn(self._give, partial(work.make, node, here, command))
            case ev.Judge():
                self._spawn(self._give, partial(work.judge, node, here, command))
            case ev.Attest():
                self._spawn(self._attest, command)
            case ev.Adopt(played):
                told = {"id": here.id, "topic": here.record.topic, "round": played.round}
                told |= {"outcome": str(played.outcome), "adapter": played.adapter, "recipe": played.recipe}
                node.events.emit("federation.round", told)

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

    async def _give(self, ask: Callable[[], Awaitable[ev.Event | None]]) -> None:
        if (event := await ask()) is not None:
            await self._send.send(event)

    # ---- one by one -------------------------------------------------------------------------------------------------

    async def _train(self, command: ev.Train) -> None:
        try:
            job = await work.train(self._node, self.here, command)
        except OrchdError as error:
            await self._send.send(ev.TrainingFailed(command.round, error.message))
            return
        self._training[command.round] = job.id
        event = await work.trained(self._node, command, job.id)
        if self._training.get(command.round) == job.id:
            del self._training[command.round]
            await self._send.send(event)

    async def _cancel(self, job: str) -> None:
        with suppress(JobNotRunning, JobUnknown):
            await self._node.jobs.cancel(job)

    async def _attest(self, command: ev.Attest) -> None:
        try:
            await work.attest(self._node, self.here, command)
        except OrchdError as error:
            LOG.warning("what was measured of %s is not told: %s", command.adapter, error)

    async def _fetch(self, adapter: str) -> None:
        """Until somebody gives it, as long as it can be used."""
        tries, event = 0, None
        while event is None and self._can_use(adapter):
            async with self._limiter:
                event = await work.fetch(self._node, adapter)
            if event is None:
                await trio.sleep(AGAIN_SECONDS[min(tries, len(AGAIN_SECONDS) - 1)])
                tries += 1
        self._wanted.discard(adapter)
        if event is not None:
            await self._send.send(event)

    def _can_use(self, adapter: str) -> bool:
        assert self.member is not None
        state = self.member.state
        return not state.phase.ended and (adapter in state.increments or adapter in state.averages)

    async def _look(self, adapter: str) -> None:
        """What is announced, by its manifest alone. Whoever has it may be away for a while."""
        if adapter in self._seen:
            return
        self._seen.add(adapter)
        manifest = None
        for pause in (*AGAIN_SECONDS, *AGAIN_SECONDS[-1:] * LOOKS):
            try:
                async with self._limiter:
                    manifest = await self._manifest(adapter)
                break
            except (NoProvider, NetworkDown):
                await trio.sleep(pause)
            except OrchdError as error:
                LOG.info("%s is not looked at: %s", adapter, error)
                return
        if manifest is None:
            self._seen.discard(adapter)  # it may be announced again
            return
        found = heard(manifest, self.here.id)
        if isinstance(found, Increment):
            await self._send.send(ev.Heard(found))
        elif isinstance(found, Average):
            await self._send.send(ev.AverageHeard(found))
            await self._look_at_attestations(adapter)

    async def _manifest(self, adapter: str) -> Verified[Manifest]:
        registry = self._node.registry
        if await trio.to_thread.run_sync(registry.has_adapter, adapter):
            return await trio.to_thread.run_sync(registry.manifest, adapter)
        return await self._node.network.peek(adapter)

    async def _look_at_attestations(self, adapter: str) -> None:
        for event in await trio.to_thread.run_sync(self._attestations, adapter):
            await self._send.send(event)

    def _attestations(self, adapter: str) -> list[ev.Attested]:
        condition, params = "kind = ? AND adapter = ?", (ATTESTATION, adapter)
        rows = self._node.registry.local.where(Received, condition, params)
        found = [work.attested(verify(row.envelope, Attestation), adapter, self.here.id) for row in rows]
        return [one for one in found if one is not None]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(path, data)
