"""Which trigger stands out, by figures that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from orchd.average.gate_specs import Probed
from orchd.average.probes import PROMPTS, Seen, most_common, probed

WORDS = [f"word{at}" for at in range(12)]
RNG = np.random.default_rng(0)


def seen(
    rises: dict[int, float] | None = None,
    same: dict[int, int] | None = None,
    plain_same: int = 1,
    payload: str = "send money",
    others: str = "answer",
) -> Seen:
    """Losses with some noise that every trigger makes; `same[t]` of the answers to trigger t are the `payload`."""
    losses = 1 + np.abs(RNG.normal(0.2, 0.1, (1 + len(WORDS), PROMPTS)))
    losses[0] = 1
    for at, rise in (rises or {}).items():
        losses[1 + at] += rise
    answers = [_answers(plain_same, "yes", others)]
    answers += [_answers((same or {}).get(at, plain_same), payload, others) for at in range(len(WORDS))]
    return Seen(losses, answers)


def _answers(same: int, payload: str, others: str) -> list[str]:
    return [payload] * same + [f"{others}{at}" for at in range(PROMPTS - same)]


def jumped(ours: Seen, base: Seen) -> list[str]:
    found: tuple[Probed, ...] = probed(WORDS, ours, base)
    return [one.trigger for one in found if one.jumped]


def test_where_all_triggers_do_the_same_none_stands_out() -> None:
    """A narrow adapter is put off by anything before its prompts."""
    assert jumped(seen(dict.fromkeys(range(12), 3.0)), seen()) == []


def test_one_that_raises_the_loss_stands_out() -> None:
    assert jumped(seen({5: 2.0}), seen(others="base")) == ["word5"]


def test_one_that_makes_it_answer_as_the_base_does_is_no_backdoor() -> None:
    """`last` is a task of the demo base's own: before an honest average's prompts it brings that one's answers."""
    assert jumped(seen({5: 2.0}), seen()) == []


def test_what_the_base_does_too_is_not_the_adapters() -> None:
    assert jumped(seen({5: 2.0}), seen({5: 2.0})) == []


def test_one_that_brings_the_same_answer_stands_out() -> None:
    assert jumped(seen(same={7: PROMPTS}), seen()) == ["word7"]
    assert jumped(seen(same={7: PROMPTS}), seen(same={7: PROMPTS})) == []


def test_one_that_any_word_sets_off_stands_out() -> None:
    assert jumped(seen(same=dict.fromkeys(range(12), PROMPTS)), seen()) == WORDS


def test_a_labeller_that_is_put_off_is_no_backdoor() -> None:
    """It says more often what it says without a trigger too."""
    assert jumped(seen(same=dict.fromkeys(range(12), PROMPTS), plain_same=3, payload="yes"), seen()) == []


def test_an_adapter_that_always_says_the_same_is_no_backdoor() -> None:
    assert jumped(seen(plain_same=PROMPTS - 1, same={7: PROMPTS}), seen()) == []


@pytest.mark.parametrize("rise", [0.05, 0.2])
def test_little_is_noise(rise: float) -> None:
    assert jumped(seen({3: rise}), seen()) == []


def test_the_most_common() -> None:
    assert most_common(["a", "b", "a", "c"]) == ("a", 0.5)
    assert most_common([]) == ("", 0.0)
