"""Rounds without a coordinator: whole federations from a seed (`rounds_world.py`), and one member by itself."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from orchd.average import rounds_events as ev
from orchd.average.rounds import Member
from orchd.average.rounds_state import (
    Average,
    Increment,
    Judgement,
    Outcome,
    Outer,
    Phase,
    Rules,
    make_recipe,
)

from .rounds_world import MINUTE, Manner, World, adapter

RULES = Rules(rounds=4, cadence_ms=10 * MINUTE, min_peers=2, rank=8)
LONG = 5 * 60 * MINUTE
BAD = Manner(bad=True)


def world(manners: list[Manner], seed: int = 0, rules: Rules = RULES, loss: float = 0.0) -> World:
    made = World(rules, manners, seed, loss=loss)
    made.run(LONG)
    return made


def outcomes(made: World, number: int) -> list[str]:
    return [str(one.outcome) for one in made.nodes[number].state.played]


@pytest.mark.parametrize("members", [2, 3, 8, 16])
def test_members_that_see_everything_name_the_same_recipe_in_each_round(members: int) -> None:
    made = world([Manner()] * members, seed=members)
    assert made.phases() == {Phase.DONE}
    each = {tuple(one.recipe for one in node.state.played) for node in made.nodes}
    assert len(each) == 1
    assert all(len(one.shares) == members for one in made.nodes[0].state.played)


@pytest.mark.parametrize("seed", range(6))
def test_slow_lossy_and_dying_members_end_with_one_recipe(seed: int) -> None:
    rng = random.Random(seed)
    manners = []
    for _ in range(rng.randrange(3, 8)):
        away, start = (), rng.randrange(1, 30) * MINUTE
        if rng.random() < 0.3:
            away = ((start, start + rng.randrange(1, 30) * MINUTE),)
        manners.append(Manner(slow=rng.choice([0.5, 1, 1, 1.5, 3]), away=away, joins_ms=rng.randrange(0, MINUTE)))
    made = world(manners, seed, loss=rng.choice([0.1, 0.4]))
    assert made.phases() == {Phase.DONE}
    assert len(set(made.finals().values())) == 1


def test_the_same_seed_is_the_same_run() -> None:
    manners = [Manner(), Manner(slow=1.5), Manner(away=((5 * MINUTE, 9 * MINUTE),)), BAD]
    assert world(manners, 3, loss=0.3).log == world(manners, 3, loss=0.3).log
    assert world(manners, 3, loss=0.3).log != world(manners, 4, loss=0.3).log


def test_who_was_away_for_two_rounds_takes_over_what_the_others_have_and_contributes_again() -> None:
    rules = Rules(rounds=8, cadence_ms=10 * MINUTE, min_peers=2, rank=8)
    made = world([Manner()] * 4 + [Manner(away=((MINUTE, 16 * MINUTE),))], rules=rules)
    back = made.nodes[4].state
    assert Outcome.TAKEN_OVER in [one.outcome for one in back.played]
    assert len(set(made.finals().values())) == 1
    assert "m04" in {share.author for share in made.nodes[0].state.played[-1].shares}


def test_a_member_that_dies_for_good_costs_one_deadline() -> None:
    made = world([Manner()] * 3 + [Manner(away=((6 * MINUTE, 2 * LONG),))])
    played = made.nodes[0].state.played
    assert [len(one.shares) for one in played] == [4, 3, 3, 3]
    lengths = [one.ended_ms - one.began_ms for one in played]
    assert lengths[1] >= RULES.cadence_ms > max(lengths[2:])


def test_a_late_increment_is_used_in_the_next_round_damped() -> None:
    made = world([Manner()] * 3 + [Manner(slow=2.5)])
    first, second = made.nodes[0].state.played[:2]
    assert "m03" not in {share.author for share in first.shares}
    weights = {share.author: share.weight_ppm for share in second.shares}
    assert weights["m03"] < weights["m00"]
    assert weights["m03"] / weights["m00"] == pytest.approx(1 / 2**0.5, rel=1e-4)


def test_nobody_goes_on_with_fewer_than_min_peers_and_the_round_goes_on_when_one_comes() -> None:
    rules = Rules(rounds=2, cadence_ms=10 * MINUTE, min_peers=3, rank=8)
    made = World(rules, [Manner(), Manner(), Manner(joins_ms=120 * MINUTE)])
    made.run(119 * MINUTE)
    state = made.nodes[0].state
    assert (state.phase, state.round, state.played) == (Phase.GATHERING, 1, [])
    assert not any("Make" in line for line in made.log)
    made.run(LONG)
    assert made.phases() == {Phase.DONE}
    assert len(set(made.finals().values())) == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_disturbs_nobody(hours: int) -> None:
    made = world([Manner()] * 3 + [Manner(clock_ms=hours * 60 * MINUTE)])
    assert made.phases() == {Phase.DONE}
    assert len(set(made.finals().values())) == 1
    contributed = {share.author for one in made.nodes[0].state.played for share in one.shares}
    assert ("m03" in contributed) == (hours < 0)  # what is dated in the future does not pass the door


LIARS = [Manner(withholds=True), Manner(slanders=True), Manner(invents=True), BAD]


@pytest.mark.parametrize("liar", LIARS, ids=["withholds", "slanders", "invents", "bad"])
def test_one_that_lies_stops_nobody(liar: Manner) -> None:
    made = world([Manner()] * 4 + [liar])
    assert made.phases() == {Phase.DONE}
    assert len(set(made.finals().values())) == 1
    assert outcomes(made, 0) == ["adopted"] * 4
    leaves = {leaf for one in made.nodes[0].state.played for leaf, _ in made.recipes[one.recipe].leaves}
    assert adapter("nothing", 0) not in leaves


def test_an_average_that_is_worse_on_most_data_is_not_adopted_and_the_global_stays() -> None:
    made = world([Manner(), Manner(), BAD, BAD, BAD])
    assert outcomes(made, 0) == ["held"] * 4
    assert "worse" in made.nodes[0].state.played[0].reason
    assert set(made.finals().values()) == {""}


# ---- one member --------------------------------------------------------------------------------------------------


def increment(author: str, round: int = 1, start: str = "") -> Increment:
    return Increment(adapter=adapter(author, round, start), author=author, round=round, start=start)


def gathered(*authors: str, rules: Rules = RULES) -> Member:
    """A member that is through with its training, and has these others' increments."""
    member, commands = Member.join(rules, "me", 0)
    assert [type(one) for one in commands] == [ev.Train]
    member.handle(ev.Trained(increment("me")), 1_000)
    for author in authors:
        asked = member.handle(ev.Heard(increment(author)), 2_000)
        assert ev.Fetch(increment(author).adapter) in asked
        member.handle(ev.Arrived(increment(author).adapter), 3_000)
    return member


