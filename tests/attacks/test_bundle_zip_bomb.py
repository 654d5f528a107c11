"""A bundle of some kilobytes that unpacks to a gigabyte: by deflate, by overlapping members, or by a size that lies."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchd.errors import BundleRefused
from orchd.registry.exchange import take_in
from tests.helpers import Lab

NAME = "blobs/" + "00" * 32


def _deflated() -> bytes:
    """One member, 256 MB of zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open(NAME, "w", force_zip64=True) as member:
        for _ in range(256):
            member.write(bytes(1 << 20))
    return out.getvalue()


def _overlapping() -> bytes:
    """A hundred entries of the directory that all name one member (as in D. Fifield's bomb of 2019)."""
    content = bytes(1 << 16)
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 10, 0, 0, 0, 0x21, zlib.crc32(content), 1 << 16, 1 << 16, 70, 0)
    body = local + NAME.encode() + content
    fields = (10, 10, 0, 0, 0, 0x21, zlib.crc32(content), 1 << 16, 1 << 16, 70, 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *fields)
    directory = b"".join(entry + f"blobs/{number:064x}".encode() for number in range(100))
    return body + directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 100, 100, len(directory), len(body), 0)


def _lying() -> bytes:
    """Stored members that say they are 4 GB long, in a file of a few hundred bytes."""
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 10, 0, 0, 0, 0x21, 0, 0xFFFF_FFF0, 0xFFFF_FFF0, 70, 0)
    body = local + NAME.encode()
    fields = (10, 10, 0, 0, 0, 0x21, 0, 0xFFFF_FFF0, 0xFFFF_FFF0, 70, 0, 0, 0, 0, 0, 0)
    directory = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *fields) + NAME.encode()
    return body + directory + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(directory), len(body), 0)


@pytest.mark.parametrize("bomb", [_deflated, _overlapping, _lying])
def test_nothing_of_it_is_unpacked(lab: Lab, tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    path = tmp_path / "bomb.orchpack"
    path.write_bytes(bomb())
    assert path.stat().st_size < 400_000
    before = lab.traces()
    tracemalloc.start()
    with pytest.raises(BundleRefused):
        take_in(lab.registry, path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert lab.traces() == before
