"""An adapter that is harmless here and a million times stronger in PEFT.

PEFT reads the keys of `alpha_pattern` as regular expressions, where a dot is any letter: `q.proj` is `q_proj` there.
A reader that takes keys as names would compute, average and show the adapter at its plain scale.
"""

from __future__ import annotations

import re

from orchd.errors import AdapterConfigRefused
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import MODULES, Lab, lora_config

HIDDEN = {"self.attn.q_proj": 1e6}


def test_a_pattern_names_a_module_by_its_letters(lab: Lab) -> None:
    (key,) = HIDDEN
    assert re.match(rf"(.*\.)?({key})$", MODULES[0])  # what PEFT 0.21 asks (peft/utils/other.py, get_pattern_key)
    folder = lab.folder(config=lora_config(alpha_pattern=HIDDEN))
    assert "no module" in assert_refused(lab, AdapterConfigRefused, signed_by_alice(lab.claim(folder)), folder)
