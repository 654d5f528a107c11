"""What a federation's manifests, measurements and records say, also in other forms; its words on the command line."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
import pytest

from orchd.average import rounds_events as ev
from orchd.average.rounds_specs import RoundExtra
from orchd.average.rounds_state import METHOD, Average, Increment, Recipe, make_recipe
from orchd.cli.nouns.federation import human_status, seconds
from orchd.federating import rules_of
from orchd.federation_notes import heard, signed_parts
from orchd.federation_work import Terms, attested, judgement_of, terms_of
from orchd.notes import RoundNote
from orchd.records import Attestation, Federation, Leaf, Lineage, Manifest, Verified, parse_id, sign, text_id
from orchd.records.ids import ADAPTER, FEDERATION
from orchd.records.manifest import Round
from orchd.train.specs import Comparison, EvaluateResult, EvaluationRow
from tests.helpers import ALICE, manifest

HERE, OTHER = b"\x07" * 32, b"\x08" * 32
LEAVES = tuple(text_id(ADAPTER, bytes([number]) * 32) for number in range(3))


def told(extra: dict[str, Any] | None = None, federation: bytes = HERE, **changes: Any) -> Verified[Manifest]:
    record = manifest(
        author=ALICE.public_key, round=Round(federation=federation, number=2), extra=extra or {}, **changes
    )
    return sign(record, ALICE)


def listen(signed: Verified[Manifest]) -> Increment | Average | None:
    return heard(signed, text_id(FEDERATION, HERE))


def record(**extra: Any) -> Federation:
    return Federation(
        topic="choir", base=b"\x01" * 32, rounds=5, cadence_s=600, min_members=3, method=METHOD, rank=16,
        created_ms=1, author=ALICE.public_key, extra=extra,
    )  # fmt: skip


def test_an_increment_says_which_global_it_goes_on_from() -> None:
    note = RoundNote(federation=text_id(FEDERATION, HERE), number=2, start="11" * 32)
    parts = signed_parts(note, {"extra": {"leak": {"version": 1}}})
    assert parts["extra"].keys() == {"leak", "round"}
    found = listen(told(parts["extra"], lineage=None))
    assert isinstance(found, Increment)
    assert (found.round, found.start, found.author) == (2, "11" * 32, ALICE.author)


def test_a_training_outside_of_rounds_says_nothing_of_them() -> None:
    assert signed_parts(None, {"extra": {}}) == {"extra": {}}


@pytest.mark.parametrize("extra", [{}, {"round": 1}, {"round": {"start": b"x"}}, {"round": {"version": 2}}])
def test_what_is_of_another_form_is_not_heard(extra: dict[str, Any]) -> None:
    assert listen(told(extra, lineage=None)) is None


def test_another_federations_increment_is_not_heard() -> None:
    extra = {"round": msgspec.structs.asdict(RoundExtra())}
    assert listen(told(extra, federation=OTHER, lineage=None)) is None
    assert listen(told(extra, lineage=None)) is not None


def average(recipe: Recipe, **changes: Any) -> Verified[Manifest]:
    extra = RoundExtra(
        previous=bytes.fromhex(recipe.previous),
        before=bytes.fromhex(recipe.before),
        momentum_ppm=recipe.momentum_ppm,
    )
    lineage = Lineage(
        recipe=bytes.fromhex(recipe.digest),
        method=METHOD,
        rank=recipe.rank,
        strength_ppm=recipe.strength_ppm,
        leaves=tuple(Leaf(id=parse_id(leaf, ADAPTER), weight_ppm=ppm) for leaf, ppm in recipe.leaves),
        previous=OTHER,
        outer=recipe.outer,
        residual_ppm=0,
        tolerance_ppm=5_000,
    )
    lineage = msgspec.structs.replace(lineage, **changes)
    return told({"round": msgspec.structs.asdict(extra)}, lineage=lineage, training=None)


def recipe() -> Recipe:
    rules = rules_of(record(), Terms())
    increments = [Increment(adapter=leaf, author=leaf, round=2, start="22" * 32) for leaf in LEAVES]
    return make_recipe(rules, increments, 2, "22" * 32, "")


def test_an_average_that_contradicts_its_own_recipe_is_not_heard() -> None:
    found = listen(average(recipe()))
    assert isinstance(found, Average)
    assert found.recipe == recipe()
    assert listen(average(recipe(), strength_ppm=2_000_000)) is None
    assert listen(average(recipe(), method="mean")) is None


def test_the_terms_of_a_federation_are_those_of_its_record() -> None:
    terms = terms_of(record(rounds={"steps": 7, "momentum_ppm": 0}))
    assert terms.steps == 7
    assert rules_of(record(), terms).outer.momentum(8) == 0
    assert rules_of(record(), Terms()).outer.momentum(8) == 500_000
    with pytest.raises(msgspec.ValidationError):
        terms_of(record(rounds={"steps": "many"}))


def evaluated(before: float, after: float, verdict: str | None) -> EvaluateResult:
    rows = tuple(
        EvaluationRow(id=id, loss=loss, exact_match=None, examples=30)
        for id, loss in zip("ab", (before, after), strict=True)
    )
    compared = () if verdict is None else (
        Comparison(adapter="b", against="a", metric="loss", value=after, against_value=before, low=None, high=None,
                   p=0.5, examples=30, verdict=verdict),  # type: ignore[arg-type]
    )  # fmt: skip
    return EvaluateResult(rows=rows, comparisons=compared)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "worse"),
    [
        (1.0, 1.2, "worse", True),
        (1.0, 1.2, "not told apart", False),  # by chance, for all that is known
        (1.0, 0.8, "better", False),
        (1.0, 1.2, "too few rows", True),
        (1.0, 1.005, None, False),
        (1.0, 1.02, None, True),
    ],
)
def test_an_average_is_worse_only_by_more_than_chance(before: float, after: float, verdict: str, worse: bool) -> None:
    judged = judgement_of(evaluated(before, after, verdict), ev.Judge("r", "b", "a"))
    assert (judged.worse, judged.before, judged.after, judged.examples) == (worse, before, after, 30)


def measured(**extra: Any) -> Verified[Attestation]:
    return sign(
        Attestation(
            manifest=parse_id(LEAVES[0], ADAPTER), evaluator=ALICE.public_key, metric="loss", value=1_500_000,
            base_value=None, examples=30, interval=0, created_ms=1, extra=extra,
        ),
        ALICE,
    )  # fmt: skip


def test_a_measurement_counts_in_its_own_federation_alone() -> None:
    word = {"version": 1, "federation": "fed_a", "number": 2, "previous": 2_000_000, "worse": False}
    found = attested(measured(round=word), LEAVES[0], "fed_a")
    assert found is not None
    assert (found.round, found.judgement.before, found.judgement.after) == (2, 2.0, 1.5)
    assert attested(measured(round=word), LEAVES[0], "fed_b") is None
    assert attested(measured(round={**word, "worse": "no"}), LEAVES[0], "fed_a") is None
    assert attested(measured(), LEAVES[0], "fed_a") is None


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("2h", 7_200), ("1d", 86_400), ("45", 45)])
def test_times_on_the_command_line(text: str, value: int) -> None:
    assert seconds(text) == value


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="10m"):
        seconds("soon")


def test_the_status_names_who_was_refused_and_why() -> None:
    shown = {
        "topic": "choir", "id": "fed_a", "round": 2, "rounds": 5, "joined": True, "now": "trains", "deadline_ms": 0,
        "adapter": "adp_g", "dataset": "mine", "reason": "",
        "members": [{"author": "key_b", "trust": "stranger", "round": 1, "state": "refused", "reason": "NaN"}],
        "history": [{
            "round": 1, "outcome": "held", "adapter": "", "recipe": "", "seconds": 4.0, "reason": "worse for 2 of 3",
            "own": {"author": "key_a", "before": 1.0, "after": 2.0, "worse": True}, "others": [],
            "shares": [{"author": "key_a", "adapter": "adp_1", "weight": 1.0, "taken": 1.0, "age": 0, "vote": 1}],
            "refused": [{"author": "key_b", "adapter": "adp_2", "reason": "NaN in one tensor"}],
        }],
    }  # fmt: skip
    text = human_status(shown)
    assert "NaN in one tensor" in text
    assert "worse for 2 of 3" in text
    assert "100.0 %" in text
