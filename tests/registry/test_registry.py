"""Is everything that was acknowledged there after a crash, a damaged index, or two at once?"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchd.errors import (
    AdapterUnknown,
    AmbiguousId,
    BaseUnknown,
    BlobUnknown,
    DiskFull,
    HomeBusy,
    IndexTooNew,
    OrchdError,
)
from orchd.records import Announcement, BaseRef, Verified, sign
from orchd.registry import ADMITTED, QUARANTINED, REMOVED, AdapterRow, manifest_files, restore
from orchd.registry.admission import CONFIG, WEIGHTS
from orchd.registry.describe import file_entries
from tests.helpers import ALICE, BOB, Lab, lora_tensors

ROOT = Path(__file__).resolve().parents[2]


def _admit(lab: Lab, name: str = "north", seed: int = 0) -> str:
    folder = lab.folder(name, tensors=lora_tensors(seed))
    return lab.admit(folder, lab.claim(folder, name=name)).id


def _reopen(lab: Lab) -> None:
    lab.registry.close()
    lab.open()


def _facts(row: AdapterRow) -> tuple[object, ...]:
    return (row.id, row.name, row.author, row.state, row.base, row.rank, row.size, row.created_ms, row.evaluation)


# ---- finding an adapter --------------------------------------------------------------------------------------


def test_an_adapter_is_found_by_id_prefix_and_name(lab: Lab) -> None:
    id = _admit(lab)
    for text in (id, id[:8], id[:20], "north"):
        assert lab.registry.adapter(text).id == id
    assert lab.registry.has_adapter(id)
    assert lab.registry.manifest(id).record.name == "north"


@pytest.mark.parametrize(
    "text", ["", "adp_", "adp_a", "south", "nort", "adp_" + "a" * 52, "%", "' OR 1=1 --", "\0", "x" * 10_000]
)
def test_nothing_else_is_found(lab: Lab, text: str) -> None:
    _admit(lab)
    with pytest.raises(AdapterUnknown) as caught:
        lab.registry.adapter(text)
    assert len(caught.value.message) < 200


def _admit_strangers(lab: Lab, name: str, seed: int) -> str:
    folder = lab.folder(f"bob-{seed}", tensors=lora_tensors(seed))
    claim = lab.claim(folder, name=name, author=BOB.public_key)
    return lab.admit_signed(sign(claim, BOB), folder).id


def test_of_several_with_one_name_the_newest_of_ones_own_is_meant(lab: Lab) -> None:
    """Or a stranger who calls theirs the same would lock me out of mine."""
    older = _admit(lab, "north", 0)
    lab.now_ms += 1_000
    newer = _admit(lab, "north", 1)
    stranger = _admit_strangers(lab, "north", 2)
    assert lab.registry.adapter("north").id == newer
    assert {lab.registry.adapter(id).id for id in (older, newer, stranger)} == {older, newer, stranger}


def test_a_name_that_two_strangers_have_is_ambiguous_and_both_are_listed(lab: Lab) -> None:
    ids = [_admit_strangers(lab, "north", seed) for seed in (0, 1)]
    with pytest.raises(AmbiguousId) as caught:
        lab.registry.adapter("north")
    assert all(id in caught.value.message for id in ids)


def test_a_name_that_looks_like_an_id_names_nothing(lab: Lab) -> None:
    """A stranger's adapter, named like one that is announced but not here, must not be taken for it."""
    wanted = "adp_" + "a" * 52
    fake = _admit(lab, wanted)
    for text in (wanted, wanted[:20]):
        with pytest.raises(AdapterUnknown):
            lab.registry.adapter(text)
    real = _admit(lab, "adp_" + fake[4:12], seed=1)
    assert lab.registry.adapter(fake[:12]).id == fake
    assert lab.registry.adapter(real).id == real


