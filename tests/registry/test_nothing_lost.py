"""Is everything that was acknowledged still there after a kill or on a full disk, and nothing half of it seen?

The programs that do it are those of `python -m benchmarks.registry`, with a handful of rounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.registry import full_disk
from orchd.errors import DiskFull
from orchd.records import Announcement, Verified, sign
from orchd.registry import ADMITTED, QUARANTINED, index, rebuild, restore, upkeep
from orchd.registry import registry as module
from orchd.registry.local import delete, put
from orchd.registry.local_rows import OwnAnnouncement, Pin, Rot, Setting, Trash
from tests.helpers import Lab, lora_tensors

ROOT = Path(__file__).resolve().parents[2]


def _admit(lab: Lab, seed: int = 0) -> str:
    folder = lab.folder(f"n{seed}", tensors=lora_tensors(seed))
    return lab.admit(folder, lab.claim(folder, name=f"n{seed}")).id


def _reopen(lab: Lab) -> None:
    lab.registry.close()
    lab.open()


# ---- killed, starved ---------------------------------------------------------------------------------------------


def test_killed_at_any_moment_nothing_acknowledged_is_lost() -> None:
    command = [sys.executable, "-m", "benchmarks.registry.killing", "6", "3"]
    found = json.loads(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    assert found["acknowledged"] > 0
    assert (found["lost"], found["half"]) == ([], [])


@pytest.mark.skipif(not full_disk.can_run(), reason="nobody may mount a file system here")
def test_on_a_full_disk_every_write_is_refused_whole_and_works_again() -> None:
    found = full_disk.measured(full_disk.QUICK)
    assert found.wrong == []
    assert len(found.paths) > 25
    assert sum(found.paths.values()) > len(found.paths)


# ---- who tidies up, and who comes in meanwhile -------------------------------------------------------------------


def test_what_came_again_is_not_thrown_out(lab: Lab) -> None:
    id = _admit(lab)
    assert not upkeep._purge(lab.registry, id)  # it was in the trash when the list was made
    assert lab.registry.adapter(id).state == ADMITTED
    assert lab.registry.manifest(id)


def test_a_blob_that_somebody_has_since_is_no_garbage(lab: Lab) -> None:
    id = _admit(lab)
    blobs = [entry.sha256.hex() for entry in lab.registry.manifest(id).record.files]
    assert upkeep._remove_unused(lab.registry, [*blobs, "ab" * 32], 2 * lab.now_ms) == []
    assert all(path.exists() for path in lab.registry.files(id).values())


def test_what_is_thrown_out_while_the_disk_is_read_is_not_called_missing(lab: Lab) -> None:
    kept, id = _admit(lab), _admit(lab, 1)
    lab.registry.remove(id)

    def progress(done: int, total: int) -> None:
        if done == total:
            upkeep.collect(lab.registry, empty_trash=True)
            for digest, _ in lab.registry.blobs.all():
                upkeep._remove_unused(lab.registry, [digest.hex()], 2 * lab.now_ms)

    assert upkeep.scrub(lab.registry, progress).missing == ()
    assert lab.registry.local.all(Rot) == []
    assert lab.registry.adapter(kept).state == ADMITTED


def test_rot_of_what_nobody_has_any_more_is_forgotten(lab: Lab) -> None:
    lab.registry.local.act("test", put(Rot(blob="ab" * 32, what="missing", since=1)))
    upkeep.scrub(lab.registry)
    assert lab.registry.local.all(Rot) == []


def test_what_comes_in_whole_is_not_called_rotten(lab: Lab) -> None:
    folder = lab.folder()
    claim = lab.claim(folder)
    lab.registry.local.act("test", *(put(Rot(blob=f.sha256.hex(), what="missing", since=1)) for f in claim.files))
    assert lab.admit(folder, claim).verdict == ADMITTED
    assert lab.registry.local.all(Rot) == []


def test_an_adapter_that_is_refused_meanwhile_gets_no_row(lab: Lab) -> None:
    """It stands at the door, with a manifest and no verdict, when all rows are made again."""
    assert rebuild._judge_if_there(lab.registry, bytes(32)) is None


def test_rows_are_not_made_again_while_adapters_are_thrown_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a row would be made for what has just gone."""
    refold, free = lab.registry.local.refold, list[bool]()

    def watched() -> None:
        thread = threading.Thread(target=lambda: free.append(lab.registry.tidying.acquire(blocking=False)))
        thread.start()
        thread.join()
        refold()

    monkeypatch.setattr(lab.registry.local, "refold", watched)
    rebuild.rebuild(lab.registry)
    assert free == [False]


