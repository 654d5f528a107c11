"""Is nothing thrown away that somebody has, and is rot found and mended?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchd.errors import AdapterUnknown, BlobUnknown, NothingToUndo, NotReleasable, RegistryIncomplete
from orchd.records import BaseRef, sign
from orchd.registry import ADMITTED, QUARANTINED, upkeep
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.local_rows import Deployment, Release, Rot, Trash, Verdict
from orchd.registry.own import Datasets, Deployments
from orchd.registry.rebuild import rebuild
from orchd.registry.standing import REMOVED, StandingChange
from orchd.registry.upkeep import DAY_MS, backup, collect, make_room, scrub, stats
from orchd.train.runs import Runs
from orchd.upkeep import Upkeep
from tests.helpers import ALICE, Lab, lora_tensors


def _admit(lab: Lab, name: str, seed: int, origin: str = "fetched") -> str:
    folder = lab.folder(name, tensors=lora_tensors(seed))
    return lab.admit(folder, lab.claim(folder, name=name), origin=origin).id


def _age(lab: Lab, days: float) -> None:
    """Every blob came that long ago."""
    for digest, _ in lab.registry.blobs.all():
        seconds = lab.now_ms / 1000 - days * 86_400
        os.utime(lab.registry.blobs.path(digest), (seconds, seconds))


def _blobs(lab: Lab) -> int:
    return sum(1 for _ in lab.registry.blobs.all())


# ---- the trash and garbage ---------------------------------------------------------------------------------------


def test_the_trash_is_kept_for_thirty_days(lab: Lab) -> None:
    id, other = _admit(lab, "one", 0), _admit(lab, "two", 1)
    lab.registry.adapter_folder(id)
    lab.registry.remove(id)
    _age(lab, 2)
    lab.now_ms += 29 * DAY_MS
    assert collect(lab.registry).adapters == ()
    assert _blobs(lab) == 3
    lab.now_ms += 2 * DAY_MS
    assert collect(lab.registry, dry_run=True).adapters == (id,)
    gone = collect(lab.registry)
    assert (gone.adapters, gone.blobs) == ((id,), 1)  # the config is the other one's too
    assert not lab.registry.has_adapter(id)
    assert not (lab.registry.data / "adapters" / id).exists()
    for kind in (Verdict, Trash):
        assert lab.registry.local.get(kind, id) is None
    lab.registry.close()
    lab.open()
    assert [row.id for row in lab.registry.adapters()] == [other]
    assert lab.registry.is_whole(other)


def test_the_trash_can_be_emptied_at_once(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.remove(id)
    _age(lab, 2)
    assert collect(lab.registry, empty_trash=True, dry_run=True).dry_run
    assert lab.registry.has_adapter(id)
    assert collect(lab.registry, empty_trash=True).adapters == (id,)
    assert _blobs(lab) == 0


@pytest.mark.parametrize("step", ["manifest", "decisions"])
def test_a_last_way_that_was_cut_short_is_finished(lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.remove(id)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    if step == "manifest":
        monkeypatch.setattr(lab.registry.manifests, "remove", die)
    else:
        monkeypatch.setattr(upkeep.rebuild, "forget", die)
    with pytest.raises(KeyboardInterrupt):
        collect(lab.registry, empty_trash=True)
    monkeypatch.undo()
    lab.registry.close()
    lab.open()
    assert lab.registry.adapters() == []
    collect(lab.registry, empty_trash=True)
    assert not lab.registry.has_adapter(id)
    assert lab.registry.local.all(Verdict) == []


def test_bytes_that_nobody_has_wait_a_day(lab: Lab) -> None:
    kept = _admit(lab, "one", 0)
    (lab.root / "loose").write_bytes(b"nobody's")
    (lab.root / "model").write_bytes(b"a deployment's")
    loose = lab.registry.blobs.put_file(lab.root / "loose")
    deployed = lab.registry.blobs.put_file(lab.root / "model")
    Deployments(lab.registry.local).put(
        Deployment(
            name="words", adapter=None, target="embedded", state="ready", base="b", blob=deployed.hex(), size=1,
            quantize="F16", parity=None, created=1,
        )
    )  # fmt: skip
    _age(lab, 0.9)
    assert collect(lab.registry).blobs == 0
    _age(lab, 1.1)
    assert lab.registry.blobs.keep(loose)  # somebody wants it again
    os.utime(lab.registry.blobs.path(loose), (lab.now_ms / 1000, lab.now_ms / 1000))
    assert collect(lab.registry).blobs == 0
    _age(lab, 1.1)
    assert collect(lab.registry, dry_run=True).blobs == 1
    assert collect(lab.registry).blobs == 1
    assert not lab.registry.blobs.has(loose)
    assert lab.registry.blobs.has(deployed)
    assert lab.registry.is_whole(kept)


def test_nothing_is_called_garbage_while_a_manifest_is_unknown(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    _age(lab, 9)
    lab.registry.index.execute("DELETE FROM adapter WHERE digest = ?", (id,))
    with pytest.raises(RegistryIncomplete):
        collect(lab.registry)
    rebuild(lab.registry)
    assert collect(lab.registry).blobs == 0
    assert lab.registry.adapter(id).state == ADMITTED


# ---- rot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_rot_is_found_quarantined_and_mended(lab: Lab, damage: str) -> None:
    id, other = _admit(lab, "one", 0), _admit(lab, "two", 1)
    told = list[StandingChange]()
    lab.registry.on_standing = told.append
    blob = lab.registry.files(id)[WEIGHTS]
    data = blob.read_bytes()
    blob.unlink()
    if damage == "flip":
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    seen = list[tuple[int, int]]()
    found = scrub(lab.registry, lambda done, total: seen.append((done, total)))
    assert (found.damaged, found.missing) == (((id,), ()) if damage == "flip" else ((), (id,)))
    assert seen[-1][0] == seen[-1][1] == found.bytes
    assert [(change.id, change.after) for change in told] == [(id, QUARANTINED)]
    assert not lab.registry.is_whole(id)
    assert lab.registry.is_whole(other)
    with pytest.raises(NotReleasable):
        lab.registry.release(id)
    lab.registry.close()
    lab.open()
    assert lab.registry.adapter(id).state == QUARANTINED
    assert scrub(lab.registry).damaged == found.damaged  # it stays known
    again = lab.admit(lab.root / "made" / "one", lab.registry.manifest(id).record)
    assert (again.new, again.verdict) == (True, ADMITTED)
    assert lab.registry.files(id)[WEIGHTS].read_bytes() == data
    assert lab.registry.local.all(Rot) == []


def test_a_worker_is_never_given_the_damaged_file_again(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    data = lab.registry.files(id)[WEIGHTS].read_bytes()
    link = lab.registry.adapter_folder(id) / WEIGHTS
    link.chmod(0o644)
    link.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # the blob too: it is a link
    assert scrub(lab.registry).damaged == (id,)
    with pytest.raises(BlobUnknown):
        lab.registry.adapter_folder(id)
    lab.admit(lab.root / "made" / "one", lab.registry.manifest(id).record)
    assert (lab.registry.adapter_folder(id) / WEIGHTS).read_bytes() == data


def test_another_adapter_that_brings_the_file_mends_it_too(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.files(id)[WEIGHTS].unlink()
    assert scrub(lab.registry).missing == (id,)
    _admit(lab, "two", 0)
    assert lab.registry.adapter(id).state == ADMITTED
    assert scrub(lab.registry).missing == ()


def test_a_damaged_copy_is_kept_until_there_is_a_whole_one(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    blob = lab.registry.files(id)[WEIGHTS]
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    scrub(lab.registry)
    assert collect(lab.registry).blobs == 0
    assert [path.name for path in lab.registry.blobs.rotten()] == [blob.name]
    lab.admit(lab.root / "made" / "one", lab.registry.manifest(id).record)
    assert collect(lab.registry, dry_run=True).blobs == 1
    assert (collect(lab.registry).bytes, list(lab.registry.blobs.rotten())) == (len(data), [])


def test_what_comes_back_by_itself_is_mended(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    blob = lab.registry.files(id)[CONFIG]
    blob.rename(lab.root / "away")
    assert scrub(lab.registry).missing == (id,)
    (lab.root / "away").rename(blob)
    assert scrub(lab.registry).mended == 1
    assert lab.registry.adapter(id).state == ADMITTED


# ---- the quota ---------------------------------------------------------------------------------------------------


def test_room_is_made_by_what_was_unused_longest(lab: Lab) -> None:
    own = _admit(lab, "own", 0, origin="trained")
    pinned, used, unused = (_admit(lab, name, seed) for seed, name in enumerate(("pinned", "used", "unused"), 1))
    lab.registry.pin(pinned)
    lab.now_ms += DAY_MS
    lab.registry.adapter_folder(used)
    size = sum(facts.st_size for _, facts in lab.registry.blobs.all())
    assert make_room(lab.registry, size).adapters == ()
    assert make_room(lab.registry, size - 1).adapters == (unused,)
    assert {row.id for row in lab.registry.adapters()} == {own, pinned, used}
    assert all(lab.registry.is_whole(id) for id in (own, pinned, used))  # they share its config
    lab.registry.pin(pinned, False)
    evicted = make_room(lab.registry, 0)
    assert evicted.adapters == (pinned, used)
    assert evicted.after < evicted.before
    lab.registry.close()
    lab.open()
    assert [row.id for row in lab.registry.adapters()] == [own]


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_released_by_hand_it_stays_released(lab: Lab) -> None:
    folder = lab.folder()
    base = BaseRef(fingerprint=bytes(32), hint="", architecture="")
    id = lab.admit_signed(sign(lab.claim(folder, base=base), ALICE), folder).id
    assert lab.registry.release(id).state == ADMITTED
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.open()
    assert lab.registry.adapter(id).state == ADMITTED
    assert lab.registry.undo().act == "adapter.release"
    assert lab.registry.local.all(Release) == []
    assert lab.registry.adapter(id).state == QUARANTINED


def test_what_lies_in_the_trash_is_found_again_by_its_name(lab: Lab) -> None:
    id, other = _admit(lab, "one", 0), _admit(lab, "two", 1)
    lab.registry.remove(id)
    lab.now_ms += 1
    lab.registry.remove(id)  # once more changes nothing
    lab.registry.pin(other)
    for text in ("one", id[:20]):
        with pytest.raises(AdapterUnknown, match="it was removed") as told:
            lab.registry.resolve(text)
        assert id in told.value.hint
    for refused in (lab.registry.pin, lab.registry.release):
        with pytest.raises(AdapterUnknown, match="lies in the trash") as told:
            refused(id)
        assert id in told.value.hint
    assert lab.registry.undo("one", preview=True).keys == (id,)
    assert lab.registry.adapter(id).state == REMOVED
    assert lab.registry.undo("one").act == "adapter.remove"
    assert lab.registry.adapter(id).state == ADMITTED
    assert lab.registry.adapter(other).pinned
    with pytest.raises(NothingToUndo):
        lab.registry.undo(id[:20])
    assert lab.registry.undo(other[:20]).act == "adapter.pin"


def test_a_pin_is_seen_and_survives_the_index(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.pin(id)
    assert lab.registry.adapter(id).pinned
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.open()
    assert lab.registry.adapter(id).pinned
    lab.registry.undo()
    assert not lab.registry.adapter(id).pinned


def test_everything_can_be_made_again_while_it_is_used(lab: Lab) -> None:
    ids = [_admit(lab, str(seed), seed) for seed in range(3)]
    lab.registry.pin(ids[0])
    lab.registry.remove(ids[1])
    before = lab.registry.rows_of(ids)
    lab.registry.index.execute("UPDATE adapter SET name = 'wrong', author = 'wrong', shown = '{}'")
    lab.registry.index.execute("DELETE FROM trash")
    done = rebuild(lab.registry)
    assert (done.put_back, done.taken_out) == (3, 0)
    assert lab.registry.rows_of(ids) == before


# ---- backups -----------------------------------------------------------------------------------------------------


def test_a_backup_takes_the_place_of_a_damaged_index(lab: Lab) -> None:
    one = _admit(lab, "one", 0)
    path = backup(lab.registry)
    two = _admit(lab, "two", 1)
    lab.registry.remove(one)
    lab.registry.close()
    (lab.root / "data" / "registry.db").write_bytes(b"x" * 20_000)
    lab.open()
    assert path.name in lab.registry.rebuilt
    assert [row.id for row in lab.registry.adapters()] == [two]
    assert list((lab.root / "data").glob("registry.db.damaged-*"))


def test_a_damaged_backup_is_passed_over(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    backup(lab.registry).write_bytes(b"y" * 20_000)
    lab.registry.close()
    (lab.root / "data" / "registry.db").write_bytes(b"x" * 20_000)
    lab.open()
    assert "made again" in lab.registry.rebuilt
    assert lab.registry.adapter(id).state == ADMITTED


def test_three_backups_are_kept(lab: Lab) -> None:
    for _ in range(5):
        backup(lab.registry)
        lab.now_ms += DAY_MS
    assert len(list((lab.root / "data" / "backups").iterdir())) == 3
    assert stats(lab.registry).backup.endswith("20270119")


def _datasets(lab: Lab) -> Datasets:
    return Datasets(lab.registry.local, lab.root / "datasets", lambda: lab.now_ms)


def test_what_was_done_by_night_is_told_in_words(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    own, fetched = _admit(lab, "own", 0, origin="trained"), _admit(lab, "fetched", 1)
    by_night = Upkeep(lab.registry, _datasets(lab), _runs(lab), lambda: lab.now_ms, quota=100)
    by_night.round()
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert fetched in told
    assert own not in told
    assert "more than the quota" in told
    assert str(stats(lab.registry).backup) in told
    caplog.clear()
    by_night.round()
    assert [record.getMessage() for record in caplog.records] == []  # it is told once


def _runs(lab: Lab) -> Runs:
    return Runs(lab.root / "runs")


def _run(lab: Lab, name: str, days: int) -> Path:
    """A training whose last checkpoint is so old."""
    checkpoint = _runs(lab).folder(name) / "step-00000010"
    checkpoint.mkdir(parents=True)
    for path in (checkpoint, checkpoint.parent):
        os.utime(path, (lab.now_ms / 1000 - days * 86_400,) * 2)
    return checkpoint.parent


def test_by_night_everything_is_done_once(lab: Lab) -> None:
    id = _admit(lab, "one", 0)
    lab.registry.remove(id)
    lab.now_ms += 31 * DAY_MS
    _age(lab, 2)
    datasets = _datasets(lab)
    (nobodys := lab.root / "datasets" / "dst_left").mkdir()
    old, young = (_run(lab, f"job_{days}", days) for days in (31, 29))
    upkeep_by_night = Upkeep(lab.registry, datasets, _runs(lab), lambda: lab.now_ms, quota=0)
    upkeep_by_night.round()
    assert not lab.registry.has_adapter(id)
    assert not nobodys.exists(), "old data sets are swept too"
    assert (old.exists(), young.exists()) == (False, True), "and what old trainings kept"
    first = stats(lab.registry).backup
    assert first
    (lab.root / "data" / "backups" / first).unlink()
    upkeep_by_night.round()
    assert stats(lab.registry).backup == ""
    lab.now_ms += DAY_MS
    upkeep_by_night.round()
    assert stats(lab.registry).backup > first


def test_the_nights_go_on_over_restarts(lab: Lab) -> None:
    made = backup(lab.registry)
    seconds = lab.now_ms / 1000
    os.utime(made, (seconds, seconds))
    for later, due in ((DAY_MS // 3, False), (DAY_MS, True)):
        before = made.stat().st_mtime_ns
        lab.now_ms += later
        Upkeep(lab.registry, _datasets(lab), _runs(lab), lambda: lab.now_ms, quota=0).round()
        newest = upkeep.newest_backup(lab.registry)
        assert newest is not None
        assert (newest.stat().st_mtime_ns != before) == due


def test_figures_are_what_is_there(lab: Lab, tmp_path: Path) -> None:
    ids = [_admit(lab, str(seed), seed) for seed in range(3)]
    lab.registry.remove(ids[0])
    lab.registry.pin(ids[1])
    shown = stats(lab.registry)
    assert (shown.admitted, shown.quarantined, shown.removed, shown.pinned, shown.blobs) == (2, 0, 1, 1, 4)
    assert shown.blob_bytes == sum(facts.st_size for _, facts in lab.registry.blobs.all())
    assert shown.journal_bytes == (lab.root / "data" / "journal.log").stat().st_size
    assert shown.notices == ()
