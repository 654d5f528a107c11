"""An author sets their clock back and signs: a new version that looks old, or an old one again.

What counts is the author's word on what a version replaces (`supersedes`) and this node's own clock for when it came.
"""

from __future__ import annotations

from orchd.records import Verified, sign
from orchd.records.manifest import Manifest
from tests.helpers import BOB, Lab, lora_tensors


def _admit(lab: Lab, seed: int, created_ms: int, supersedes: Verified[Manifest] | None = None) -> Verified[Manifest]:
    folder = lab.folder(f"version-{seed}", tensors=lora_tensors(seed))
    changes = {"created_ms": created_ms, "supersedes": supersedes and supersedes.digest}
    signed = sign(lab.claim(folder, author=BOB.public_key, name="news", **changes), BOB)
    assert lab.admit_signed(signed, folder).verdict == "admitted"
    return signed


def test_a_new_version_dated_long_ago_is_still_the_newest(lab: Lab) -> None:
    first = _admit(lab, 1, created_ms=lab.now_ms)
    second = _admit(lab, 2, created_ms=1, supersedes=first)
    assert lab.registry.resolve(f"news@{BOB.author}") == second.id


def test_when_it_came_is_this_nodes_own_time(lab: Lab) -> None:
    signed = _admit(lab, 1, created_ms=0)
    row = lab.registry.adapter(signed.id)
    assert (row.created_ms, row.received_ms) == (0, lab.now_ms)


def test_an_old_version_without_a_word_on_what_it_replaces_does_not_push_aside_a_newer(lab: Lab) -> None:
    newer = _admit(lab, 1, created_ms=lab.now_ms)
    _admit(lab, 2, created_ms=lab.now_ms - 1)
    assert lab.registry.resolve(f"news@{BOB.author}") == newer.id