def test_two_backups_at_once_are_both_whole(lab: Lab) -> None:
    failed = list[Exception]()

    def work() -> None:
        try:
            upkeep.backup(lab.registry)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_folder_for_workers_goes_as_a_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    id = _admit(lab)
    folder = lab.registry.adapter_folder(id)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # the crash comes here
        lab.registry.drop_folder(id)
    assert not folder.exists()
    _reopen(lab)
    assert list(folder.parent.iterdir()) == []


# ---- the next start ----------------------------------------------------------------------------------------------


def test_what_was_deleted_before_the_journal_was_written_anew_stays_deleted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that is older than the journal still has it, and the journal does not say any more that it went."""
    lab.registry.local.act("test", put(Pin(adapter="gone")), put(Setting(key="stays", value="1")))
    upkeep.backup(lab.registry)
    lab.registry.local.act("test", delete(Pin, "gone"))
    for number in range(20):
        lab.registry.local.act("test", put(Setting(key="stays", value=str(number))))
    monkeypatch.setattr("orchd.registry.local.COMPACT_SIZE", 1)
    _reopen(lab)
    assert '"act":"anew"' in (lab.root / "data" / "journal.log").read_text()
    lab.registry.close()
    (lab.root / "data" / "registry.db").write_bytes(b"x" * 20_000)
    lab.open()
    assert "took its place" in lab.registry.rebuilt
    assert lab.registry.local.all(Pin) == []
    assert lab.registry.local.get(Setting, "stays") == Setting(key="stays", value="19")


def test_a_journal_that_can_not_be_written_anew_stays(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        lab.registry.local.act("test", put(Setting(key="a", value=str(number))))

    def full(*_: object) -> None:
        raise DiskFull("full")

    monkeypatch.setattr("orchd.registry.local.COMPACT_SIZE", 1)
    monkeypatch.setattr("orchd.registry.journal.Journal.rewrite", full)
    _reopen(lab)
    assert lab.registry.local.get(Setting, "a") == Setting(key="a", value="19")


def test_a_restore_that_was_cut_short_goes_on(lab: Lab) -> None:
    id = _admit(lab)
    upkeep.backup(lab.registry)
    lab.registry.close()
    data = lab.root / "data"
    (data / "registry.db").rename(data / "registry.db.damaged-1")  # and then the crash came
    (data / ".unfinished-registry.db").write_bytes(b"half")
    lab.open()
    assert "registry.db.damaged-1 was set aside" in lab.registry.rebuilt
    assert "took its place" in lab.registry.rebuilt
    assert lab.registry.adapter(id).state == ADMITTED
    assert not (data / ".unfinished-registry.db").exists()


def test_the_log_is_set_aside_before_the_database(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB throws away a log that lies beside a new database."""
    data, moved = lab.root / "data", list[str]()
    for name in ("registry.db", "registry.db.wal"):
        (lab.root / name).write_bytes(b"x")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (moved.append(path.name), rename(path, target))[1])
    restore._set_aside(lab.root / "registry.db", 1)
    assert moved == ["registry.db.wal", "registry.db"]
    assert data.is_dir()


