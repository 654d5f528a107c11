"""Are names told of what is here, and asked of the index once?"""

from __future__ import annotations

import pytest

from orchd.registry import names
from orchd.registry.names import Names
from tests.helpers import Lab, lora_tensors


def _admit(lab: Lab, name: str, seed: int) -> str:
    folder = lab.folder(name, tensors=lora_tensors(seed))
    return lab.admit(folder, lab.claim(folder, name=name)).id


def test_names_of_what_is_here(lab: Lab) -> None:
    one, two = _admit(lab, "one", 1), _admit(lab, "two", 2)
    known = lab.registry.names
    assert known.of([]) == {}
    assert known.of([two, "adp_unknown", one]) == {one: "one", two: "two"}


def test_they_are_looked_up_once_until_there_are_too_many(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "KEPT", 1)
    one, two = _admit(lab, "one", 1), _admit(lab, "two", 2)
    known = Names(lab.registry.index)
    assert known.of([one]) == {one: "one"}
    lab.registry.index.execute("UPDATE adapter SET name = 'other'")
    assert known.of([one]) == {one: "one"}
    assert known.of([two]) == {two: "other"}
    assert known.of([one]) == {one: "other"}
