"""`ok` is computed: a good run passes, and each condition that does not hold makes it false by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchd.demo.results import Results, Round
from tests.demo.sample import entrant, score


def with_last(results: Results, change: Callable[[Round], Round]) -> Results:
    return replace(results, rounds=(*results.rounds[:-1], change(results.last)))


def worse_than_base(r: Round) -> Round:
    a, b = r.contributions
    return replace(r, contributions=(a, replace(b, own=score(9.0, 0.0))))


def single_knows_both(r: Round) -> Round:
    a, b = r.contributions
    return replace(r, contributions=(replace(a, exam=score(1.0, 0.03)), b))


def other_recipe(r: Round) -> Round:
    return replace(r, average=replace(r.average, recipes=("ab12", "cd34")))


def not_recomputed(r: Round) -> Round:
    first, second = r.average.verifications
    return replace(r, average=replace(r.average, verifications=(first, replace(second, holds=False))))


def weak_average(r: Round) -> Round:
    return replace(r, average=replace(r.average, exam=score(0.5, 0.79)))


def other_entrant(results: Results, key: str, exact_match: float) -> Results:
    exam = tuple(entrant(key, e.label, e.exam.loss, exact_match) if e.key == key else e for e in results.exam)
    return replace(results, exam=exam)


FAULTS: dict[str, Callable[[Results], Results]] = {
    "an adapter is worse than the base": lambda r: with_last(r, worse_than_base),
    "the recipes differ": lambda r: with_last(r, other_recipe),
    "an average could not be recomputed": lambda r: with_last(r, not_recomputed),
    "the average is weak": lambda r: with_last(r, weak_average),
    "a single adapter knows both halves": lambda r: with_last(r, single_knows_both),
    "one alone knows both halves": lambda r: other_entrant(r, "b-alone", 0.03),
    "nothing was refused": lambda r: replace(r, refused=()),
    "the honest copy was not admitted": lambda r: replace(r, refused=(replace(r.refused[0], then_admitted=False),)),
    "a sentence left": lambda r: replace(r, departure=replace(r.departure, sentences_found=1)),
    "nothing was recorded": lambda r: replace(r, departure=replace(r.departure, bytes=0)),
    "a connection left": lambda r: replace(r, departure=replace(r.departure, beyond_loopback=("connect x",))),
    "the average was not reached": lambda r: replace(r, revoked=replace(r.revoked, affected=r.revoked.affected[:1])),
    "what was revoked is still admitted": lambda r: replace(
        r,
        revoked=replace(
            r.revoked, affected=(replace(r.revoked.affected[0], state="admitted"), *r.revoked.affected[1:])
        ),
    ),
    "no deployment was rolled back": lambda r: replace(r, revoked=replace(r.revoked, rolled_back=())),
    "the base does not answer": lambda r: replace(r, revoked=replace(r.revoked, after="zavo zulat")),
    "parity did not hold": lambda r: replace(r, deployment=replace(r.deployment, parity=False)),
}


def test_good_run_is_ok(results: Results) -> None:
    assert results.ok
    assert all(check.ok for check in results.checks())


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_each_condition_decides_alone(results: Results, fault: Callable[[Results], Results]) -> None:
    broken = fault(results)
    assert not broken.ok
    assert [check.ok for check in broken.checks()].count(False) == 1


def test_bounds_are_inclusive(results: Results) -> None:
    def at_the_bounds(r: Round) -> Round:
        a, b = r.contributions
        singles = (replace(a, exam=score(1, 0.02)), replace(b, exam=score(1, 0.02)))
        return replace(r, contributions=singles, average=replace(r.average, exam=score(0.5, 0.8)))

    assert with_last(results, at_the_bounds).ok


def test_json_object_has_exactly_the_promised_keys(results: Results) -> None:
    shown = results.to_json()
    assert list(shown) == [
        "ok", "seconds", "nodes", "rounds", "adapters", "average", "refused", "oneshot", "pooled", "deployment",
        "revoked",
    ]  # fmt: skip
    assert shown["revoked"] == {"affected": ["adp_a", "adp_m"], "rolled_back": ["one-shot"]}
    assert set(shown["rounds"][0]) == {"round", "adapters", "average"}
    assert set(shown["rounds"][0]["adapters"][0]) == {"id", "author", "own_loss", "other_loss"}
    assert set(shown["rounds"][0]["average"]) == {"id", "loss", "exact_match"}
    assert set(shown["adapters"][0]) == {
        "id", "author", "base_loss", "heldout_loss", "exact_match", "mixed_exact_match",
    }  # fmt: skip
    assert set(shown["average"]) == {"id", "heldout_loss", "exact_match", "mixed_exact_match"}
    assert shown["refused"] == [{"reason": "chunk 2 is not what was signed", "code": 2112}]
    assert set(shown["oneshot"]) == set(shown["pooled"]) == {"heldout_loss", "mixed_exact_match"}
    assert set(shown["deployment"]) == {"target", "parity", "parity_detail", "answers"}
    assert shown["deployment"]["parity"] is True


def test_adapters_are_those_of_the_last_round(results: Results) -> None:
    shown = results.to_json()
    assert [a["heldout_loss"] for a in shown["adapters"]] == [c.own.loss for c in results.last.contributions]
    assert shown["average"]["mixed_exact_match"] == 0.97