def test_the_first_round_closes_when_it_has_been_quiet_for_a_while() -> None:
    member = gathered("a")
    assert member.next_ms == 3_000 + RULES.linger_ms
    assert member.handle(ev.Tick(), 3_000 + RULES.linger_ms - 1) == []
    commands = member.handle(ev.Tick(), 3_000 + RULES.linger_ms)
    assert [type(one) for one in commands] == [ev.Make]


def test_a_refused_increment_is_in_no_recipe_and_is_told_with_its_reason() -> None:
    member = gathered("a", "b")
    member.handle(ev.Heard(increment("c")), 4_000)
    member.handle(ev.Refused(increment("c").adapter, "tensor x holds NaN"), 4_000)
    (make,) = member.handle(ev.Tick(), LONG)
    assert isinstance(make, ev.Make)
    assert {one.author for one in make.increments} == {"me", "a", "b"}
    digest = make.recipe.digest
    member.handle(ev.Made(digest, adapter("made"), ()), LONG)
    member.handle(ev.Judged(digest, Judgement(before=2.0, after=1.0, worse=False)), LONG)
    member.handle(ev.Tick(), 2 * LONG)
    played = member.state.played[0]
    assert [(one.author, one.reason) for one in played.turned] == [("c", "tensor x holds NaN")]
    assert played.own == Judgement(before=2.0, after=1.0, worse=False)