def test_the_newest_comes_first_and_the_state_divides(lab: Lab) -> None:
    old = _admit(lab, "old", 0)
    lab.now_ms += 1
    new = _admit(lab, "new", 1)
    folder = lab.folder("strange", tensors=lora_tensors(2))
    base = BaseRef(fingerprint=bytes(32), hint="", architecture="")
    strange = lab.admit(folder, lab.claim(folder, base=base, created_ms=0)).id
    assert [row.id for row in lab.registry.adapters()] == [new, old, strange]
    assert [row.id for row in lab.registry.adapters(state=ADMITTED)] == [new, old]
    assert [row.id for row in lab.registry.adapters(state=QUARANTINED)] == [strange]


def test_trust_tells_ours_from_strangers(lab: Lab) -> None:
    assert lab.registry.adapter(_admit(lab)).trust == "self"
    assert lab.registry.trust(BOB.author) == "stranger"


# ---- folders for workers -------------------------------------------------------------------------------------


def test_a_worker_gets_the_adapters_files(lab: Lab) -> None:
    id = _admit(lab)
    folder = lab.registry.adapter_folder(id)
    made = lab.root / "made" / "north"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: (made / name).read_bytes() for name in (CONFIG, WEIGHTS)
    }
    assert lab.registry.adapter_folder(id) == folder


def test_many_may_ask_for_one_folder_at_once(lab: Lab) -> None:
    """With a clock that stands still, too."""
    id, start, found = _admit(lab), threading.Barrier(8), list[Path | Exception]()

    def ask() -> None:
        start.wait()
        try:
            found.append(lab.registry.adapter_folder(id))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [lab.root / "data" / "adapters" / id] * 8
    assert [path.name for path in (lab.root / "data" / "adapters").iterdir()] == [id]


def test_a_lost_blob_is_told_and_leaves_no_half_folder(lab: Lab) -> None:
    id = _admit(lab)
    lab.registry.files(id)[WEIGHTS].unlink()
    with pytest.raises(BlobUnknown):
        lab.registry.adapter_folder(id)
    assert list((lab.root / "data" / "adapters").iterdir()) == []


def test_what_a_crash_left_half_made_is_cleaned_up(lab: Lab) -> None:
    (lab.root / "data" / "adapters" / ".abc").mkdir()
    (lab.root / "data" / "manifests" / ".unfinished-abc").write_bytes(b"half")
    _reopen(lab)
    assert lab.traces() == []
    assert list((lab.root / "data" / "adapters").iterdir()) == []


# ---- removing ------------------------------------------------------------------------------------------------


def test_what_is_removed_is_found_no_more_and_can_be_had_back(lab: Lab) -> None:
    id = _admit(lab)
    lab.registry.remove(id)
    for text in (id[:12], "north"):
        with pytest.raises(AdapterUnknown):
            lab.registry.adapter(text)
    assert lab.registry.adapters() == []
    assert [row.id for row in lab.registry.adapters(state=REMOVED)] == [id]
    _reopen(lab)
    assert lab.registry.adapters() == []
    assert lab.registry.undo().keys == (id,)
    assert lab.registry.adapter("north").state == ADMITTED
    with pytest.raises(AdapterUnknown):
        lab.registry.remove("adp_" + "a" * 52)


def test_what_is_removed_and_comes_again_is_here_again(lab: Lab) -> None:
    id = _admit(lab)
    lab.registry.remove(id)
    folder = lab.root / "made" / "north"
    again = lab.admit(folder, lab.claim(folder, name="north"))
    assert (again.id, again.new, again.verdict) == (id, True, ADMITTED)
    assert lab.registry.adapter("north").id == id


