"""Bundles: adapters in one file, to carry by hand. An `.orchpack` is a ZIP of one form; docs/SPEC-orchpack.md has it.

Members are stored, never compressed, with fixed headers and in a fixed order, so that what a bundle holds determines
its bytes. A reader computes what the headers must be and compares: sizes that lie, overlaps, hidden, doubled or renamed
members, links, encryption and compression (and with it every zip bomb) all fail one comparison, before anything is
written. Members are named by their SHA-256; no name of a bundle ever becomes a path.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from orchd.errors import BundleRefused, DigestMismatch, OutputExists, OutputRefused
from orchd.identity import author_text
from orchd.paths import sync
from orchd.records import Attestation, KeyRotation, Manifest, Record, Revocation, Verified, verify_any
from orchd.records.envelope import LARGEST
from orchd.registry.blobs import full_disk_told

SUFFIX = ".orchpack"
MANIFESTS, RECORDS, BLOBS = "manifests", "records", "blobs"
FOLDERS = (MANIFESTS, RECORDS, BLOBS)  # in this order
MAX_SIZE = 0xFFFF_FFFE  # bytes: what a ZIP without 64-bit fields can say
MAX_MEMBERS = 10_000
MAX_RECORDS_SIZE = 64 << 20  # bytes of manifests and records together
MEMBER_NAME = re.compile(rb"\A(manifests|records|blobs)/([0-9a-f]{64})\Z")
COPY_SIZE = 1 << 20  # bytes read at a time

_LOCAL, _CENTRAL, _END = struct.Struct("<IHHHHHIIIHH"), struct.Struct("<IHHHHHHIIIHHHHHII"), struct.Struct("<IHHHHIIH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = 0x0403_4B50, 0x0201_4B50, 0x0605_4B50
_VERSION, _DATE = 10, 0x21  # stored members; 1 January 1980, when ZIP's time begins


class Member(NamedTuple):
    """One file of a bundle: `start` is where its bytes begin, `crc` what the headers say."""

    folder: str
    digest: bytes
    start: int
    size: int
    crc: int

    @property
    def name(self) -> bytes:
        return f"{self.folder}/{self.digest.hex()}".encode()


@dataclass(frozen=True)
class Bundle:
    """A bundle whose layout and records have been checked; its blobs are checked while they are copied out.

    `adapters` are the manifests that came with all their files, `ancestors` those that came without.
    """

    adapters: tuple[Verified[Manifest], ...]
    ancestors: tuple[Verified[Manifest], ...]
    records: tuple[Verified[Record], ...]
    blobs: Mapping[bytes, Member]
    file: BinaryIO

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(member.size for member in self.blobs.values())

    def copy_blob(self, digest: bytes, target: Path) -> None:
        """Write a blob's bytes to `target`. Raises `DigestMismatch`."""
        member, whole, crc = self.blobs[digest], hashlib.sha256(), 0
        with full_disk_told(target.parent), target.open("xb") as out:
            for block in _blocks(self.file, member.start, member.size):
                whole.update(block)
                crc = zlib.crc32(block, crc)
                out.write(block)
        if whole.digest() != digest or crc != member.crc:
            raise DigestMismatch(f"the blob {digest.hex()} of the bundle is not what its name says")


# ---- reading ---------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """The bundle in `path`, read strictly. Raises `BundleRefused`, or what a record in it is refused for."""
    try:
        if not path.is_file():  # to open a pipe would wait
            raise BundleRefused(f"{path} is no file")
        file = path.open("rb")
    except OSError as error:
        raise BundleRefused(f"{path} can't be read: {error.strerror}") from None
    with file:
        try:
            found = _bundle(file)
        except OSError as error:
            raise BundleRefused(f"{path} can't be read: {error.strerror}") from None
        yield found


def _bundle(file: BinaryIO) -> Bundle:
    members = read_layout(file)
    if sum(member.size for member in members if member.folder != BLOBS) > MAX_RECORDS_SIZE:
        raise BundleRefused(f"its records are more than {MAX_RECORDS_SIZE} bytes")
    manifests: list[Verified[Manifest]] = []
    records: list[Verified[Record]] = []
    for member in members:
        if member.folder == BLOBS:
            continue
        record = _record(file, member)
        manifest = record.of(Manifest)
        if (manifest is None) == (member.folder == MANIFESTS):
            raise BundleRefused(f"a {type(record.record).__name__.lower()} lies among its {member.folder}")
        if manifest is not None:
            manifests.append(manifest)
        else:
            records.append(record)
    blobs = {member.digest: member for member in members if member.folder == BLOBS}
    whole = tuple(manifest for manifest in manifests if _is_whole(manifest.record, blobs))
    bundle = Bundle(whole, tuple(m for m in manifests if m not in whole), tuple(records), blobs, file)
    _check_nothing_strange(bundle)
    return bundle


def _record(file: BinaryIO, member: Member) -> Verified[Record]:
    if member.size > LARGEST:
        raise BundleRefused(f"the record {member.digest.hex()} is {member.size} bytes")
    data = b"".join(_blocks(file, member.start, member.size))
    if zlib.crc32(data) != member.crc:
        raise BundleRefused(f"the checksum of the record {member.digest.hex()} does not fit")
    record = verify_any(data)
    if record.digest != member.digest:
        raise BundleRefused(f"the record {record.digest.hex()} is called {member.digest.hex()}")
    return record


