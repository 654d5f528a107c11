"""Rounds without a coordinator, as one member sees them: events in, commands out. No I/O; the clock is an argument.

A round: train on from the global on one's own data, announce what came out (an *increment*), take the others', average,
measure the average on one's own held-out data, and go on from it. Nobody leads. What keeps members together:

* A round closes when everybody who was in the last one is in, at its deadline, or (in the first round, where nobody
  knows who comes) when it has been quiet for a while; never with fewer than `min_peers`: then it waits, however long.
* A recipe follows from leaves, the global before and the rules alone, so members with the same increments name the
  same one. With different ones they adopt, of those whose leaves are all verified here, the one with the most leaf
  weight, of equal ones the smaller digest; also later, while the next round is trained. Once most have settled on one,
  it stays: what comes later is for the next round.
* The average must not be worse than the global before it: each member measures that on its own data and signs it, and
  the majority of those in it decides; else the global stays. (A gate on single increments refuses honest members where
  knowledge is split, `average.md` §3.)
* A late increment is used in the next round, damped by its age. Who is more than `MAX_AGE` rounds behind, or alone with
  its global, goes over to what enough known members have announced, after measuring it.
"""

from __future__ import annotations

from collections.abc import Callable

from orchd.average import rounds_choice as choice
from orchd.average.recipe import MILLION
from orchd.average.rounds_events import (
    Adopt,
    Announce,
    Arrived,
    Attest,
    Attested,
    AverageHeard,
    Command,
    Event,
    Failed,
    Fetch,
    Heard,
    Judge,
    Judged,
    Look,
    Made,
    Make,
    Refused,
    Stop,
    StopTraining,
    Tick,
    Train,
    Trained,
    TrainingFailed,
)
from orchd.average.rounds_state import (
    MAX_AGE,
    Average,
    Candidate,
    Global,
    Here,
    Increment,
    Judgement,
    Known,
    Measured,
    Outcome,
    Phase,
    Played,
    Rules,
    Share,
    State,
    Turned,
    make_recipe,
)

INCREMENTS_OF_ONE = 2
"""Of one author and round: who signs two has them both looked at, and the smaller id counts."""
MAX_MEMBERS = 512
MAX_FAILURES = 3
"""Trainings in a row that may fail before the federation is stopped here."""
KEPT_ROUNDS = MAX_AGE + 1


