"""Is there one sequence of bytes for a bundle, and is everything else refused before anything is written?"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchd.errors import BundleRefused, DigestMismatch, OrchdError, OutputExists, OutputRefused
from orchd.identity import Identity
from orchd.records import Attestation, FileEntry, KeyRotation, Record, Revocation, Training, Verified, sign
from orchd.registry import bundle
from orchd.registry.bundle import Member, opened, read_layout, write
from tests.helpers import ALICE, BOB, MALLORY, NOW_MS, manifest, plain

CONTENTS = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 30}
fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _entries(contents: dict[str, bytes]) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(path=path, size=len(data), sha256=_sha(data), chunk_size=65_536, chunks=(_sha(data),))
        for path, data in contents.items()
    )


ANCESTOR = sign(manifest(name="before", author=BOB.public_key), BOB)
TRAINING = Training(**(plain(manifest())["training"] | {"initial": ANCESTOR.digest}))
ADAPTER = sign(manifest(files=_entries(CONTENTS), training=TRAINING), ALICE)
REVOCATION = sign(
    Revocation(manifest=ANCESTOR.digest, reason="bad data", created_ms=NOW_MS, author=BOB.public_key), BOB
)
ATTESTATION = sign(
    Attestation(
        manifest=ADAPTER.digest,
        evaluator=MALLORY.public_key,
        metric="loss",
        value=1,
        base_value=2,
        examples=3,
        interval=1,
        created_ms=NOW_MS,
    ),
    MALLORY,
)
ROTATION = sign(KeyRotation(old=MALLORY.public_key, new=ALICE.public_key, created_ms=NOW_MS), MALLORY, ALICE)
RECORDS: list[Verified[Any]] = [ADAPTER, ANCESTOR, REVOCATION, ATTESTATION, ROTATION]


@pytest.fixture
def blobs(tmp_path: Path) -> dict[bytes, Path]:
    return _blobs(tmp_path, CONTENTS)


def _blobs(folder: Path, contents: dict[str, bytes]) -> dict[bytes, Path]:
    found = {}
    for data in contents.values():
        found[_sha(data)] = folder / _sha(data).hex()
        found[_sha(data)].write_bytes(data)
    return found


@pytest.fixture
def pack(tmp_path: Path, blobs: dict[bytes, Path]) -> Path:
    path = tmp_path / "a.orchpack"
    assert write(path, RECORDS, blobs) == path.stat().st_size
    return path


def _refused(path: Path, match: str = ".") -> None:
    with pytest.raises(BundleRefused, match=match), opened(path):
        pass


# ---- honest bundles ------------------------------------------------------------------------------------------


def test_a_bundle_comes_back_whole(pack: Path, tmp_path: Path) -> None:
    with opened(pack) as found:
        assert found.adapters == (ADAPTER,)
        assert found.ancestors == (ANCESTOR,)
        assert {record.id for record in found.records} == {REVOCATION.id, ATTESTATION.id, ROTATION.id}
        assert found.size == sum(map(len, CONTENTS.values()))
        for number, data in enumerate(CONTENTS.values()):
            found.copy_blob(_sha(data), tmp_path / str(number))
            assert (tmp_path / str(number)).read_bytes() == data


def test_the_same_content_gives_the_same_bytes(pack: Path, tmp_path: Path, blobs: dict[bytes, Path]) -> None:
    other = tmp_path / "b.orchpack"
    write(other, [*reversed(RECORDS), ADAPTER], dict(reversed(blobs.items())))
    assert other.read_bytes() == pack.read_bytes()


def test_every_program_that_reads_zip_reads_it(pack: Path) -> None:
    with zipfile.ZipFile(pack) as found:
        assert found.testzip() is None
        names = found.namelist()
        assert names[0].startswith("manifests/")
        assert found.read(f"manifests/{ADAPTER.digest.hex()}") == ADAPTER.envelope
        assert all(info.compress_type == zipfile.ZIP_STORED for info in found.infolist())
    assert subprocess.run(["python3", "-m", "zipfile", "-t", str(pack)], check=False).returncode == 0


def test_a_file_is_replaced_only_when_asked(pack: Path, blobs: dict[bytes, Path]) -> None:
    before = pack.read_bytes()
    with pytest.raises(OutputExists):
        write(pack, [ADAPTER], blobs)
    assert pack.read_bytes() == before
    write(pack, [ADAPTER], blobs, replace=True)
    with opened(pack) as found:
        assert found.ancestors == ()


def test_only_a_file_is_replaced(tmp_path: Path, blobs: dict[bytes, Path]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "no folder" / "a", Path("/proc/a.orchpack")):
        with pytest.raises(OutputRefused):
            write(place, RECORDS, blobs, replace=True)
    assert (tmp_path / "pipe").is_fifo()


def test_what_can_not_be_read_is_no_bundle() -> None:
    with pytest.raises(BundleRefused, match="can't be read"), opened(Path("/proc/self/mem")):
        pass


def test_a_rotten_blob_is_not_written_out(tmp_path: Path, blobs: dict[bytes, Path]) -> None:
    next(iter(blobs.values())).write_bytes(b"rot")
    with pytest.raises(DigestMismatch, match="rotted"):
        write(tmp_path / "a.orchpack", RECORDS, blobs)
    assert [path.name for path in tmp_path.iterdir() if path not in blobs.values()] == []


def test_what_a_bundle_can_not_hold_is_said(
    tmp_path: Path, blobs: dict[bytes, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("MAX_SIZE", 5_000), ("MAX_MEMBERS", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, name, most)
            with pytest.raises(BundleRefused, match="holds"):
                write(tmp_path / "a.orchpack", RECORDS, blobs)
            assert not (tmp_path / "a.orchpack").exists()


# ---- every byte counts ---------------------------------------------------------------------------------------


def _read_all(path: Path, into: Path) -> None:
    with opened(path) as found:
        for digest in found.blobs:
            target = into / "out"
            target.unlink(missing_ok=True)
            found.copy_blob(digest, target)


def test_every_changed_byte_is_seen(pack: Path, tmp_path: Path) -> None:
    honest = pack.read_bytes()
    changed = tmp_path / "changed"
    for position in [*range(0, len(honest), 7), *range(len(honest) - 400, len(honest))]:
        data = bytearray(honest)
        data[position] ^= 1 << position % 8
        changed.write_bytes(data)
        with pytest.raises(OrchdError):
            _read_all(changed, tmp_path)


def test_every_cut_and_addition_is_seen(pack: Path, tmp_path: Path) -> None:
    honest = pack.read_bytes()
    changed = tmp_path / "changed"
    for data in (
        honest + b"\0",
        b"\0" + honest,
        honest * 2,
        b"",
        honest[:21],
        b"PK",
        *(honest[:-n] for n in (1, 22, 90)),
    ):
        changed.write_bytes(data)
        _refused(changed)


@fuzz
@given(st.data())
def test_a_bundle_with_a_piece_replaced_is_refused(pack: Path, tmp_path: Path, data: st.DataObject) -> None:
    honest = pack.read_bytes()
    start = data.draw(st.integers(0, len(honest)))
    length = data.draw(st.integers(0, 60))
    replaced = honest[:start] + data.draw(st.binary(max_size=60)) + honest[start + length :]
    (tmp_path / "changed").write_bytes(replaced)
    if replaced != honest:
        with pytest.raises(OrchdError):
            _read_all(tmp_path / "changed", tmp_path)


@fuzz
@given(st.binary(max_size=400))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    for attempt in (data, b"PK\x03\x04" + data, data + bundle._end(1, 80, max(0, len(data) - 80))):
        (tmp_path / "changed").write_bytes(attempt)
        _refused(tmp_path / "changed")


# ---- well formed, and yet not honest -------------------------------------------------------------------------


def _forged(members: list[tuple[str, bytes, bytes]], change: Callable[[list[Member]], None] | None = None) -> bytes:
    """A ZIP with these members (folder, digest, content) in this order, with right headers unless changed."""
    out, found = b"", []
    for folder, digest, content in members:
        start = len(out) + bundle._LOCAL.size + len(folder) + 65
        member = Member(folder, digest, start, len(content), zlib.crc32(content))
        out += bundle._local(member) + content
        found.append(member)
    if change:
        change(found)
    directory = b"".join(map(bundle._central, found))
    return out + directory + bundle._end(len(found), len(directory), len(out))


def _honest() -> list[tuple[str, bytes, bytes]]:
    found: list[tuple[str, bytes, bytes]] = sorted(
        ("manifests", record.digest, record.envelope) for record in (ADAPTER, ANCESTOR)
    )
    found += sorted(("records", record.digest, record.envelope) for record in (REVOCATION, ATTESTATION, ROTATION))
    return found + sorted(("blobs", _sha(data), data) for data in CONTENTS.values())


def test_the_forger_of_these_tests_can_be_honest(tmp_path: Path, pack: Path) -> None:
    assert _forged(_honest()) == pack.read_bytes()


def _check_forged(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "forged").write_bytes(data)
    _refused(tmp_path / "forged", match)


def test_a_member_twice_or_out_of_order_is_refused(tmp_path: Path) -> None:
    honest = _honest()
    _check_forged(tmp_path, _forged([honest[0], *honest]), "wrong place")
    _check_forged(tmp_path, _forged([honest[1], honest[0], *honest[2:]]), "wrong place")
    _check_forged(tmp_path, _forged([*honest[-1:], *honest[:-1]]), "wrong place")


def test_a_directory_that_tells_another_story_is_refused(tmp_path: Path) -> None:
    def swap(members: list[Member]) -> None:
        members[0], members[1] = members[1], members[0]

    def hide(members: list[Member]) -> None:
        members.pop(2)

    def overlap(members: list[Member]) -> None:
        members[-1] = members[-2]

    def lie(members: list[Member]) -> None:
        members[-1] = members[-1]._replace(size=members[-1].size - 1)

    def grow(members: list[Member]) -> None:
        members[0] = members[0]._replace(size=1 << 31)

    for change in (swap, hide, overlap, lie, grow):
        _check_forged(tmp_path, _forged(_honest(), change), ".")


def test_bytes_that_belong_to_nothing_are_refused(tmp_path: Path, pack: Path) -> None:
    honest = pack.read_bytes()
    *_, length, offset, _ = bundle._END.unpack(honest[-22:])
    between = honest[:offset] + b"hidden" + honest[offset:-22] + bundle._end(7, length, offset + 6)
    _check_forged(tmp_path, between, "between")
    longer = honest[:-22] + b"hidden" + bundle._end(7, length + 6, offset)
    _check_forged(tmp_path, longer, "between")


def test_a_checksum_that_does_not_fit_is_refused(tmp_path: Path, pack: Path) -> None:
    """SHA-256 would do; but one content has one form."""
    honest = pack.read_bytes()
    with pack.open("rb") as file:
        members = read_layout(file)
    for number, error in ((0, BundleRefused), (len(members) - 1, DigestMismatch)):
        forged = [m._replace(crc=m.crc ^ 1) if n == number else m for n, m in enumerate(members)]
        content = [honest[m.start : m.start + m.size] for m in members]
        body = b"".join(bundle._local(m) + data for m, data in zip(forged, content, strict=True))
        directory = b"".join(map(bundle._central, forged))
        (tmp_path / "forged").write_bytes(body + directory + bundle._end(len(forged), len(directory), len(body)))
        with pytest.raises(error):
            _read_all(tmp_path / "forged", tmp_path)


def test_only_what_was_asked_for_is_taken(tmp_path: Path) -> None:
    honest = _honest()
    stray = ("blobs", _sha(b"stray"), b"stray")
    _check_forged(tmp_path, _forged(sorted([*honest[5:], stray], key=lambda m: m[1])), "no adapter")
    _check_forged(tmp_path, _forged([*honest[:5], *sorted([*honest[5:], stray])]), "nobody asked")
    stranger = sign(manifest(name="stranger", author=MALLORY.public_key), MALLORY)
    manifests = sorted([*honest[:2], ("manifests", stranger.digest, stranger.envelope)])
    _check_forged(tmp_path, _forged([*manifests, *honest[2:]]), "no ancestor")
    _check_forged(tmp_path, _forged(honest[:5]), "no adapter")
    _check_forged(tmp_path, _forged(honest[:-1]), "no adapter|nobody asked")


def _about(record: Verified[Record]) -> list[tuple[str, bytes, bytes]]:
    honest = _honest()
    return [*honest[:2], *sorted([*honest[2:5], ("records", record.digest, record.envelope)]), *honest[5:]]


def test_records_about_something_else_are_refused(tmp_path: Path) -> None:
    other = sign(Revocation(manifest=bytes(32), reason="", created_ms=1, author=ALICE.public_key), ALICE)
    _check_forged(tmp_path, _forged(_about(other)), "about nothing")
    first, second = (Identity.from_seed(bytes([number]) * 32) for number in (7, 8))
    rotation = sign(KeyRotation(old=first.public_key, new=second.public_key, created_ms=1), first, second)
    _check_forged(tmp_path, _forged(_about(rotation)), "about nothing")
    reached = sign(KeyRotation(old=first.public_key, new=ALICE.public_key, created_ms=1), first, ALICE)
    (tmp_path / "forged").write_bytes(_forged(_about(reached)))
    with opened(tmp_path / "forged") as found:
        assert len(found.records) == 4


def test_records_lie_where_they_belong_under_their_own_names(tmp_path: Path) -> None:
    honest = _honest()
    among = sorted([*honest[:2], ("manifests", REVOCATION.digest, REVOCATION.envelope)])
    _check_forged(tmp_path, _forged([*among, *honest[5:]]), "revocation lies among its manifests")
    renamed = [*honest[:2], ("records", bytes(32), REVOCATION.envelope), *honest[5:]]
    _check_forged(tmp_path, _forged(renamed), "is called")
    manifest_as_record = [honest[0], ("records", ANCESTOR.digest, ANCESTOR.envelope), *honest[5:]]
    if honest[0][1] != ADAPTER.digest:
        manifest_as_record[0] = honest[1]
    _check_forged(tmp_path, _forged(manifest_as_record), "manifest lies among its records")


def test_a_tampered_record_is_refused_with_the_records_number(tmp_path: Path) -> None:
    honest = _honest()
    spoilt = REVOCATION.envelope.replace(b"bad data", b"bad dada")
    (tmp_path / "forged").write_bytes(_forged([*honest[:2], ("records", REVOCATION.digest, spoilt), *honest[5:]]))
    with pytest.raises(OrchdError) as told, opened(tmp_path / "forged"):
        pass
    assert told.value.code == 2003


def test_a_huge_record_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _honest()
    huge = ("records", bytes(32), bytes((1 << 20) + 1))
    _check_forged(tmp_path, _forged([*honest[:2], huge, *honest[5:]]), "1048577 bytes")
    monkeypatch.setattr(bundle, "MAX_RECORDS_SIZE", 2_000)
    _check_forged(tmp_path, _forged(honest), "more than")


def test_a_blob_that_is_not_its_name_is_refused_when_it_is_read(tmp_path: Path) -> None:
    honest = _honest()
    folder, digest, content = honest[-1]
    (tmp_path / "forged").write_bytes(_forged([*honest[:-1], (folder, digest, bytes(len(content)))]))
    with pytest.raises(DigestMismatch):
        _read_all(tmp_path / "forged", tmp_path)


def test_a_blob_of_another_size_than_was_signed_is_refused(tmp_path: Path) -> None:
    honest = _honest()
    folder, digest, content = honest[-1]
    _check_forged(tmp_path, _forged([*honest[:-1], (folder, digest, content + b"x")]), "nobody asked")


# ---- ZIPs of other makers ------------------------------------------------------------------------------------


def _zipped(write_into: Callable[[zipfile.ZipFile], None]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        write_into(file)
    return out.getvalue()


def _info(name: str, **fields: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 0
    info.external_attr = 0
    info.create_version = info.extract_version = 10
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"compress_type": zipfile.ZIP_DEFLATED}, bytes(1 << 20)),
        ({"compress_type": zipfile.ZIP_BZIP2}, bytes(1 << 20)),
        ({"external_attr": 0o120777 << 16, "create_system": 3}, b"/etc/passwd"),
        ({"extra": b"\x01\x00\x08\x00" + bytes(8)}, b"x"),
        ({"comment": b"hello"}, b"x"),
        ({"date_time": (2026, 11, 21, 0, 0, 0)}, b"x"),
        ({"flag_bits": 1}, b"x"),
    ],
    ids=["bomb", "bzip2", "link", "zip64", "comment", "date", "encrypted"],
)
def test_what_another_zip_can_hold_is_refused(tmp_path: Path, fields: dict[str, Any], content: bytes) -> None:
    name = f"manifests/{_sha(content).hex()}"
    data = _zipped(lambda file: file.writestr(_info(name, **fields), content))
    _check_forged(tmp_path, data, "not as it should be|in a directory of")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "blobs/",
        "blobs/" + "0" * 63,
        "blobs/" + "A" * 64,
        "blobs/" + "0" * 64 + "/x",
        "other/" + "0" * 64,
        "blobs\\" + "0" * 64,
        "blobs/" + "0" * 64 + "\n",
        "x" * 60_000,
    ],
    ids=lambda name: name[:20],
)
def test_no_other_name_is_taken(tmp_path: Path, name: str) -> None:
    data = _zipped(lambda file: file.writestr(_info(name), b"x"))
    _check_forged(tmp_path, data, "called|directory")


def test_an_empty_zip_or_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_forged(tmp_path, _zipped(lambda file: None), "0 members")
    monkeypatch.setattr(bundle, "MAX_MEMBERS", 6)
    _check_forged(tmp_path, _forged(_honest()), "7 members")


def test_a_folder_or_a_pipe_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing"):
        _refused(path, "no file")


def test_headers_are_read_without_reading_the_blobs(pack: Path) -> None:
    with pack.open("rb") as file:
        assert [member.folder for member in read_layout(file)] == ["manifests"] * 2 + ["records"] * 3 + ["blobs"] * 2


def test_lineage_that_goes_in_circles_ends() -> None:
    assert bundle.ancestry([ADAPTER, ANCESTOR], [ADAPTER.digest]) == {ADAPTER.digest, ANCESTOR.digest}
    assert bundle.parents(manifest()) == set()
