"""A whole federation on one thread, from a seed: lossy and slow messages, members that die, lie, sleep, come back.

Adapters are names; the bad ones are in `World.bad`, and an average is bad when most of its leaves are. The state of
whoever dies goes through JSON, as the daemon keeps it.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from orchd.average import rounds_events as ev
from orchd.average.rounds import Member
from orchd.average.rounds_state import Average, Increment, Judgement, Phase, Recipe, Rules, Share, State
from orchd.records import text_id
from orchd.records.ids import ADAPTER

MINUTE = 60_000
TRAINING, AVERAGING, JUDGING = 3 * MINUTE, 2_000, 20_000
REPAIR = 30_000
"""What did not arrive is sent again so often, as peers pull what they lack."""


def adapter(*parts: object) -> str:
    return text_id(ADAPTER, hashlib.sha256(repr(parts).encode()).digest())


@dataclass(frozen=True)
class Manner:
    """How a member behaves. `slow` multiplies its training, `clock_ms` is added to its clock; `away` are times (from,
    to) in which its process is not there. The others are lies."""

    slow: float = 1.0
    clock_ms: int = 0
    away: tuple[tuple[int, int], ...] = ()
    joins_ms: int = 0
    bad: bool = False
    withholds: bool = False
    slanders: bool = False
    invents: bool = False


@dataclass
class Node:
    name: str
    manner: Manner
    has: set[str] = field(default_factory=set)
    member: Member | None = None
    saved: bytes = b""
    alive: bool = False
    life: int = 0
    busy: set[object] = field(default_factory=set)

    @property
    def state(self) -> State:
        """As it was kept last."""
        if self.member is not None and not self.saved:
            return self.member.state
        return msgspec.json.decode(self.saved, type=State)


class World:
    def __init__(
        self, rules: Rules, manners: list[Manner], seed: int = 0, *, loss: float = 0.0, delay_ms: int = 2_000
    ) -> None:
        self.rules, self.loss, self.delay_ms = rules, loss, delay_ms
        self.random = random.Random(seed)
        self.nodes = [Node(f"m{number:02}", manner) for number, manner in enumerate(manners)]
        self.by_name = {node.name: node for node in self.nodes}
        self.now = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.told: list[tuple[str, ev.Event]] = []
        self.heard: dict[str, set[int]] = {node.name: set() for node in self.nodes}
        self.bad: set[str] = set()
        self.recipes: dict[str, Recipe] = {}
        self.log: list[str] = []
        self.told_of: dict[str, ev.Event] = {}
        for node in self.nodes:
            self.at(node.manner.joins_ms, lambda node=node: self.join(node))  # type: ignore[misc]
            for start, end in node.manner.away:
                self.at(start, lambda node=node: self.die(node))  # type: ignore[misc]
                self.at(end, lambda node=node: self.revive(node))  # type: ignore[misc]

    # ---- time -------------------------------------------------------------------------------------------------------

    def at(self, when: int, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (when, self.count, what))

    def after(self, delay: int, node: Node, what: Callable[[], None]) -> None:
        """Unless the node has died meanwhile."""
        life = node.life
        self.at(self.now + delay, lambda: what() if node.alive and node.life == life else None)

    def run(self, until: int) -> None:
        while self.queue and self.queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self.queue)
            what()
        self.now = until

    # ---- members ----------------------------------------------------------------------------------------------------

    def clock(self, node: Node) -> int:
        return 1_000_000_000 + self.now + node.manner.clock_ms

    def join(self, node: Node) -> None:
        node.alive = True
        node.member, commands = Member.join(self.rules, node.name, self.clock(node))
        self.do(node, commands)
        self.repair(node)

    def die(self, node: Node) -> None:
        node.alive, node.member, node.busy = False, None, set()
        node.life += 1

    def revive(self, node: Node) -> None:
        node.alive, node.member = True, Member(node.state)
        self.heard[node.name].clear()  # the daemon goes through what its registry has heard
        self.do(node, node.member.resume(self.clock(node)))
        self.repair(node)

    def give(self, node: Node, event: ev.Event) -> None:
        if node.alive and node.member is not None:
            self.do(node, node.member.handle(event, self.clock(node)))

    def do(self, node: Node, commands: list[ev.Command]) -> None:
        assert node.member is not None
        node.saved = (
            msgspec.json.encode(node.member.state) if node.manner.away or node.member.state.phase.ended else b""
        )
        for command in commands:
            self.log.append(f"{self.now} {node.name} {command}"[:200])
            self.obey(node, command)
        if node.alive and node.member is not None and (due := node.member.next_ms) is not None:
            self.after(max(1, due - self.clock(node)), node, lambda: self.give(node, ev.Tick()))

    def obey(self, node: Node, command: ev.Command) -> None:
        match command:
            case ev.Train(round, start):
                node.busy.add(command)
                self.after(
                    int(TRAINING * node.manner.slow), node, lambda: self.trained(node, command, round, start.recipe)
                )
            case ev.StopTraining():
                node.busy.clear()
            case ev.Announce(adapter):
                self.announce(node, adapter)
            case ev.Fetch(adapter):
                self.fetch(node, adapter)
            case ev.Look(leaf):
                for _, event in self.told:
                    if isinstance(event, ev.Heard) and event.increment.adapter == leaf:
                        self.after(self.delay_ms, node, lambda event=event: self.give(node, event))  # type: ignore[misc]
            case ev.Make():
                self.after(AVERAGING, node, lambda: self.made(node, command))
            case ev.Judge(recipe):
                self.after(JUDGING, node, lambda: self.judged(node, recipe))
            case ev.Attest(round, adapter, judgement):
                told = Judgement(before=1.0, after=9.0, worse=True) if node.manner.slanders else judgement
                self.tell(node, ev.Attested(round, adapter, node.name, told))
            case ev.Adopt():
                pass

    # ---- what they do -----------------------------------------------------------------------------------------------

    def trained(self, node: Node, command: ev.Train, round: int, start: str) -> None:
        if command not in node.busy:
            return
        node.busy.discard(command)
        increment = Increment(adapter=adapter(node.name, round, start), author=node.name, round=round, start=start)
        node.has.add(increment.adapter)
        if node.manner.bad:
            self.bad.add(increment.adapter)
        self.told_of[increment.adapter] = ev.Heard(increment)
        self.give(node, ev.Trained(increment))

    def made(self, node: Node, command: ev.Make) -> None:
        digest = command.recipe.digest
        made = adapter("average", node.name, digest)
        node.has.add(made)
        self.recipes[digest] = command.recipe
        average = Average(adapter=made, author=node.name, round=command.round, recipe=command.recipe)
        self.told_of[made] = ev.AverageHeard(average)
        shares = tuple(
            Share(author=one.author, adapter=one.adapter, weight_ppm=ppm, taken_ppm=ppm, age=0, vote=number)
            for number, (one, (_, ppm)) in enumerate(zip(command.increments, command.recipe.leaves, strict=True), 1)
        )
        self.give(node, ev.Made(digest, made, shares))
        if node.manner.invents:
            self.invent(node, command)

    def invent(self, node: Node, command: ev.Make) -> None:
        """Averages that don't follow the rules: of leaves that nobody has, of this round and of the last."""
        leaves = tuple(sorted((adapter("nothing", number), 50_000) for number in range(20)))
        for round in (command.round, self.rules.rounds):
            recipe = msgspec.structs.replace(command.recipe, leaves=leaves)
            false = Average(adapter=adapter("false", node.name, round), author=node.name, round=round, recipe=recipe)
            self.tell(node, ev.AverageHeard(false))

    def judged(self, node: Node, recipe: str) -> None:
        leaves = [leaf for leaf, _ in self.recipes[recipe].leaves]
        worse = 2 * len(self.bad & set(leaves)) > len(leaves)
        self.give(node, ev.Judged(recipe, Judgement(before=1.0, after=2.0 if worse else 0.9, worse=worse)))

    # ---- the network ------------------------------------------------------------------------------------------------

    def announce(self, node: Node, adapter: str) -> None:
        event = self.told_of[adapter]
        if event not in [one for _, one in self.told]:
            self.tell(node, event)

    def tell(self, node: Node, event: ev.Event) -> None:
        self.told.append((node.name, event))
        for other in self.nodes:
            self.pass_on(other, len(self.told) - 1)

    def pass_on(self, node: Node, number: int) -> None:
        author, event = self.told[number]
        sender = self.by_name[author]
        if author == node.name or not node.alive or sender.manner.clock_ms > 10 * MINUTE:
            self.heard[node.name].add(number)
            return  # what is dated in the future does not pass the door
        if self.random.random() >= self.loss:
            delay = self.random.randrange(1, self.delay_ms)
            self.after(delay, node, lambda: self.arrive(node, number, event))

    def arrive(self, node: Node, number: int, event: ev.Event) -> None:
        if number not in self.heard[node.name]:
            self.heard[node.name].add(number)
            self.give(node, event)

    def repair(self, node: Node) -> None:
        if node.member is not None and node.member.state.phase.ended:
            return
        for number in range(len(self.told)):
            if number not in self.heard[node.name]:
                self.pass_on(node, number)
        self.after(REPAIR, node, lambda: self.repair(node))

    def fetch(self, node: Node, adapter: str) -> None:
        """Until somebody gives it."""
        givers = [one for one in self.nodes if one.alive and adapter in one.has and not one.manner.withholds]
        if node.has & {adapter} or givers:
            self.after(self.random.randrange(1, 2 * self.delay_ms), node, lambda: self.fetched(node, adapter))
        else:
            self.after(REPAIR, node, lambda: self.fetch(node, adapter))

    def fetched(self, node: Node, adapter: str) -> None:
        node.has.add(adapter)
        self.give(node, ev.Arrived(adapter))

    # ---- looking at it ----------------------------------------------------------------------------------------------

    @property
    def honest(self) -> list[Node]:
        lies = ("bad", "withholds", "slanders", "invents")
        return [node for node in self.nodes if not any(getattr(node.manner, lie) for lie in lies)]

    def finals(self) -> dict[str, str]:
        """The recipe that each honest member ended with."""
        return {node.name: node.state.last.recipe for node in self.honest}

    def phases(self) -> set[Phase]:
        return {node.state.phase for node in self.honest}
