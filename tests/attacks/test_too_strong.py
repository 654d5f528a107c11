"""A hundred times stronger than any other: in an average of ten it would decide alone.

Source: the hostile peers "× 100" of the project's measurements (average.md §4).
"""

from __future__ import annotations

import numpy as np

from orchd.records import sign
from orchd.registry import QUARANTINED, bounds
from tests.helpers import ALICE, MALLORY, Lab, lora_config, lora_tensors


def test_it_is_kept_apart_with_its_figure_and_teaches_nothing(lab: Lab) -> None:
    for seed in range(bounds.MIN_SEEN):
        lab.admit(lab.folder(f"honest-{seed}", tensors=lora_tensors(seed)))
    before = lab.registry.local.all(bounds.Bound)
    for seed in range(10, 13):
        tensors = {name: values * np.float32(10) for name, values in lora_tensors(seed).items()}
        folder = lab.folder(f"hostile-{seed}", tensors=tensors)
        claim = lab.claim(folder, author=MALLORY.public_key)
        found = lab.admit_signed(sign(claim, MALLORY), folder)
        assert found.verdict == QUARANTINED
        assert "norm" in found.reason
    assert lab.registry.local.all(bounds.Bound) == before


def test_strangers_do_not_widen_what_is_let_in(lab: Lab) -> None:
    for seed in range(bounds.MIN_SEEN):
        folder = lab.folder(f"stranger-{seed}", tensors=lora_tensors(seed))
        lab.admit_signed(sign(lab.claim(folder, author=MALLORY.public_key), MALLORY), folder)
    assert lab.registry.trust(ALICE.author) == "self"
    assert lab.registry.local.all(bounds.Bound) == []


def test_a_tiny_factor_beside_a_huge_one_hides_nothing(lab: Lab) -> None:
    """The squares of A are nothing in float32, and those of B are finite: multiplied there, the change would be 0."""
    for seed in range(bounds.MIN_SEEN):
        lab.admit(lab.folder(f"honest-{seed}", tensors=lora_tensors(seed)))
    sizes = {"lora_A": np.float32(2.0**-80), "lora_B": np.float32(2.0**61)}
    tensors = {name: values * sizes[name.split(".")[-2]] for name, values in lora_tensors(10).items()}
    assert not any((values**2).any() for name, values in tensors.items() if "lora_A" in name)
    found = lab.admit(lab.folder("hostile", tensors=tensors, config=lora_config(lora_alpha=1e9)))
    assert (found.verdict, "norm" in found.reason) == (QUARANTINED, True)
