"""What stands for a node's registry: the records and adapters that are here. It outlives a stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from orchd.net.policy.repair import Ids
from orchd.records import Announcement, Manifest, Record, Revocation, Verified
from tests.sim.works import Work


class Shelf:
    """As `registry/news.py` and `net/known.py` keep it, without a disk."""

    def __init__(self) -> None:
        self.records: dict[bytes, Verified[Record]] = {}
        self.topics: dict[bytes, tuple[str, ...]] = {}
        self.by_topic: dict[str, Ids] = {}
        self.authors: Counter[bytes] = Counter()
        #: Of each adapter the topics under which it was announced, and who told us.
        self.announced: dict[bytes, tuple[str, ...]] = {}
        self.teller: dict[bytes, str] = {}
        #: Adapters that are admitted, with the bytes that came; and those that are revoked.
        self.adapters: dict[bytes, tuple[bytes, ...]] = {}
        self.manifests: dict[bytes, Verified[Manifest]] = {}
        self.revoked: set[bytes] = set()
        self._numbers: dict[tuple[bytes, int], bytes] = {}
        self._revokers: dict[bytes, set[bytes]] = {}

    def ids(self, topic: str) -> Ids:
        return self.by_topic.get(topic) or Ids()

    def rival(self, record: Announcement, digest: bytes) -> bool:
        """Whether another announcement of this author has this number."""
        return self._numbers.get((record.author, record.seq), digest) != digest

    def take(self, record: Verified[Record], peer: str, topics: Sequence[str]) -> tuple[str, ...] | None:
        """The topics under which it is passed on, None when it is no news or does not count."""
        if record.digest in self.records:
            return None
        found = record.record
        if isinstance(found, Announcement):
            return self._announcement(found, record, peer)
        if isinstance(found, Revocation):
            return self._revocation(found, record, topics)
        return None

    def _announcement(self, found: Announcement, record: Verified[Record], peer: str) -> tuple[str, ...]:
        self._numbers[found.author, found.seq] = record.digest
        before = self.announced.get(found.manifest, ())
        self.announced[found.manifest] = tuple(dict.fromkeys((*before, *found.topics)))
        self.teller.setdefault(found.manifest, peer)
        self._put(record, found.topics)
        return found.topics

    def _revocation(self, found: Revocation, record: Verified[Record], topics: Sequence[str]) -> tuple[str, ...] | None:
        manifest = self.manifests.get(found.manifest)
        if manifest is not None and manifest.record.author != found.author:
            return None
        under = self.announced.get(found.manifest) or tuple(topics)
        self._put(record, under)
        self._revokers.setdefault(found.manifest, set()).add(found.author)
        if manifest is not None:
            self.revoke(found.manifest)
        return under

    def revoke(self, adapter: bytes) -> None:
        self.revoked.add(adapter)
        self.adapters.pop(adapter, None)

    def admit(self, manifest: Verified[Manifest], chunks: tuple[bytes, ...]) -> None:
        self.manifests[manifest.digest] = manifest
        if manifest.record.author in self._revokers.get(manifest.digest, ()):
            self.revoke(manifest.digest)
        else:
            self.adapters[manifest.digest] = chunks

    def made(self, work: Work) -> None:
        """One of our own."""
        self.admit(work.manifest, work.chunks)

    def envelopes(self, ids: Iterable[bytes], names: Sequence[str]) -> list[bytes]:
        return [
            self.records[id].envelope for id in ids if id in self.records and not set(names).isdisjoint(self.topics[id])
        ]

    def _put(self, record: Verified[Record], topics: Sequence[str]) -> None:
        self.records[record.digest] = record
        self.topics[record.digest] = tuple(topics)
        self.authors[record.record.author] += 1
        for name in topics:
            self.by_topic.setdefault(name, Ids()).add(record.digest)
