"""Reads and verifies manifests by the thousand, in processes beside this one when there are many.

A signature costs a tenth of a millisecond and Python runs one thread at a time, so a hundred thousand manifests need a
second core to be read in well under a minute.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from orchd.errors import OrchdError
from orchd.records import text_id
from orchd.records.ids import ADAPTER
from orchd.registry.manifest_files import ManifestFiles
from orchd.registry.rows import Edge, edges, manifest_values

LOG = logging.getLogger(__name__)
PROCESSES = 2
#: Batches below which a process would not have started before the work is done.
MANY_BATCHES = 5
AHEAD = 4  # batches that are read before they are asked for


class Read(NamedTuple):
    """What the index needs of one manifest. `error` says what is wrong with it; `unreadable`: the disk is at fault."""

    digest: bytes
    values: tuple[Any, ...] = ()
    edges: tuple[Edge, ...] = ()
    files: tuple[tuple[bytes, int], ...] = ()
    error: str = ""
    unreadable: bool = False

    @property
    def id(self) -> str:
        return str(self.values[0]) if self.values else text_id(ADAPTER, self.digest)


def read_all(root: Path, batches: Sequence[Sequence[bytes]]) -> Iterator[list[Read]]:
    """The manifests below `root` by their digests, batch by batch in their order."""
    done = 0
    if len(batches) >= MANY_BATCHES:
        try:
            for read in _beside(root, batches):
                yield read
                done += 1
        except (BrokenProcessPool, OSError) as error:
            LOG.warning("reading manifests in other processes failed (%s); it goes on in this one", error)
    for batch in batches[done:]:
        yield read_batch(root, batch)


def _beside(root: Path, batches: Iterable[Sequence[bytes]]) -> Iterator[list[Read]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_ignore_interrupts) as pool:
        waiting, ahead = iter(batches), list[Any]()
        for batch in waiting:
            ahead.append(pool.submit(read_batch, root, batch))
            if len(ahead) >= AHEAD:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _ignore_interrupts() -> None:
    """Ctrl-C goes to the whole group; the daemon ends these itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_batch(root: Path, digests: Sequence[bytes]) -> list[Read]:
    manifests = ManifestFiles(root, made=True)
    return [_read(manifests, digest) for digest in digests]


def _read(manifests: ManifestFiles, digest: bytes) -> Read:
    try:
        manifest = manifests.read(digest)
    except OrchdError as error:
        return Read(digest, error=error.message)
    except OSError as error:
        return Read(digest, error=str(error), unreadable=True)
    files = tuple((entry.sha256, entry.size) for entry in manifest.record.files)
    return Read(digest, manifest_values(manifest), tuple(edges(manifest)), files)