def test_half_a_backup_is_gone_at_the_next_start(lab: Lab) -> None:
    upkeep.backup(lab.registry)
    backups = lab.root / "data" / "backups"
    before = sorted(backups.iterdir())
    for name in (index.UNFINISHED_BACKUP, index.UNFINISHED_BACKUP + ".wal"):
        (backups / f"registry.db.backup-20270101{name}").write_bytes(b"half")
    (lab.root / "data" / "journal.log.new").write_bytes(b"half")
    _reopen(lab)
    assert sorted(backups.iterdir()) == before
    assert not (lab.root / "data" / "journal.log.new").exists()


def test_what_was_thrown_out_when_the_crash_came_is_not_told_as_lost(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    id = _admit(lab)
    lab.registry.remove(id)
    lab.registry.manifests.remove(lab.registry.manifest(id).digest)
    lab.registry.local.act("adapter.purge", *(delete(kind, id) for kind in (Trash, rebuild.Verdict)))
    _reopen(lab)
    assert lab.registry.notices == []
    assert not lab.registry.has_adapter(id)


# ---- a full disk -------------------------------------------------------------------------------------------------


@contextmanager
def _nothing_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("orchd.registry.local.RESERVE", 1 << 60)
        yield


def test_an_act_needs_room_for_what_follows_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    id = _admit(lab)
    with _nothing_free(monkeypatch):
        with pytest.raises(DiskFull):
            lab.registry.pin(id)
        assert not lab.registry.adapter(id).pinned
        lab.registry.remove(id)  # what makes room needs none
        upkeep.collect(lab.registry, empty_trash=True)
    assert not lab.registry.has_adapter(id)


def test_what_was_decided_without_room_is_carried_out_with_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _admit(lab), _admit(lab, 1)

    def full(*_: object) -> None:
        raise DiskFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(module.restand, "apply", full)
        with pytest.raises(DiskFull):
            lab.registry.remove(first)
    assert lab.registry.adapter(first).state == ADMITTED
    lab.registry.remove(second)
    assert lab.registry.adapters(state=ADMITTED) == lab.registry.adapters(state=QUARANTINED) == []


# ---- a home of an orchd without a journal ------------------------------------------------------------------------


def test_announcements_made_before_there_was_a_journal_are_journalled(lab: Lab) -> None:
    """Or a lost index would take their numbers along, and one of them would be used for something else."""
    id = _admit(lab)
    lab.registry.announce(lambda seq: _announcement(lab, id, seq), "peer")
    [own] = lab.registry.local.all(OwnAnnouncement)
    lab.registry.local.act("test", delete(OwnAnnouncement, own.digest))
    _reopen(lab)
    assert lab.registry.local.all(OwnAnnouncement) == [own]
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.open()
    assert [row.adapter for row in lab.registry.announcements()] == [id]


def _announcement(lab: Lab, id: str, seq: int) -> Verified[Announcement]:
    manifest = lab.registry.manifest(id)
    record = Announcement(
        manifest=manifest.digest,
        topics=("topic",),
        size=1,
        created_ms=lab.now_ms,
        base=manifest.record.base.fingerprint,
        author=lab.author.public_key,
        seq=seq,
    )
    return sign(record, lab.author)


def test_an_index_whose_log_alone_is_damaged_is_kept(lab: Lab) -> None:
    """It knows what others have announced, which no journal has."""
    id = _admit(lab)
    lab.registry.announce(lambda seq: _announcement(lab, id, seq), "peer")
    lab.registry.index._root.execute("CHECKPOINT")
    lab.registry.pin(id)
    data = lab.root / "data"
    kept = {name: (data / name).read_bytes() for name in ("registry.db", "registry.db.wal")}
    lab.registry.close()
    (data / "registry.db").write_bytes(kept["registry.db"])
    damaged = bytearray(kept["registry.db.wal"])
    damaged[len(damaged) // 2] ^= 1
    (data / "registry.db.wal").write_bytes(damaged)
    lab.open()
    assert "its log was set aside" in lab.registry.rebuilt
    assert [path.name for path in data.glob("*.damaged-*")] == [f"registry.db.wal.damaged-{lab.now_ms}"]
    assert lab.registry.adapter(id).pinned
