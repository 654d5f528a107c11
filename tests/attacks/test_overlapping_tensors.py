"""Tensors that share bytes: a small file that unpacks to a large one, and other numbers for other readers."""

from __future__ import annotations

from orchd.errors import TensorsRefused
from orchd.registry.admission import WEIGHTS
from tests.attacks.door import assert_refused, signed_by_alice
from tests.helpers import HONEST_INFO, Lab, Safetensors, lora_tensors


def test_every_byte_belongs_to_one_tensor(lab: Lab) -> None:
    file = Safetensors.of(lora_tensors())
    first, *others = file.entries
    for name in others:  # all of one size
        file.entries[name]["data_offsets"] = file.entries[first]["data_offsets"]
    folder = lab.folder()
    (folder / WEIGHTS).write_bytes(Safetensors(file.entries, file.data[: len(file.data) // len(file.entries)]).file())
    assert "overlaps" in assert_refused(lab, TensorsRefused, signed_by_alice(lab.claim(folder, HONEST_INFO)), folder)