# ---- when writing fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["second blob", "manifest"])
def test_a_full_disk_leaves_nothing_behind(lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise DiskFull("no room")

    put_file, calls = lab.registry.blobs.put_file, list[Path]()

    def put(source: Path, expected: bytes | None = None) -> bytes:
        calls.append(source)
        if len(calls) == 2:
            full()
        return put_file(source, expected)

    if step == "manifest":
        monkeypatch.setattr(manifest_files, "write_durably", full)
    else:
        monkeypatch.setattr(lab.registry.blobs, "put_file", put)
    with pytest.raises(DiskFull):
        _admit(lab)
    assert lab.traces() == []
    assert lab.registry.adapters() == []
    monkeypatch.undo()
    assert lab.registry.adapter(_admit(lab)).state == ADMITTED


def test_two_at_once_with_the_same_adapter(lab: Lab) -> None:
    folder, start, found = lab.folder(), threading.Barrier(6), list[bool]()
    signed = sign(lab.claim(folder), ALICE)

    def admit() -> None:
        start.wait()
        found.append(lab.admit_signed(signed, folder).new)

    threads = [threading.Thread(target=admit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False] * 5 + [True]
    assert len(lab.registry.adapters()) == 1


CRASH = """
import os, sys
from pathlib import Path
from orchd.registry import manifest_files, registry
from tests.helpers import Lab
lab = Lab(Path(sys.argv[1]))
def die(*_, **__): os._exit(9)
if sys.argv[2] == "blob": registry.BlobStore.put_file = die
if sys.argv[2] == "manifest": manifest_files.write_durably = die
if sys.argv[2] == "verdict": registry.Registry._insert = die
if sys.argv[2] == "row": registry.insert_adapter = die
if sys.argv[2] == "standing":
    registry.Weighing.use = lambda self: None
    registry.Registry.restand = die
if sys.argv[2] == "told": registry.Registry._admission = die
lab.admit(lab.folder())
"""


@pytest.mark.parametrize(
    ("step", "there"), [("blob", 0), ("manifest", 0), ("verdict", 1), ("row", 1), ("standing", 1), ("told", 1)]
)
def test_a_crash_leaves_an_adapter_whole_or_absent(tmp_path: Path, step: str, there: int) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), step], check=False, cwd=ROOT)
    assert ended.returncode == 9
    lab = Lab(tmp_path)
    rows = lab.registry.adapters()
    assert len(rows) == there
    for row in rows:
        assert row.state == ADMITTED
        assert all(path.exists() for path in lab.registry.files(row.id).values())
    assert lab.admit(lab.folder()).new is (there == 0)  # and it can come in, or is there
    lab.registry.close()


# ---- a damaged index -----------------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"x" * 20_000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 3])


def _flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_garbage, _empty, _cut, _flip_header])
def test_a_damaged_index_is_set_aside_and_made_again(lab: Lab, damage: Callable[[Path], None]) -> None:
    ids = [_admit(lab, f"n{seed}", seed) for seed in range(3)]
    before = sorted(_facts(row) for row in lab.registry.adapters())
    lab.registry.close()
    path = lab.root / "data" / "registry.db"
    damage(path)
    damaged = path.read_bytes()
    lab.open()
    assert lab.registry.rebuilt
    assert sorted(_facts(row) for row in lab.registry.adapters()) == before
    assert {row.id for row in lab.registry.adapters()} == set(ids)
    (aside,) = path.parent.glob("registry.db.damaged-*")
    assert aside.read_bytes() == damaged
    _reopen(lab)
    assert not lab.registry.rebuilt


