"""A manifest, a config and a weights file that tell three ranks: who looks at one plans for the wrong size."""

from __future__ import annotations

import msgspec

from orchd.errors import ClaimRefused, TensorsRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, RANK, Lab, lora_config


def test_the_manifest_lies(lab: Lab) -> None:
    folder = lab.folder()
    lie = msgspec.structs.replace(HONEST_INFO, rank=RANK + 1)
    assert "rank" in assert_refused(lab, ClaimRefused, signed_by_alice(lab.claim(folder, lie)), folder)


def test_the_config_lies_and_the_manifest_with_it(lab: Lab) -> None:
    folder = lab.folder(config=lora_config(r=RANK + 1))
    lie = msgspec.structs.replace(HONEST_INFO, rank=RANK + 1)
    assert "rank" in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder, lie)), folder)
