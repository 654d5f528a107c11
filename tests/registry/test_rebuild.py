"""Does the index become what the disk says, and is nothing written that was so already?"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from orchd.records import sign, text_id
from orchd.records.ids import ADAPTER
from orchd.registry import QUARANTINED, Registry, reading
from orchd.registry.index import Index
from orchd.registry.manifest_files import ManifestFiles
from orchd.registry.rebuild import NOT_WEIGHED, rebuild, text_ids
from tests.helpers import ALICE, Lab, lora_tensors, manifest


def _admit(lab: Lab, name: str, seed: int, initial: str | None = None) -> str:
    folder = lab.folder(name, tensors=lora_tensors(seed))
    claim = lab.claim(folder, name=name)
    if initial is not None:
        assert claim.training is not None
        training = msgspec.structs.replace(claim.training, initial=lab.registry.manifest(initial).digest)
        claim = msgspec.structs.replace(claim, training=training)
    return lab.admit(folder, claim).id


def _edges(lab: Lab) -> list[tuple[object, ...]]:
    return lab.registry.index.read("SELECT * FROM edge ORDER BY ALL")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many rows were put into each table at once."""
    counted, append = Counter[str](), Index.append

    def counting(cursor: object, table: str, rows: list[object]) -> None:
        counted[table] += len(rows)
        append(cursor, table, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Index, "append", staticmethod(counting))
    return counted


def test_ids_by_the_thousand_are_those_of_each(lab: Lab) -> None:
    digests = np.frombuffer(bytes(32) + b"\xff" * 32 + os.urandom(32 * 98), np.uint8).reshape(-1, 32)
    expected = [text_id(ADAPTER, digest.tobytes()) for digest in digests]
    assert [id.decode() for id in text_ids(digests).tolist()] == expected
    assert len(text_ids(digests[:0])) == 0


def test_what_is_as_it_should_be_is_not_written_again(lab: Lab, written: Counter[str]) -> None:
    one = _admit(lab, "one", 0)
    two = _admit(lab, "two", 1, initial=one)
    before, edges = lab.registry.rows_of([one, two]), _edges(lab)
    assert edges == [(two, one, "initial", None)]
    rebuild(lab.registry)
    assert (written["adapter"], written["edge"]) == (0, 0)
    lab.registry.index.execute("UPDATE adapter SET words = 'other' WHERE digest = ?", (one,))
    lab.registry.index.execute("UPDATE edge SET parent = child")
    lab.registry.index.execute("INSERT INTO edge VALUES (?, ?, 'leaf', 1.0)", (one, two))
    rebuild(lab.registry)
    assert (written["adapter"], written["edge"]) == (1, 1)
    assert lab.registry.rows_of([one, two]) == before
    assert _edges(lab) == edges


def test_nothing_is_let_out_before_all_was_weighed(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.index.execute("DELETE FROM adapter")
    seen = []

    def progress(done: int, total: int) -> None:
        row = lab.registry.adapter(id)
        seen.append((done, total, row.state, row.reason))

    rebuild(lab.registry, progress)
    assert seen == [(1, 1, QUARANTINED, NOT_WEIGHED)]
    assert lab.registry.adapter(id).state == "admitted"


def test_processes_read_what_one_would(tmp_path: Path) -> None:
    files = ManifestFiles(tmp_path)
    for number in range(reading.MANY_BATCHES * 2):
        files.write(sign(manifest(name=f"number {number}"), ALICE))
    digests = list(files.digests())
    files.path(digests[3]).write_bytes(b"not a manifest")
    batches = [digests[start : start + 2] for start in range(0, len(digests), 2)]
    found = list(reading.read_all(tmp_path, batches))
    assert found == [reading.read_batch(tmp_path, batch) for batch in batches]
    assert [read.digest for batch in found for read in batch] == digests
    bad = found[1][1]
    assert bad.error
    assert bad.id == text_id(ADAPTER, digests[3])


def test_a_start_without_an_index_says_how_far_it_is(lab: Lab) -> None:
    _admit(lab, "one", 0)
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    told = list[tuple[int, int]]()
    lab.registry = Registry.open(
        lab.root / "data", lambda: lab.now_ms, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 1)]
    lab.registry.close()
    told.clear()
    Registry.open(lab.root / "data", lambda: lab.now_ms, progress=lambda *far: told.append(far)).close()
    assert told == []