class Member:
    """One member. Feed it `handle`; do what it gives back. `state` is all that it knows."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._out: list[Command] = []

    @classmethod
    def join(cls, rules: Rules, me: str, now_ms: int) -> tuple[Member, list[Command]]:
        """A new member, and what it does first."""
        member = cls(State(rules=rules, me=me, seen_ms=now_ms))
        member._begin(1, now_ms)
        return member, member._given()

    def resume(self, now_ms: int) -> list[Command]:
        """What was under way when the process ended, to be done again. Everything done twice is done once."""
        s = self.state
        if s.phase.ended:
            return []
        self._clock(now_ms)
        s.deadline_ms = max(s.deadline_ms, now_ms + s.rules.linger_ms)  # what was missed comes first
        if s.phase is Phase.TRAINING:
            self._out.append(Train(s.round, s.last))
        own = [known.increment.adapter for known in s.increments.values() if known.increment.author == s.me]
        mine = [one.adapter for one in s.candidates.values() if one.adapter and not one.foreign]
        self._out += [Announce(adapter) for adapter in (*own, *mine)]
        self._out += [Fetch(adapter) for adapter, known in s.increments.items() if known.state is Here.ASKED]
        if s.task:
            self._work(s.task)
        self._go_on(now_ms)
        return self._given()

    def rejoin(self, now_ms: int) -> list[Command]:
        """Go on after it was stopped here."""
        s = self.state
        if s.phase is Phase.STOPPED:
            s.reason, s.failures, s.task = "", 0, ""
            self._begin(s.round, now_ms)
        return self._given()

    @property
    def next_ms(self) -> int | None:
        """When a `Tick` is wanted next, if no event comes before."""
        s = self.state
        due = {
            Phase.GATHERING: (s.deadline_ms, choice.quiet_ms(s)),
            Phase.SETTLING: (s.settle_ms,),
            Phase.CLOSING: (s.deadline_ms,),
        }.get(s.phase, ())
        return min((at for at in due if at > s.seen_ms), default=None)

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        s = self.state
        if s.phase.ended:
            return []
        self._clock(now_ms)
        match event:
            case Tick():
                pass
            case Trained(increment):
                self._trained(increment)
            case TrainingFailed(round, reason):
                self._training_failed(round, reason)
            case Heard(increment):
                self._heard(increment)
            case Arrived(adapter):
                self._arrived(adapter)
            case Refused(adapter, reason):
                self._refused(adapter, reason)
            case AverageHeard(average):
                self._average_heard(average)
            case Made(recipe, adapter, shares):
                self._made(recipe, adapter, shares)
            case Failed(recipe, reason):
                self._failed(recipe, reason)
            case Judged(recipe, judgement):
                self._judged(recipe, judgement)
            case Attested():
                self._attested(event)
            case Stop(reason):
                self._stop(reason)
        if not s.phase.ended:
            self._go_on(now_ms)
        return self._given()

    # ---- what is heard ----------------------------------------------------------------------------------------------

    def _heard(self, increment: Increment) -> None:
        s = self.state
        if increment.author == s.me or increment.adapter in s.increments or not 1 <= increment.round <= s.rules.rounds:
            return
        same = [known.increment for known in s.increments.values() if known.increment.round == increment.round]
        if sum(one.author == increment.author for one in same) >= INCREMENTS_OF_ONE or len(same) >= MAX_MEMBERS:
            return
        s.increments[increment.adapter] = Known(increment=increment, state=Here.HEARD, at_ms=s.seen_ms)
        self._ask()

    def _ask(self) -> None:
        """Fetch the increments that can still be used, and those of averages that could be adopted."""
        s = self.state
        for adapter, known in s.increments.items():
            if known.state is Here.HEARD and s.round - MAX_AGE <= known.increment.round <= s.round + 1:
                known.state, known.at_ms = Here.ASKED, s.seen_ms
                self._out.append(Fetch(adapter))

    def _arrived(self, adapter: str) -> None:
        s = self.state
        if (known := s.increments.get(adapter)) is not None and known.state is not Here.HERE:
            known.state, known.at_ms, known.reason = Here.HERE, s.seen_ms, ""
        candidate = s.candidates.get(s.task)
        average = s.averages.get(adapter)
        wanted = candidate and candidate.foreign and not candidate.adapter
        if candidate and wanted and average and average.recipe.digest == s.task:
            candidate.adapter = adapter
            self._judge(s.task)

    def _refused(self, adapter: str, reason: str) -> None:
        s = self.state
        if (known := s.increments.get(adapter)) is not None:
            known.state, known.at_ms, known.reason = Here.REFUSED, s.seen_ms, reason
        average, task = s.averages.get(adapter), s.candidates.get(s.task)
        if average and task and task.foreign and average.recipe.digest == s.task and not task.adapter:
            del s.averages[adapter]  # another member's may do
            self._work(s.task)

    def _average_heard(self, average: Average) -> None:
        s = self.state
        if average.author == s.me or average.adapter in s.averages or not 1 <= average.round <= s.rules.rounds:
            return
        if average.round < s.round - 1 or len(average.recipe.leaves) < s.rules.min_peers:
            return
        mine = [one for one in s.averages.values() if (one.author, one.round) == (average.author, average.round)]
        if len(mine) >= INCREMENTS_OF_ONE or len(s.averages) >= KEPT_ROUNDS * MAX_MEMBERS:
            return
        s.averages[average.adapter] = average
        if average.round <= s.round:
            unknown = [leaf for leaf, _ in average.recipe.leaves if leaf not in s.increments]
            self._out += [Look(leaf) for leaf in unknown[:MAX_MEMBERS] if not self._is_mine(leaf)]

    def _is_mine(self, adapter: str) -> bool:
        known = self.state.increments.get(adapter)
        return known is not None and known.increment.author == self.state.me

    def _attested(self, event: Attested) -> None:
        """The first word of each counts; only those who are in a recipe are asked about it."""
        s = self.state
        if event.author == s.me or not s.round - 1 <= event.round <= s.rules.rounds:
            return
        if event.adapter in s.attested or len(s.attested) < KEPT_ROUNDS * MAX_MEMBERS:
            measured = s.attested.setdefault(event.adapter, Measured(round=event.round))
            measured.told.setdefault(event.author, event.judgement)

    # ---- what was done ----------------------------------------------------------------------------------------------

    def _trained(self, increment: Increment) -> None:
        s = self.state
        s.failures = 0
        s.increments[increment.adapter] = Known(increment=increment, state=Here.HERE, at_ms=s.seen_ms)
        self._out.append(Announce(increment.adapter))
        if s.phase is Phase.TRAINING and increment.round == s.round:
            s.phase = Phase.GATHERING

    def _training_failed(self, round: int, reason: str) -> None:
        """It goes on with what others made; when that happens again and again, it stops."""
        s = self.state
        s.failures += 1
        s.reason = reason
        if s.failures >= MAX_FAILURES:
            self._stop(reason)
        elif s.phase is Phase.TRAINING and round == s.round:
            s.phase = Phase.GATHERING

    def _made(self, recipe: str, adapter: str, shares: tuple[Share, ...]) -> None:
        s = self.state
        candidate = s.candidates.get(recipe)
        if candidate is None or s.task != recipe:
            return
        candidate.adapter, candidate.shares = adapter, shares
        self._out.append(Announce(adapter))
        self._judge(recipe)

    def _failed(self, recipe: str, reason: str) -> None:
        s = self.state
        if s.task == recipe:
            s.candidates[recipe].refused = reason
            s.task = ""
            self._settle()

    def _judge(self, recipe: str) -> None:
        s = self.state
        candidate = s.candidates[recipe]
        before = s.last if candidate.foreign else choice.global_of(s, candidate.recipe.previous)
        self._out.append(Judge(recipe, candidate.adapter, before.adapter if before else ""))

    def _judged(self, recipe: str, judgement: Judgement | None) -> None:
        s = self.state
        candidate = s.candidates.get(recipe)
        if candidate is None or s.task != recipe:
            return
        s.task = ""
        candidate.judged, candidate.own = True, judgement
        if judgement is not None and not candidate.foreign:
            self._out.append(Attest(candidate.round, candidate.adapter, judgement))
        self._settle()

    def _settle(self) -> None:
        """From the first average of a round on, the others' are waited for."""
        s = self.state
        if s.phase is Phase.SETTLING and not s.settle_ms:
            s.settle_ms = s.seen_ms + s.rules.linger_ms

    def _stop(self, reason: str) -> None:
        s = self.state
        if s.phase is Phase.TRAINING:
            self._out.append(StopTraining(s.round))
        over = s.phase is Phase.CLOSING
        s.phase, s.reason, s.task = Phase.DONE if over else Phase.STOPPED, "" if over else reason, ""

    # ---- what follows -----------------------------------------------------------------------------------------------

    def _go_on(self, now_ms: int) -> None:
        """One step at a time, until something has to be waited for."""
        while not self.state.phase.ended and not self.state.task and self._step(now_ms):
            pass

    def _step(self, now_ms: int) -> bool:
        """Whether anything was done."""
        s = self.state
        if s.phase is not Phase.SETTLING and self._change_mind(now_ms):
            return True
        if self._catch_up(now_ms, self._is_elsewhere):
            return True
        if s.phase is Phase.SETTLING and self._settled(now_ms) and self._decide(now_ms):
            return True
        if s.phase is Phase.GATHERING and self._closes(now_ms):
            self._close()
            return True
        if s.phase is Phase.CLOSING and now_ms >= s.deadline_ms:
            s.phase = Phase.DONE
            return False
        return self._catch_up(now_ms, self._is_ahead)

    def _closes(self, now_ms: int) -> bool:
        """Whether this round takes no more increments."""
        s = self.state
        there = {one.author for one in choice.usable(s)}
        if len(there) < s.rules.min_peers:
            return len(choice.announcers(s, s.round)) >= choice.quorum(s) and self._best() is not None
        if len(choice.announcers(s, s.round)) >= choice.quorum(s):
            return True
        expected = choice.expected(s)
        all_in = s.round > 1 and expected <= there
        return all_in or now_ms >= s.deadline_ms or (s.round == 1 and now_ms >= choice.quiet_ms(s))

    def _close(self) -> None:
        s = self.state
        s.phase, s.settle_ms, s.own = Phase.SETTLING, 0, ""
        usable = choice.usable(s)
        recipe = make_recipe(s.rules, usable, s.round, s.last.recipe, s.before.recipe) if usable else None
        if recipe and len(usable) >= s.rules.min_peers and choice.can_make(s, recipe):
            s.own = recipe.digest
            s.candidates.setdefault(s.own, Candidate(round=s.round, recipe=recipe))
            self._start(s.own)
        else:
            s.settle_ms = s.seen_ms + s.rules.linger_ms

    def _start(self, digest: str) -> None:
        self.state.task = digest
        self._work(digest)

    def _work(self, digest: str) -> None:
        """Have the task done: fetched, made or judged, whichever is next."""
        s = self.state
        candidate = s.candidates[digest]
        if candidate.adapter:
            self._judge(digest)
        elif candidate.foreign:
            offers = sorted(one.adapter for one in s.averages.values() if one.recipe.digest == digest)
            if offers:
                self._out.append(Fetch(offers[0]))
            else:
                self._failed(digest, "none of those who announced it could give it")
        else:
            self._out.append(self._make(candidate))

    def _make(self, candidate: Candidate) -> Make:
        s = self.state
        increments = tuple(s.increments[leaf].increment for leaf, _ in candidate.recipe.leaves)
        wanted = {candidate.recipe.previous, candidate.recipe.before, *(one.start for one in increments)}
        found = [one for recipe in sorted(wanted) if (one := choice.global_of(s, recipe)) is not None]
        return Make(candidate.round, candidate.recipe, increments, tuple(found))

    # ---- who has what -----------------------------------------------------------------------------------------------

    def _best(self) -> str | None:
        """The recipe to adopt of this round, of those that are not refused."""
        s = self.state
        found = choice.offered(s, s.round, s.last.recipe, s.before.recipe)
        if s.own:
            found[s.own] = s.candidates[s.own]
        left = [digest for digest, one in found.items() if not one.refused]
        if not left:
            return None
        best = min(left, key=lambda digest: choice.order(s, digest, choice.weigh(s, found[digest])))
        s.candidates.setdefault(best, found[best])
        return best

    # ---- deciding ---------------------------------------------------------------------------------------------------

    def _settled(self, now_ms: int) -> bool:
        """Whether the others' averages and measurements are here, or have been waited for long enough."""
        s = self.state
        if s.settle_ms and now_ms >= s.settle_ms:
            return True
        if not s.own or not s.candidates[s.own].judged:
            return False
        leaves = [s.increments[leaf].increment for leaf, _ in s.candidates[s.own].recipe.leaves]
        awaited = {one.author for one in leaves if one.round == s.round} - {s.me}
        theirs = [one for one in s.averages.values() if one.round == s.round]
        return awaited <= {one.author for one in theirs if one.author in choice.told_of(s, one.adapter)}

    def _decide(self, now_ms: int) -> bool:
        s = self.state
        best = self._best()
        if best is None:
            if not s.own and not any(one.refused and one.round == s.round for one in s.candidates.values()):
                s.phase = Phase.GATHERING  # what others announced can't be had: more may come
                return False
            refused = [one for one in s.candidates.values() if one.round == s.round and one.refused and one.judged]
            self._end(now_ms, Outcome.HELD, s.last, refused[-1] if refused else None)
            return True
        candidate = s.candidates[best]
        if not candidate.judged:
            self._start(best)
        elif reason := choice.verdict(s, best):
            candidate.refused = reason
        else:
            self._end(now_ms, Outcome.ADOPTED, self._as_global(best), candidate)
        return True

    def _as_global(self, digest: str) -> Global:
        candidate = self.state.candidates[digest]
        weight = choice.weigh(self.state, candidate)
        return Global(round=candidate.round, recipe=digest, adapter=candidate.adapter, weight=weight)

    def _change_mind(self, now_ms: int) -> bool:
        """The last round is decided again, when a heavier recipe of it has come since."""
        s = self.state
        if not s.played:
            return False
        previous, before = s.before.recipe, s.globals[-3].recipe if len(s.globals) > 2 else s.before.recipe
        offered = choice.offered(s, s.round - 1, previous, before)
        now = self._order_now()
        keys = {digest: choice.order(s, digest, choice.weigh(s, one)) for digest, one in offered.items()}
        for digest in sorted((digest for digest in keys if keys[digest] < now), key=lambda digest: keys[digest]):
            candidate = s.candidates.setdefault(digest, offered[digest])
            if candidate.refused:
                continue
            if not candidate.judged:
                self._start(digest)
            elif reason := choice.verdict(s, digest):
                candidate.refused = reason
            else:
                self._replace(now_ms, Outcome.ADOPTED, candidate)
            return True
        return False

    def _order_now(self) -> choice.Order:
        """Of what the last round ended with."""
        s = self.state
        if s.last.recipe == s.before.recipe:  # nothing was adopted
            return (True, 0, "")
        return choice.order(s, s.last.recipe, s.last.weight)

    # ---- others are ahead, or elsewhere -----------------------------------------------------------------------------

    def _catch_up(self, now_ms: int, leads: Callable[[Average, int], bool]) -> bool:
        """Go over to what most others have, where that `leads`, after measuring it."""
        s = self.state
        for average in choice.believed(s):
            digest = average.recipe.digest
            candidate = s.candidates.get(digest)
            if candidate is not None and (candidate.refused or not candidate.foreign):
                continue
            if not leads(average, now_ms):
                continue
            if candidate is None:
                candidate = s.candidates[digest] = Candidate(round=average.round, recipe=average.recipe, foreign=True)
            if not candidate.judged:
                self._start(digest)
            elif candidate.own is not None and candidate.own.worse:
                candidate.refused = "worse on one's own data than the global here"
            else:
                self._go_over(now_ms, candidate)
            return True
        return False

    def _is_ahead(self, average: Average, now_ms: int) -> bool:
        """What is being learnt here is finished first, while it can still be used."""
        s = self.state
        return average.round > s.round and (s.phase is not Phase.TRAINING or average.round >= s.round + MAX_AGE)

    def _is_elsewhere(self, average: Average, now_ms: int) -> bool:
        """Whether most others go on from something else, and more of them than here."""
        s = self.state
        if average.round == s.round - 1:
            if average.recipe.previous == s.before.recipe and now_ms < s.deadline_ms:
                return False  # its leaves may still come
            weight = len(average.recipe.leaves) * MILLION
            return choice.order(s, average.recipe.digest, weight) < self._order_now()
        if average.round != s.round or s.phase is Phase.TRAINING:
            return False
        if average.recipe.previous == s.last.recipe and choice.can_make(s, average.recipe):
            return False
        return now_ms >= s.deadline_ms or len(average.recipe.leaves) > len(choice.usable(s))

    def _go_over(self, now_ms: int, candidate: Candidate) -> None:
        """The globals before it become those that the others had, as far as they are known."""
        s, previous = self.state, candidate.recipe.previous
        if again := candidate.round == s.round - 1:
            s.globals.pop()
        if s.last.recipe != previous:
            s.globals.append(choice.global_of(s, previous) or Global(round=candidate.round - 1, recipe=previous))
        if again:
            s.globals.append(Global(round=candidate.round))
            self._replace(now_ms, Outcome.TAKEN_OVER, candidate)
            return
        if s.phase is Phase.TRAINING:
            self._out.append(StopTraining(s.round))
        s.round = candidate.round
        self._end(now_ms, Outcome.TAKEN_OVER, self._as_global(candidate.recipe.digest), candidate)

    # ---- rounds begin and end ---------------------------------------------------------------------------------------

    def _begin(self, round: int, now_ms: int) -> None:
        s = self.state
        s.phase, s.round, s.own, s.settle_ms = Phase.TRAINING, round, "", 0
        s.began_ms, s.deadline_ms = now_ms, now_ms + s.rules.cadence_ms
        self._out.append(Train(round, s.last))

    def _end(self, now_ms: int, outcome: Outcome, outcome_global: Global, candidate: Candidate | None) -> None:
        s = self.state
        s.globals.append(Global(round=s.round, recipe=outcome_global.recipe, adapter=outcome_global.adapter,
                                weight=outcome_global.weight))  # fmt: skip
        s.played.append(self._told(now_ms, outcome, s.last, candidate, s.began_ms))
        self._out.append(Adopt(s.played[-1]))
        self._forget()
        if s.round >= s.rules.rounds:
            s.phase, s.round, s.own = Phase.CLOSING, s.round + 1, ""
            s.began_ms, s.deadline_ms = now_ms, now_ms + s.rules.cadence_ms
        else:
            self._begin(s.round + 1, now_ms)
            self._ask()

    def _replace(self, now_ms: int, outcome: Outcome, candidate: Candidate) -> None:
        """The last round ended otherwise than it seemed. What is learnt from its global is learnt again."""
        s = self.state
        s.globals[-1] = self._as_global(candidate.recipe.digest)
        was = s.played[-1]
        s.played[-1] = self._told(was.ended_ms, outcome, s.last, candidate, was.began_ms)
        self._out.append(Adopt(s.played[-1]))
        if s.phase is not Phase.CLOSING:
            if s.phase is Phase.TRAINING:
                self._out.append(StopTraining(s.round))
            self._begin(s.round, now_ms)

    def _told(self, now_ms: int, outcome: Outcome, found: Global, candidate: Candidate | None, began_ms: int) -> Played:
        s = self.state
        others = {} if candidate is None else choice.judgements(s, candidate.recipe.digest)
        turned = [
            Turned(author=known.increment.author, adapter=adapter, reason=known.reason)
            for adapter, known in s.increments.items()
            if known.state is Here.REFUSED and known.increment.round == found.round
        ]
        return Played(
            round=found.round,
            outcome=outcome,
            recipe=found.recipe,
            adapter=found.adapter,
            began_ms=began_ms,
            ended_ms=now_ms,
            own=None if candidate is None else candidate.own,
            others=tuple(sorted((author, one) for author, one in others.items() if author != s.me)),
            shares=() if candidate is None else candidate.shares,
            turned=tuple(turned),
            reason="" if candidate is None else candidate.refused,
        )

    def _forget(self) -> None:
        """What no later round can use."""
        s = self.state
        oldest = s.round - KEPT_ROUNDS + 1
        s.increments = {id: one for id, one in s.increments.items() if one.increment.round >= oldest}
        s.averages = {id: one for id, one in s.averages.items() if one.round >= s.round}
        s.candidates = {id: one for id, one in s.candidates.items() if one.round >= oldest}
        s.attested = {id: one for id, one in s.attested.items() if one.round >= s.round}
        s.globals = s.globals[-(KEPT_ROUNDS + 1) :]

    def _clock(self, now_ms: int) -> None:
        """A clock that was set back moves what is waited for along."""
        s = self.state
        if now_ms < s.seen_ms:
            back = s.seen_ms - now_ms
            s.began_ms, s.deadline_ms = s.began_ms - back, s.deadline_ms - back
            s.settle_ms = s.settle_ms - back if s.settle_ms else 0
            for known in s.increments.values():
                known.at_ms -= back
        s.seen_ms = now_ms

    def _given(self) -> list[Command]:
        given, self._out = self._out, []
        return given
