"""The signed manifests on disk, one file each, by the first byte of their digest: `ab/ab12…`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from orchd.errors import DigestMismatch, ManifestGone
from orchd.paths import sync
from orchd.records import Manifest, Verified, verify
from orchd.registry.blobs import UNFINISHED, write_durably

FILE = re.compile(r"\A[0-9a-f]{64}\Z")
DAMAGED = ".damaged-"  # begins the name of a file that was set aside


class ManifestFiles:
    """Files below `root`; those of an older orchd, which lay in one folder, are moved.

    `made`: another one of these has put the folder in order already.
    """

    def __init__(self, root: Path, *, made: bool = False) -> None:
        self.root = root
        if not made:
            self._put_in_order()

    def _put_in_order(self) -> None:
        root = self.root
        root.mkdir(parents=True, exist_ok=True)
        flat = [entry.name for entry in os.scandir(root) if entry.is_file()]
        for name in flat:
            if FILE.match(name):
                self._folder(name).mkdir(exist_ok=True)
                (root / name).rename(self._folder(name) / name)
        for unfinished in root.glob(f"*/{UNFINISHED}*"):
            unfinished.unlink()
        for name in flat:
            if name.startswith(UNFINISHED):
                (root / name).unlink()

    def path(self, digest: bytes) -> Path:
        return self._folder(digest.hex()) / digest.hex()

    def _folder(self, name: str) -> Path:
        return self.root / name[:2]

    def write(self, manifest: Verified[Manifest]) -> None:
        """Durable on return. Raises `DiskFull`."""
        path = self.path(manifest.digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync(self.root)
        write_durably(path, manifest.envelope)

    def read(self, digest: bytes) -> Verified[Manifest]:
        """Verified again. Raises `ManifestGone`, `DigestMismatch`, or what `verify` raises."""
        try:
            envelope = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise ManifestGone(f"the manifest {digest.hex()} is not on the disk any more") from None
        manifest = verify(envelope, Manifest)
        if manifest.digest != digest:
            raise DigestMismatch(f"{self.path(digest)} holds another manifest than its name says")
        return manifest

    def remove(self, digest: bytes) -> None:
        """Durable on return."""
        path = self.path(digest)
        if path.exists():
            path.unlink()
            sync(path.parent)

    def set_aside(self, digest: bytes) -> Path:
        """Move a damaged one out of the way; where it is now."""
        path = self.path(digest)
        return path.rename(path.with_name(DAMAGED + path.name))

    def digests(self) -> Iterator[bytes]:
        """Of every manifest that is here, in order."""
        for folder in sorted(entry.path for entry in os.scandir(self.root) if entry.is_dir()):
            for name in sorted(os.listdir(folder)):
                if FILE.match(name):
                    yield bytes.fromhex(name)
