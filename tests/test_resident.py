"""Code that only the start needed is given back, and works when it is needed again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchd.resident import Mapping, mappings

ENTRY = """\
7f00-8f00 r-xp 00001000 fe:00 260386   /usr/lib/with space/libduck.so.1
Size:                 24 kB
Rss:                  20 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
"""
#: DuckDB is loaded, its code let go of, and asked again. Numbers are bytes: resident before and after, given back.
PROBE = """\
import duckdb
from orchd.resident import MAPS, give_back, mappings

def resident():
    return sum(one.resident for one in mappings(MAPS.read_text()) if "_duckdb" in one.file)

duckdb.sql("SELECT 1").fetchall()
before = resident()
given = give_back()
after = resident()
print(before, after, given, *duckdb.sql("SELECT sum(range) FROM range(5)").fetchall()[0])
"""


def test_a_mapping_is_read_as_the_kernel_writes_it() -> None:
    (found,) = mappings(ENTRY)
    assert found == Mapping(0x7F00, 0x8F00, "r-xp", "/usr/lib/with space/libduck.so.1", 20 << 10, 0)
    assert found.is_code


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("r-xp", "rw-p"),
        ("Anonymous:             0", "Anonymous:             4"),
        ("Swap:                  0", "Swap:                  4"),
        ("/usr/lib/with space/libduck.so.1", "/tmp/weights.bin"),
        ("/usr/lib/with space/libduck.so.1", ""),
    ],
    ids=["written", "changed", "swapped out", "data", "no file"],
)
def test_what_would_be_lost_is_kept(was: str, becomes: str) -> None:
    assert not any(one.is_code for one in mappings(ENTRY.replace(was, becomes)))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says so on Linux alone")
def test_code_goes_and_comes_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, after, given, total = map(int, done.stdout.split())
    assert after < before / 4
    assert given >= before - after
    assert total == 10
