"""Are the newest listed, and is it said how many there are?"""

from __future__ import annotations

from orchd.records import Announcement, sign
from orchd.registry import listing
from tests.helpers import ALICE, Lab, lora_tensors


def _admit(lab: Lab, name: str, seed: int) -> str:
    lab.now_ms += 1
    folder = lab.folder(name, tensors=lora_tensors(seed))
    return lab.admit(folder, lab.claim(folder, name=name)).id


def _tell(lab: Lab, digest: bytes, seq: int, *topics: str) -> None:
    announcement = Announcement(
        manifest=digest,
        topics=topics,
        size=seq,
        created_ms=lab.now_ms - 100 + seq,
        base=bytes(32),
        author=ALICE.public_key,
        seq=seq,
    )
    lab.registry.record_announcement(sign(announcement, ALICE), "peer")


def _listed(lab: Lab, *, state: str | None = None, topic: str | None = None, limit: int = 50) -> listing.Listed:
    return listing.newest(lab.registry, state=state, topic=topic, limit=limit)


def test_the_newest_that_are_here(lab: Lab) -> None:
    ids = [_admit(lab, str(seed), seed) for seed in range(4)]
    _tell(lab, lab.registry.manifest(ids[0]).digest, 1, "words")
    found = _listed(lab, limit=2)
    assert ([row.id for row in found.adapters], found.here) == ([ids[3], ids[2]], 4)
    assert (found.announced, found.offered) == ([], 0)
    found = _listed(lab, topic="words")
    assert ([row.id for row in found.adapters], found.here) == ([ids[0]], 1)
    lab.registry.remove(ids[3])
    assert ([row.id for row in _listed(lab, limit=1).adapters], _listed(lab).here) == ([ids[2]], 3)
    assert _listed(lab, state="quarantined").here == 0


def test_the_newest_that_are_offered_each_once(lab: Lab) -> None:
    for seq, (number, topic) in enumerate([(1, "a"), (2, "b"), (1, "b"), (3, "a")], 1):
        _tell(lab, bytes([number]) * 32, seq, topic)
    found = _listed(lab, limit=2)
    assert ([row.size for row in found.announced], found.offered) == ([4, 3], 3)  # the later word on the first one
    assert ([row.size for row in _listed(lab, topic="a").announced], _listed(lab, topic="a").offered) == ([4, 1], 2)


def test_an_offer_by_the_beginning_of_its_id(lab: Lab) -> None:
    _tell(lab, bytes(32), 1, "a")
    _tell(lab, bytes(32), 2, "b")
    _tell(lab, b"\xff" * 32, 3, "a")
    assert len(listing.offered(lab.registry, "adp_")) == 2
    [id] = listing.offered(lab.registry, "adp_aaaa")
    assert id == "adp_" + "a" * 52
