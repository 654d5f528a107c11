"""Does a scan know alike from unlike, and does it say when it knows nothing?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchd.records import BaseRef, sign
from orchd.registry import ADMITTED
from orchd.registry.scan import ALIKE, LEAST_KNOWN, MOST_KNOWN, NOTE, UNKNOWN, UNLIKE, Scan, scan
from tests.helpers import (
    HIDDEN,
    MALLORY,
    MODULES,
    RANK,
    Lab,
    Values,
    base_tensors,
    lora_config,
    lora_tensors,
    write_base,
)


def _known(lab: Lab, count: int = LEAST_KNOWN) -> None:
    for seed in range(count):
        lab.now_ms += 1
        lab.admit(lab.folder(f"known-{seed}", tensors=lora_tensors(seed)))


def _scanned(lab: Lab, tensors: dict[str, Values] | None = None, **config: Any) -> Scan:
    folder = lab.folder("scanned", tensors=tensors or lora_tensors(99), config=lora_config(**config))
    signed = sign(lab.claim(folder, author=MALLORY.public_key), MALLORY)
    lab.admit_signed(signed, folder)
    return scan(lab.registry, signed.id)


def test_figures_are_those_of_the_dense_change(lab: Lab) -> None:
    tensors = lora_tensors(99)
    found = _scanned(lab, tensors)
    assert [module.module for module in found.modules] == sorted(MODULES)
    for module in found.modules:
        a, b = (tensors[f"base_model.model.{module.module}.lora_{half}.weight"] for half in "AB")
        values = np.linalg.svd(2 * (b @ a).astype(np.float64), compute_uv=False)
        share = values**2 / (values**2).sum()
        share = share[share > 1e-12]
        wanted = (np.linalg.norm(values), values[0], share[0], np.exp(-(share * np.log(share)).sum()))
        figures = module.figures
        np.testing.assert_allclose(
            (figures.norm, figures.largest, figures.share, figures.effective_rank), wanted, rtol=1e-4
        )


def test_one_that_is_like_the_known_ones(lab: Lab) -> None:
    _known(lab)
    found = _scanned(lab)
    assert found.verdict == ALIKE
    assert len(found.compared) == LEAST_KNOWN
    assert all(module.known and module.known.count == LEAST_KNOWN for module in found.modules)


def test_one_that_is_unlike_them_is_shown_with_its_figures(lab: Lab) -> None:
    _known(lab)
    tensors = lora_tensors(99)
    for half in "AB":
        name = f"base_model.model.{MODULES[1]}.lora_{half}.weight"
        tensors[name] = tensors[name] * np.float32(3)
    found = _scanned(lab, tensors)
    assert found.verdict == UNLIKE
    assert MODULES[1] in found.reason
    (odd,) = [module for module in found.modules if module.verdict == UNLIKE]
    assert odd.unlike == ("norm", "largest")


@pytest.mark.parametrize("count", [0, LEAST_KNOWN - 1])
def test_with_too_few_known_ones_the_answer_is_unknown(lab: Lab, count: int) -> None:
    _known(lab, count)
    found = _scanned(lab)
    assert found.verdict == UNKNOWN
    assert {module.verdict for module in found.modules} == {UNKNOWN}


def test_another_rank_is_outside_the_calibration(lab: Lab) -> None:
    _known(lab)
    found = _scanned(lab, lora_tensors(99, rank=RANK + 1), r=RANK + 1)
    assert (found.verdict, "rank" in found.reason) == (UNKNOWN, True)


def test_what_is_more_than_a_product_is_outside_the_calibration(lab: Lab) -> None:
    _known(lab)
    more = {f"base_model.model.{module}.lora_magnitude_vector": np.ones(HIDDEN, np.float32) for module in MODULES}
    found = _scanned(lab, lora_tensors(99) | more, use_dora=True)
    assert (found.verdict, "use_dora" in found.reason) == (UNKNOWN, True)


def test_strangers_adapters_are_no_calibration(lab: Lab) -> None:
    for seed in range(LEAST_KNOWN):
        folder = lab.folder(f"stranger-{seed}", tensors=lora_tensors(seed))
        lab.admit_signed(sign(lab.claim(folder, author=MALLORY.public_key), MALLORY), folder)
    assert _scanned(lab).verdict == UNKNOWN


def test_the_newest_known_ones_are_looked_at_and_never_itself(lab: Lab) -> None:
    _known(lab, MOST_KNOWN + 2)
    rows = lab.registry.adapters()
    found = scan(lab.registry, rows[0].id)
    assert found.compared == tuple(row.id for row in rows[1 : MOST_KNOWN + 1])


def test_it_never_says_safe() -> None:
    words = Path("orchd/registry/scan.py").read_text(encoding="utf-8").lower() + NOTE.lower()
    assert "safe" not in words.replace("safetensors", "")


def test_an_adapter_that_changes_nothing_has_figures(lab: Lab) -> None:
    tensors = {name: values * np.float32("lora_A" in name) for name, values in lora_tensors(1).items()}
    assert {module.figures.norm for module in _scanned(lab, tensors).modules} == {0.0}


def test_a_module_that_too_few_known_ones_change_is_outside_the_calibration(lab: Lab) -> None:
    """All of it is changed as by the known ones, and something besides."""
    for seed in range(LEAST_KNOWN):
        folder = lab.folder(
            f"half-{seed}",
            tensors=lora_tensors(seed, modules=[name for name in MODULES if "q_proj" in name]),
            config=lora_config(target_modules=["q_proj"]),
        )
        lab.admit(folder)
    found = _scanned(lab)
    verdicts = {module.module: module.verdict for module in found.modules}
    assert verdicts == {name: ALIKE if "q_proj" in name else UNKNOWN for name in MODULES}
    assert found.verdict == UNKNOWN
    assert "2 of its modules" in found.reason


def test_adapters_of_another_base_are_no_calibration(lab: Lab) -> None:
    other = lab.registry.add_base("other", write_base(lab.root / "other", base_tensors(3)))
    reference = BaseRef(fingerprint=other.digest, hint="other", architecture=other.architecture)
    for seed in range(LEAST_KNOWN):
        folder = lab.folder(f"other-{seed}", tensors=lora_tensors(seed))
        assert lab.admit(folder, lab.claim(folder, base=reference)).verdict == ADMITTED
    assert _scanned(lab).verdict == UNKNOWN


def test_those_in_quarantine_are_no_calibration(lab: Lab) -> None:
    for seed in range(LEAST_KNOWN):
        lab.admit(lab.folder(f"odd-{seed}", tensors=lora_tensors(seed)), checks=[lambda _: "odd"])
    assert _scanned(lab).verdict == UNKNOWN


def test_factors_that_make_no_product_have_no_figures(lab: Lab) -> None:
    """For a base that is not here no shape is known, so that they stand in quarantine, where one looks at them."""
    tensors = {name: np.zeros((RANK, 0) if ".lora_A." in name else (0, RANK), np.float32) for name in lora_tensors()}
    folder = lab.folder(tensors=tensors)
    stranger = BaseRef(fingerprint=bytes(32), hint="who knows", architecture="LlamaForCausalLM")
    found = scan(lab.registry, lab.admit(folder, lab.claim(folder, base=stranger)).id)
    assert (found.verdict, found.modules) == (UNKNOWN, ())