def _is_whole(manifest: Manifest, blobs: Mapping[bytes, Member]) -> bool:
    return bool(manifest.files) and all(entry.sha256 in blobs for entry in manifest.files)


def _check_nothing_strange(bundle: Bundle) -> None:
    """Everything is there for an adapter's sake: its files, its ancestors, and what is known about these."""
    if not bundle.adapters:
        raise BundleRefused("no adapter in it has all its files")
    sizes = {entry.sha256: entry.size for adapter in bundle.adapters for entry in adapter.record.files}
    for digest, member in bundle.blobs.items():
        if sizes.get(digest) != member.size:
            raise BundleRefused(f"nobody asked for the blob {digest.hex()} of {member.size} bytes")
    wanted = ancestry([*bundle.adapters, *bundle.ancestors], [adapter.digest for adapter in bundle.adapters])
    for ancestor in bundle.ancestors:
        if ancestor.digest not in wanted:
            raise BundleRefused(f"{ancestor.id} is no ancestor of an adapter in it")
    about = {manifest.digest for manifest in (*bundle.adapters, *bundle.ancestors)}
    people = {manifest.author for manifest in (*bundle.adapters, *bundle.ancestors)}
    people = persons(people | {record.author for record in bundle.records if _is_about(record, about)}, bundle.records)
    for record in bundle.records:
        if not (_is_about(record, about) or (record.of(KeyRotation) and record.author in people)):
            raise BundleRefused(f"{record.id} is about nothing in it")


def _is_about(record: Verified[Record], manifests: set[bytes]) -> bool:
    said = record.record
    return isinstance(said, Revocation | Attestation) and said.manifest in manifests


def parents(manifest: Manifest) -> set[bytes]:
    """Whom an adapter names as what it was made from: leaves, and what training or a round went on from."""
    training, lineage = manifest.training, manifest.lineage
    found = [training.initial, training.relative_to] if training else []
    found += [lineage.previous, *(leaf.id for leaf in lineage.leaves)] if lineage else []
    return {digest for digest in found if digest is not None}


def ancestry(manifests: Sequence[Verified[Manifest]], start: Iterable[bytes]) -> set[bytes]:
    """The digests of `start` and of everything that they were made from, as far as `manifests` tell."""
    by_digest = {manifest.digest: manifest for manifest in manifests}
    seen, waiting = set[bytes](), list(start)
    while waiting:
        digest = waiting.pop()
        if digest not in seen:
            seen.add(digest)
            if digest in by_digest:
                waiting.extend(parents(by_digest[digest].record))
    return seen


def persons(keys: Iterable[str], records: Iterable[Verified[Record]]) -> set[str]:
    """These keys and all that they were rotated from or to."""
    known, before = set(keys), -1
    rotations = [rotation.record for record in records if (rotation := record.of(KeyRotation))]
    pairs = [{author_text(rotation.old), author_text(rotation.new)} for rotation in rotations]
    while len(known) != before:
        before = len(known)
        for pair in pairs:
            if known & pair:
                known |= pair
    return known


# ---- the ZIP ---------------------------------------------------------------------------------------------------


def read_layout(file: BinaryIO) -> list[Member]:
    """The members, if every byte around them is as `write` would have written it. Raises `BundleRefused`."""
    size = file.seek(0, os.SEEK_END)
    if not _END.size <= size <= MAX_SIZE:
        raise BundleRefused(f"a file of {size} bytes is no bundle")
    count, length, offset = _read_end(file, size)
    directory = b"".join(_blocks(file, offset, length))
    members, position, at = list[Member](), 0, 0
    for _ in range(count):
        member = _read_entry(directory, at, position)
        at += _CENTRAL.size + len(member.name)
        header = _local(member)
        if b"".join(_blocks(file, position, len(header))) != header:
            raise BundleRefused(f"the header of {member.name.decode()} is not as it should be")
        if members and _order(member) <= _order(members[-1]):
            raise BundleRefused(f"{member.name.decode()} is in the wrong place")
        position = member.start + member.size
        members.append(member)
    if at != length or position != offset:
        raise BundleRefused("bytes lie between its members")
    return members


