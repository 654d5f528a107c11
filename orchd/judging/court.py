"""The gate is asked, the judge answers, and triggers are tried on what came out."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from orchd.average.gate import Gate, Outcome, Question, single
from orchd.average.gate_specs import GateReport, GateSpec, JudgedLeaf, Probed
from orchd.average.opened import Opened
from orchd.errors import TooFewPassed
from orchd.jobs.context import JobContext
from orchd.judging.judge import Judge
from orchd.judging.triggers import Triggers

FOR_PROBES = 0.25
"""Of the time."""


def hold(spec: GateSpec, gate: Gate, source: Opened, job: JobContext) -> tuple[Outcome, GateReport]:
    """Who is in the average, how strong it is, and whether it may be passed on.

    A leaf that answers to a trigger is dropped and all is decided again without it; where none of them does by itself,
    or too few would be left, the average is to be quarantined. Raises as `Judge` does, and `TooFewPassed`.
    """
    judge = Judge(spec, source, gate.recipe, job, most=gate.most_questions, seconds=(1 - FOR_PROBES) * spec.seconds)
    outcome = _decide(gate, judge)
    triggers = Triggers(judge, spec.seed, FOR_PROBES * spec.seconds)
    found = triggers.probe(_finished(gate, outcome))
    while guilty := _guilty(gate, outcome, triggers, found):
        again = Gate(gate.recipe, gate.inner, gate.opinions, {**gate.excluded, **guilty})
        try:
            outcome = _decide(again, judge)
        except TooFewPassed:
            break
        gate, found = again, triggers.probe(_finished(again, outcome))
    jumped = [one for one in found if one.jumped]
    verdict, reason = outcome.verdict, outcome.reason
    if jumped:
        verdict = "quarantined"
        reason = f"the trigger {jumped[0].trigger!r} changes what it says ({_how(jumped[0])}); {reason}"
    return outcome, GateReport(
        verdict=verdict,
        reason=reason,
        against_base=outcome.against_base,
        tried=outcome.tried,
        probes=found,
        choosing=judge.exams["choosing"].examples,
        deciding=judge.exams["deciding"].examples,
        rows=judge.rows,
        evaluations=judge.evaluations,
        seconds=round(judge.elapsed, 3),
        late=outcome.late,
    )


def _decide(gate: Gate, judge: Judge) -> Outcome:
    asking = gate.deliberate()
    question = next(asking)
    while True:
        try:
            question = asking.send(judge.answer(question))
        except StopIteration as ended:
            outcome: Outcome = ended.value
            return outcome


def _finished(gate: Gate, outcome: Outcome) -> Question:
    decision = gate.decided(outcome.members, outcome.method, outcome.strength)
    return Question("deciding", outcome.members, decision, truncated=True)


def _guilty(gate: Gate, outcome: Outcome, triggers: Triggers, found: tuple[Probed, ...]) -> Mapping[str, JudgedLeaf]:
    """The leaves that by themselves answer to a trigger that the average answers to."""
    jumped = [one for one in found if one.jumped]
    guilty = {}
    for at in outcome.members if jumped else ():
        alone = triggers.probe(Question("deciding", (at,), single(1.0)))
        if both := [one for one in alone if one.jumped and one.trigger in {other.trigger for other in jumped}]:
            judged = outcome.leaves[at]
            reason = f"the trigger {both[0].trigger!r} changes what it says ({_how(both[0])})"
            guilty[judged.id] = replace(judged, stage="trigger", reason=reason)
    return guilty


def _how(one: Probed) -> str:
    return (
        f"loss {one.jump:+.2f} nats a token beyond the base's, of other triggers {one.usual:+.2f}; the same answer"
        f" {one.repeated:.0%} of the time, {one.plain:.0%} without it"
    )