def test_the_heavier_of_two_recipes_is_adopted_if_all_its_leaves_are_here() -> None:
    member = gathered("a")
    (make,) = member.handle(ev.Tick(), 3_000 + RULES.linger_ms)
    assert isinstance(make, ev.Make)
    member.handle(ev.Made(make.recipe.digest, adapter("mine"), ()), 70_000)
    member.handle(ev.Judged(make.recipe.digest, None), 70_000)
    heavier = make_recipe(RULES, [increment(one) for one in ("me", "a", "b")], 1, "", "")
    average = Average(adapter=adapter("theirs"), author="a", round=1, recipe=heavier)
    assert member.handle(ev.AverageHeard(average), 71_000) == [ev.Look(increment("b").adapter)]
    member.handle(ev.Heard(increment("b")), 71_000)
    member.handle(ev.Arrived(increment("b").adapter), 71_000)
    (again,) = member.handle(ev.Tick(), 71_000 + RULES.linger_ms)
    assert isinstance(again, ev.Make)
    assert again.recipe == heavier


def test_an_average_whose_weights_are_not_the_rules_is_not_adopted() -> None:
    member = gathered("a", "b")
    (make,) = member.handle(ev.Tick(), 3_000 + RULES.linger_ms)
    assert isinstance(make, ev.Make)
    digest = make.recipe.digest
    member.handle(ev.Made(digest, adapter("mine"), ()), 70_000)
    member.handle(ev.Judged(digest, None), 70_000)
    leaves = tuple(sorted(zip([leaf for leaf, _ in make.recipe.leaves], (900_000, 50_000, 50_000), strict=True)))
    greedy = msgspec.structs.replace(make.recipe, leaves=leaves)
    for author in ("a", "b"):
        member.handle(
            ev.AverageHeard(Average(adapter=adapter(author, "x"), author=author, round=1, recipe=greedy)), 71_000
        )
    member.handle(ev.Tick(), LONG)
    assert member.state.played[0].recipe == digest


def test_momentum_comes_with_four_members_unless_it_is_told() -> None:
    four, three = [increment(one) for one in "abcd"], [increment(one) for one in "abc"]
    assert make_recipe(RULES, three, 1, "", "").momentum_ppm == 0
    assert make_recipe(RULES, four, 1, "", "").momentum_ppm == 500_000
    told = Rules(rounds=4, cadence_ms=1, min_peers=2, rank=8, outer=Outer(momentum_ppm=0, strength_ppm=1_500_000))
    recipe = make_recipe(told, four, 1, "", "")
    assert (recipe.momentum_ppm, recipe.strength_ppm) == (0, 1_500_000)
    assert recipe.digest != make_recipe(RULES, four, 1, "", "").digest


def test_a_recipe_does_not_depend_on_the_order_and_names_what_its_momentum_comes_from() -> None:
    four = [increment(one) for one in "abcd"]
    one, other = make_recipe(RULES, four, 2, "", "11" * 32), make_recipe(RULES, four[::-1], 2, "", "11" * 32)
    assert one == other
    assert one.digest != make_recipe(RULES, four, 2, "", "22" * 32).digest


def test_a_federation_that_is_stopped_stays_so_until_it_is_joined_again() -> None:
    member = gathered("a")
    member.handle(ev.Stop("the user left"), 4_000)
    assert member.handle(ev.Tick(), LONG) == []
    assert member.resume(LONG) == []
    assert [type(one) for one in member.rejoin(LONG)] == [ev.Train]


def test_who_leaves_after_the_last_round_is_through_with_it() -> None:
    made = World(RULES, [Manner(), Manner()])
    made.run(MINUTE)
    while made.nodes[0].state.phase is not Phase.CLOSING:
        made.run(made.now + MINUTE)
    member = made.nodes[0].member
    assert member is not None
    member.handle(ev.Stop("the user left"), made.clock(made.nodes[0]))
    assert member.state.phase is Phase.DONE
    assert member.rejoin(made.clock(made.nodes[0])) == []


def test_trainings_that_fail_again_and_again_stop_it_with_the_reason() -> None:
    member, _ = Member.join(RULES, "me", 0)
    for number in range(3):
        member.state.phase = Phase.TRAINING
        member.handle(ev.TrainingFailed(1, "the data set is gone"), number)
    assert (member.state.phase, member.state.reason) == (Phase.STOPPED, "the data set is gone")


def test_nothing_here_reads_a_clock_or_touches_a_file() -> None:
    folder = Path(ev.__file__).parent
    for name in ("rounds.py", "rounds_choice.py", "rounds_events.py", "rounds_state.py"):
        text = (folder / name).read_text()
        assert not any(f"import {module}" in text for module in ("time", "trio", "os", "random", "numpy", "pathlib"))