def _read_end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of members, length of the directory, and where it begins."""
    end = b"".join(_blocks(file, size - _END.size, _END.size))
    magic, _, _, _, count, length, offset, _ = _END.unpack(end)
    if magic != _END_MAGIC or end != _end(count, length, offset) or offset + length + _END.size != size:
        raise BundleRefused("it does not end as a bundle does")
    if not 1 <= count <= MAX_MEMBERS or length > count * (_CENTRAL.size + 80):
        raise BundleRefused(f"{count} members in a directory of {length} bytes")
    return count, length, offset


def _read_entry(directory: bytes, at: int, position: int) -> Member:
    """The member whose entry stands at `at`, and whose header must stand at `position` of the file."""
    try:
        fields = _CENTRAL.unpack_from(directory, at)
    except struct.error:
        raise BundleRefused("its directory is too short") from None
    crc, size, name_length = fields[7], fields[9], fields[10]
    name = directory[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
    match = MEMBER_NAME.match(name)
    if match is None:
        raise BundleRefused(f"a member is called {name[:80]!r}")
    start = position + _LOCAL.size + len(name)
    member = Member(match[1].decode(), bytes.fromhex(match[2].decode()), start, size, crc)
    if not directory.startswith(_central(member), at):
        raise BundleRefused(f"the entry of {name.decode()} is not as it should be")
    return member


def _order(member: Member) -> tuple[int, bytes]:
    return FOLDERS.index(member.folder), member.digest


def _blocks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """`size` bytes from `start`. Raises `BundleRefused` when the file ends before."""
    file.seek(start)
    while size:
        block = file.read(min(size, COPY_SIZE))
        if not block:
            raise BundleRefused("it ends too early")
        size -= len(block)
        yield block


def _local(member: Member) -> bytes:
    name = member.name
    crc, size = member.crc, member.size
    return _LOCAL.pack(_LOCAL_MAGIC, _VERSION, 0, 0, 0, _DATE, crc, size, size, len(name), 0) + name


def _central(member: Member) -> bytes:
    name = member.name
    at = member.start - _LOCAL.size - len(name)
    fields = (_VERSION, _VERSION, 0, 0, 0, _DATE, member.crc, member.size, member.size, len(name), 0, 0, 0, 0, 0, at)
    return _CENTRAL.pack(_CENTRAL_MAGIC, *fields) + name


def _end(count: int, length: int, offset: int) -> bytes:
    return _END.pack(_END_MAGIC, 0, 0, count, count, length, offset, 0)


# ---- writing ---------------------------------------------------------------------------------------------------


def write(
    path: Path,
    records: Iterable[Verified[Record]],
    blobs: Mapping[bytes, Path],
    *,
    replace: bool = False,
) -> int:
    """Write a bundle of these records and blobs; its size in bytes. There is the whole file or none.

    Raises `OutputExists`, `OutputRefused`, `DigestMismatch` for a blob that has rotted, `BundleRefused` for more than
    a bundle can hold.
    """
    _check_target(path, replace=replace)
    distinct = {record.digest: record for record in records}.values()
    sources: list[tuple[str, bytes, bytes | Path]] = [
        (MANIFESTS if record.of(Manifest) else RECORDS, record.digest, record.envelope) for record in distinct
    ]
    sources += [(BLOBS, digest, source) for digest, source in blobs.items()]
    sources.sort(key=lambda source: (FOLDERS.index(source[0]), source[1]))
    with full_disk_told(path.parent):
        descriptor, temporary = _beside(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                size = _write_all(file, sources)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync(path.parent)
    return size


def _check_target(path: Path, *, replace: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputRefused(f"{path} can't be written: {error.strerror}", field="path") from None
    if not replace:
        raise OutputExists(f"{path} is there already", field="path")
    if not stat.S_ISREG(mode):
        raise OutputRefused(f"{path} is no file that could be replaced", field="path")


def _beside(path: Path) -> tuple[int, str]:
    """A new file in the folder of `path`."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=".orchpack-")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputRefused(f"{path.parent} takes no file: {error.strerror}", field="path") from None


def _write_all(file: BinaryIO, sources: Sequence[tuple[str, bytes, bytes | Path]]) -> int:
    if len(sources) > MAX_MEMBERS:
        raise BundleRefused(f"{len(sources)} members; a bundle holds {MAX_MEMBERS}")
    members, position = list[Member](), 0
    for folder, digest, source in sources:
        member = _write_one(file, Member(folder, digest, position, 0, 0), source)
        position = member.start + member.size
        members.append(member)
    directory = b"".join(map(_central, members))
    end = _end(len(members), len(directory), position) if position + len(directory) <= MAX_SIZE else b""
    if not end or position + len(directory) + len(end) > MAX_SIZE:
        raise BundleRefused(f"the files are {position} bytes; a bundle holds {MAX_SIZE}")
    file.write(directory + end)
    return position + len(directory) + len(end)


def _write_one(file: BinaryIO, member: Member, source: bytes | Path) -> Member:
    """`member.start` is where its header begins; the member as it was written comes back."""
    start = member.start + _LOCAL.size + len(member.name)
    file.write(bytes(start - member.start))
    size, crc, whole = 0, 0, hashlib.sha256()
    for block in _source_blocks(source):
        if start + size + len(block) > MAX_SIZE:
            raise BundleRefused(f"the files are more than the {MAX_SIZE} bytes that a bundle holds")
        size += len(block)
        crc = zlib.crc32(block, crc)
        whole.update(block)
        file.write(block)
    if isinstance(source, Path) and whole.digest() != member.digest:
        raise DigestMismatch(f"the blob {member.digest.hex()} has rotted", hint="Run `orchctl registry scrub`.")
    written = member._replace(start=start, size=size, crc=crc)
    file.seek(member.start)
    file.write(_local(written))
    file.seek(start + size)
    return written


def _source_blocks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(COPY_SIZE):
            yield block
