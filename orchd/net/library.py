"""What this node's registry shows to peers. Synchronous; the network calls it in threads.

Only adapters that have been announced are shown, and only admitted ones given: an adapter that the user has not
published can't be had by somebody who learnt its id from the lineage of another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchd.net.policy.names import is_open
from orchd.records import Manifest, text_id, verify
from orchd.records.ids import ADAPTER
from orchd.registry import told
from orchd.registry.registry import Registry

#: Adapters whose manifests and lists of files are remembered, so that not every question verifies a manifest.
REMEMBERED = 64


class Library:
    """Reads for peers. A subclass that lies makes a hostile node: the demo and the attack tests do that."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._blobs: dict[bytes, frozenset[bytes]] = {}
        self._open: dict[bytes, frozenset[str]] = {}
        self._manifests: dict[bytes, bytes] = {}

    def records(self, ids: Sequence[bytes], topics: Sequence[str]) -> list[bytes]:
        """Those of these signed records that are here under any of `topics`."""
        return told.envelopes(self._registry.index, ids, topics)

    def open_topics(self, adapter: bytes) -> frozenset[str] | None:
        """What `announced_under` gives, if that is remembered. Reads nothing."""
        return self._open.get(adapter)

    def announced_under(self, adapter: bytes) -> frozenset[str]:
        """Names of the topics under which it was announced; once an open one is among them, that is remembered."""
        if adapter not in self._open:
            names = self._registry.announced_under(text_id(ADAPTER, adapter))
            if not any(map(is_open, names)):
                return names
            if len(self._open) >= REMEMBERED:
                self._open.clear()
            self._open[adapter] = names
        return self._open[adapter]

    def manifest(self, adapter: bytes) -> bytes | None:
        """The signed manifest, or None for what is not here or not shared.

        That of a revoked adapter is still shown, without its files: it proves that its author has revoked it.
        """
        id = text_id(ADAPTER, adapter)
        if adapter in self._manifests:
            return self._manifests[adapter] if self._registry.is_shared(id, revoked_too=True) else None
        envelope = self._registry.shared_manifest(id, revoked_too=True)
        if envelope is not None:
            if len(self._manifests) >= REMEMBERED:
                self._manifests.clear()
            self._manifests[adapter] = envelope
        return envelope

    def read(self, adapter: bytes, blob: bytes, offset: int, length: int) -> bytes | None:
        """Bytes of one of the adapter's files; fewer at the file's end, None for what is not shared."""
        if blob not in self._files(adapter) or not self._registry.is_shared(text_id(ADAPTER, adapter)):
            return None
        try:
            with self._registry.blobs.path(blob).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError:
            self._blobs.pop(adapter, None)
            return None

    def _files(self, adapter: bytes) -> frozenset[bytes]:
        if adapter not in self._blobs:
            envelope = self._registry.shared_manifest(text_id(ADAPTER, adapter))
            if envelope is None:
                return frozenset()
            if len(self._blobs) >= REMEMBERED:
                self._blobs.clear()
            files = verify(envelope, Manifest).record.files
            self._blobs[adapter] = frozenset(entry.sha256 for entry in files)
        return self._blobs[adapter]