def test_a_flipped_bit_anywhere_in_the_index_loses_no_adapter(lab: Lab) -> None:
    ids = {_admit(lab, f"n{seed}", seed) for seed in range(3)}
    lab.registry.close()
    path, rebuilt = lab.root / "data" / "registry.db", 0
    healthy = path.read_bytes()
    for position in range(50, len(healthy), len(healthy) // 24):
        data = bytearray(healthy)
        data[position] ^= 0x40
        path.write_bytes(data)
        lab.open()
        rebuilt += bool(lab.registry.rebuilt)
        assert {row.id for row in lab.registry.adapters(state=ADMITTED)} == ids
        lab.registry.close()
    assert rebuilt
    lab.open()


def test_a_flipped_bit_in_the_log_loses_no_adapter(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), "told"], check=False, cwd=ROOT)
    assert ended.returncode == 9
    data = tmp_path / "data"
    table, log = (data / "registry.db").read_bytes(), (data / "registry.db.wal").read_bytes()
    for position in range(20, len(log), len(log) // 8):
        flipped = bytearray(log)
        flipped[position] ^= 0x10
        (data / "registry.db").write_bytes(table)
        (data / "registry.db.wal").write_bytes(flipped)
        lab = Lab(tmp_path)
        assert [row.state for row in lab.registry.adapters()] == [ADMITTED]
        lab.registry.close()


def test_a_lost_index_is_made_again(lab: Lab) -> None:
    id = _admit(lab)
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.open()
    assert lab.registry.adapter(id).state == ADMITTED


def test_a_clock_that_stands_too_early_throws_nothing_out(lab: Lab) -> None:
    id = _admit(lab)
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.now_ms = 0
    lab.open()
    assert lab.registry.adapter(id).state == ADMITTED


def test_a_quarantined_adapter_stays_apart_in_a_new_index(lab: Lab) -> None:
    folder = lab.folder()
    base = BaseRef(fingerprint=bytes(32), hint="", architecture="")
    id = lab.admit(folder, lab.claim(folder, base=base)).id
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    lab.open()
    assert lab.registry.adapter(id).state == QUARANTINED


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_adapter_whose_file_was_lost_is_put_back_into_quarantine(lab: Lab, name: str, damage: str) -> None:
    bad, good = _admit(lab, "bad", 0), _admit(lab, "good", 1)
    blob = lab.registry.files(bad)[name]
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    data = blob.read_bytes()
    blob.unlink()
    if damage == "cut":
        blob.write_bytes(data[:-1])
    lab.open()
    row = lab.registry.adapter(bad)
    assert row.state == QUARANTINED
    assert "a file of it is" in row.reason
    assert lab.registry.adapter(good).state == (QUARANTINED if name == CONFIG else ADMITTED)  # both have that config


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_what_no_verdict_was_given_on_is_judged_in_full(lab: Lab, damage: str) -> None:
    bad, good = _admit(lab, "bad", 0), _admit(lab, "good", 1)
    blob = lab.registry.files(bad)[WEIGHTS]
    lab.registry.close()
    (lab.root / "data" / "registry.db").unlink()
    (lab.root / "data" / "journal.log").unlink()
    data = blob.read_bytes()
    blob.unlink()
    if damage == "flip":
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    lab.open()
    assert [row.id for row in lab.registry.adapters()] == [good]
    assert list((lab.root / "data" / "manifests").glob("*/.damaged-*"))
    assert any("damaged" in notice for notice in lab.registry.notices)


def test_a_damaged_manifest_and_other_files_are_no_hindrance(lab: Lab) -> None:
    id = _admit(lab)
    manifests, envelope = lab.root / "data" / "manifests", lab.registry.manifest(id).envelope
    (manifests / ("ab" * 32)).write_bytes(b"no manifest")
    (manifests / ("cd" * 32)).write_bytes(envelope)
    (manifests / "notes.txt").write_text("mine")
    (manifests / ".DS_Store").write_bytes(b"")
    _reopen(lab)
    assert [row.id for row in lab.registry.adapters()] == [id]
    assert sorted(path.name[:14] for path in manifests.glob("*/.damaged-*")) == [".damaged-ababa", ".damaged-cdcdc"]


def test_manifests_of_an_older_orchd_are_found_where_they_lay(lab: Lab) -> None:
    id = _admit(lab)
    path = lab.registry.manifests.path(lab.registry.manifest(id).digest)
    lab.registry.close()
    path.rename(path.parent.parent / path.name)
    lab.open()
    assert lab.registry.manifest(id).id == id
    assert path.exists()


def test_a_busy_or_newer_index_is_never_set_aside(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    id = _admit(lab)
    lab.registry.close()
    for error in (HomeBusy, IndexTooNew):

        def refuse(*_: object, e: type[OrchdError] = error) -> None:
            raise e("block lock newer")

        with monkeypatch.context() as patch:
            patch.setattr(restore, "Index", refuse)
            with pytest.raises(error):
                lab.open()
    lab.open()
    assert lab.registry.adapter(id)
    assert not list((lab.root / "data").glob("*damaged*"))


# ---- announcements -------------------------------------------------------------------------------------------


def _announcement(digest: bytes, seq: int, *topics: str, created_ms: int = 1) -> Verified[Announcement]:
    record = Announcement(
        manifest=digest, topics=topics, size=1, created_ms=created_ms, base=bytes(32), author=ALICE.public_key, seq=seq
    )
    return sign(record, ALICE)


def test_a_copied_home_gives_no_number_twice(lab: Lab) -> None:
    """A home that was put back from a copy does not know what was announced after the copy was made."""
    assert lab.registry.next_seq() == lab.now_ms
    lab.registry.record_announcement(_announcement(bytes(32), lab.now_ms + 5, "words"), "peer-1")
    assert lab.registry.next_seq() == lab.now_ms + 6, "the clock was set back"
    lab.now_ms += 1000
    assert lab.registry.next_seq() == lab.now_ms


def test_announcements_are_remembered_once_and_by_topic(lab: Lab) -> None:
    id = _admit(lab)
    here = _announcement(lab.registry.manifest(id).digest, 1, "words", "demo", created_ms=2)
    away = _announcement(bytes(32), 2, "words", created_ms=1)
    assert lab.registry.record_announcement(here, "peer-1")
    assert not lab.registry.record_announcement(here, "peer-2")
    assert lab.registry.record_announcement(away, "peer-2")
    assert [(row.here, row.peer) for row in lab.registry.announcements("words")] == [
        (True, "peer-1"),
        (False, "peer-2"),
    ]
    assert [row.adapter for row in lab.registry.announcements("demo")] == [id]
    assert lab.registry.announcements("other") == []
    assert lab.registry.adapter(id).topics == ("demo", "words")
    assert [row.id for row in lab.registry.adapters(topic="demo")] == [id]
    told = {known.envelope for known in lab.registry.news.after(["words"], 0, "", 10)}
    assert told == {here.envelope, away.envelope}


def test_announcements_can_be_read_on_from_a_point(lab: Lab) -> None:
    sent = []
    for seq in range(5):
        lab.now_ms += seq % 2  # some come in the same millisecond
        announcement = _announcement(bytes([seq]) * 32, seq, "a" if seq % 2 else "b", "all")
        lab.registry.record_announcement(announcement, "peer")
        sent.append(announcement.envelope)
    point, got = (0, ""), list[bytes]()
    while page := lab.registry.news.after(["all"], *point, 2):
        got += [envelope for _, _, envelope in page]
        point = page[-1][:2]
    assert sorted(got) == sorted(sent)
    assert len(lab.registry.news.after(["a", "nowhere"], 0, "", 10)) == 2


def test_peers_may_ask_only_for_what_is_admitted_and_announced(lab: Lab) -> None:
    id = _admit(lab)
    assert lab.registry.shared_manifest(id) is None
    lab.registry.record_announcement(_announcement(lab.registry.manifest(id).digest, 1, "words"), "me")
    assert lab.registry.shared_manifest(id) == lab.registry.manifest(id).envelope
    folder = lab.folder("strange", tensors=lora_tensors(2))
    base = BaseRef(fingerprint=bytes(32), hint="", architecture="")
    apart = lab.admit(folder, lab.claim(folder, base=base)).id
    lab.registry.record_announcement(_announcement(lab.registry.manifest(apart).digest, 2, "words"), "me")
    assert lab.registry.shared_manifest(apart) is None


# ---- bases, and what a manifest says about a folder ----------------------------------------------------------


def test_a_base_is_found_by_name_or_fingerprint(lab: Lab) -> None:
    assert lab.registry.base("tiny") == lab.registry.base(lab.base.fingerprint)
    assert lab.registry.bases() == [lab.base]
    with pytest.raises(BaseUnknown):
        lab.registry.base("huge")


def test_the_file_list_is_what_is_on_disk(lab: Lab) -> None:
    folder = lab.folder()
    (folder / "notes.txt").write_text("not part of it")
    (folder / "README.md").write_text("")
    entries = file_entries(folder)
    assert [entry.path for entry in entries] == ["README.md", CONFIG, WEIGHTS]
    assert [entry.size for entry in entries] == [(folder / entry.path).stat().st_size for entry in entries]
    assert entries[0].chunks == ()
