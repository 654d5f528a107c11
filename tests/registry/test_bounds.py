"""Is an adapter that is far stronger than those seen for its base kept apart, and nobody else?"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from orchd.records import sign
from orchd.registry import ADMITTED, QUARANTINED, admission, bounds, grams
from orchd.registry.local_rows import Bound
from tests.helpers import MALLORY, Lab, lora_config, lora_tensors

BASE = "base_x"


def _seen(*norms: float, module: str = "q") -> dict[str, Bound]:
    known: dict[str, Bound] = {}
    for norm in norms:
        known |= {row.key: row for row in bounds.learned(known, BASE, {module: norm})}
    return known


def test_a_bound_is_the_mean_and_deviation_of_the_logarithms() -> None:
    norms = [0.5, 1.0, 3.0, 8.0]
    (bound,) = _seen(*norms).values()
    logs = np.log(norms)
    assert bound.count == 4
    assert math.isclose(bound.mean_log, logs.mean())
    assert math.isclose(bound.m2_log, ((logs - logs.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("seen", "norm", "outside"),
    [
        ([1.0] * 4, 15.9, False),
        ([1.0] * 4, 16.1, True),
        ([1.0] * 4, 100.0, True),
        ([1.0] * 4, 1e-9, False),
        ([1.0] * 4, 0.0, False),
        ([1.0] * 3, 1e9, False),  # too few have been seen
        ([0.01, 0.1, 1.0, 10.0, 100.0], 5000.0, False),  # these differ by themselves
        ([1.0, 1.1, 0.9, 1.0, 1.2], 100.0, True),
    ],
)
def test_only_what_is_far_too_strong_is_outside(seen: list[float], norm: float, outside: bool) -> None:
    said = bounds.outside(_seen(*seen), BASE, {"q": norm})
    assert bool(said) is outside


def test_the_figure_is_shown_with_what_was_seen() -> None:
    known = _seen(*[2.0] * 5) | _seen(*[2.0] * 5, module="v")
    said = bounds.outside(known, BASE, {"q": 200.0, "v": 2e6, "k": 1e9})
    assert "v is 2e+06" in said
    assert "5 adapters" in said
    assert "2 on average" in said
    assert "32 is let in" in said
    assert "1 more module" in said


def test_a_module_that_is_left_alone_teaches_nothing() -> None:
    assert bounds.learned({}, BASE, {"q": 0.0}) == ()


def test_bounds_are_by_base() -> None:
    known = _seen(*[1.0] * 5)
    assert bounds.outside(known, "base_y", {"q": 1e9}) == ""
    assert bounds.of_base([*known.values(), Bound(key="base_y q", count=1, mean_log=0.0, m2_log=0.0)], BASE) == known


# ---- at the door -------------------------------------------------------------------------------------------------


def _strong(lab: Lab, seed: int, factor: float = 1.0) -> Path:
    tensors = lora_tensors(seed)
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = tensors[name] * np.float32(factor)
    return lab.folder(f"strong-{seed}", tensors=tensors, config=lora_config())


def _lab_that_has_seen(lab: Lab, count: int) -> None:
    for seed in range(count):
        assert lab.admit(_strong(lab, seed)).verdict == ADMITTED


def test_an_adapter_a_hundred_times_too_strong_is_quarantined(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    found = lab.admit(_strong(lab, 100, factor=128))
    assert found.verdict == QUARANTINED
    assert "the norm of its change to model.layers" in found.reason
    monkeypatch.setattr(
        admission, "CONTENT_CHECKS", tuple(c for c in admission.CONTENT_CHECKS if c is not admission.check_norms)
    )
    assert lab.admit(_strong(lab, 101, factor=128)).verdict == ADMITTED


def test_a_hidden_scale_counts(lab: Lab) -> None:
    """The same numbers with a hundred times the alpha."""
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    folder = lab.folder("alpha", config=lora_config(lora_alpha=400))
    assert "norm" in lab.admit(folder).reason


def test_as_strong_as_the_others_is_let_in(lab: Lab) -> None:
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    assert lab.admit(_strong(lab, 100, factor=4)).verdict == ADMITTED


def test_what_was_quarantined_teaches_nothing(lab: Lab) -> None:
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    for seed in range(200, 206):
        assert lab.admit(_strong(lab, seed, factor=1024)).verdict == QUARANTINED


def test_bounds_survive_a_restart(lab: Lab) -> None:
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    lab.registry.close()
    lab.open()
    assert lab.admit(_strong(lab, 100, factor=128)).verdict == QUARANTINED


def test_what_is_too_strong_is_let_out_by_hand_and_still_teaches_nothing(lab: Lab) -> None:
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    found = lab.admit(_strong(lab, 100, factor=128))
    before = lab.registry.local.all(Bound)
    assert "the norm of its change" in lab.registry.adapter(found.id).reason
    row = lab.registry.release(found.id)
    assert (row.state, row.reason) == (ADMITTED, "")
    assert lab.registry.local.all(Bound) == before


def test_one_that_can_not_be_outside_is_not_looked_at_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """‖B A‖ is at most ‖B‖ ‖A‖; a stranger's teaches nothing, so that no more than this has to be known of it."""
    _lab_that_has_seen(lab, bounds.MIN_SEEN)
    monkeypatch.setattr(grams, "gram", lambda *_: pytest.fail("a Gram matrix was made"))
    folder = _strong(lab, 100)
    claim = lab.claim(folder, author=MALLORY.public_key)
    assert lab.admit_signed(sign(claim, MALLORY), folder).verdict == ADMITTED
