"""The wheels that an environment is made of: what the index says of them, what is on the disk, what is missing."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlparse

import msgspec

from orchd.environment.teller import Teller

if TYPE_CHECKING:
    from orchd.environment.pip import Pip

TOGETHER_BYTES: Final = 20_000_000
"""pip is asked for so much at once: what it had of it is lost when it is killed."""

ASK_SECONDS: Final = 10
ASKED_AT_ONCE: Final = 8
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
FILE = re.compile(r"(?:Downloading|Processing|Using cached|Saved) (?:\S*/)?([^/\s]+\.whl)")


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """`size` in bytes, 0 where nobody said; `sha256` is empty where the index has none."""

    name: str
    version: str
    file: str
    url: str
    sha256: str
    size: int = 0

    @property
    def requirement(self) -> str:
        """The line that has pip fetch this very file."""
        digest = f" --hash=sha256:{self.sha256}" if self.sha256 else ""
        return f"{self.name}=={self.version}{digest}"


def wheel_of(item: dict[str, Any]) -> Wheel:
    """One item of pip's installation report (version 1)."""
    url: str = item["download_info"]["url"]
    return Wheel(
        name=item["metadata"]["name"],
        version=item["metadata"]["version"],
        file=unquote(urlparse(url).path).rpartition("/")[2],
        url=url,
        sha256=item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", ""),
    )


def sizes(wheels: Sequence[Wheel]) -> tuple[Wheel, ...]:
    """The same with the sizes that the index states, where it does."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = list(pool.map(_size, [one.url for one in wheels]))
    return tuple(msgspec.structs.replace(one, size=size) for one, size in zip(wheels, found, strict=True))


def _size(url: str) -> int:
    """Bytes behind an address; 0 where it does not say."""
    try:
        if url.startswith("file:"):
            return os.path.getsize(unquote(urlparse(url).path))
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ASK_SECONDS) as answer:
            return int(answer.headers.get("content-length") or 0)
    except (OSError, ValueError):
        return 0


def unpacked(files: Iterable[Path]) -> int:
    """Bytes that these wheels take when they are installed."""
    total = 0
    for file in files:
        with zipfile.ZipFile(file) as wheel:
            total += sum(member.file_size for member in wheel.infolist())
    return total


class Downloads:
    """A folder of wheels that is filled over as many tries as it takes."""

    def __init__(self, folder: Path, wheels: Sequence[Wheel]) -> None:
        self._folder = folder
        self.wheels = wheels
        self.total = sum(one.size for one in wheels)

    def file(self, wheel: Wheel) -> Path:
        return self._folder / wheel.file

    def missing(self) -> list[Wheel]:
        """What is not there whole: its digest is compared, and without one its size."""
        return [one for one in self.wheels if not self._is_whole(one)]

    def left(self) -> int:
        return sum(one.size for one in self.missing())

    def fetch(self, pip: Pip, words: Sequence[str], teller: Teller) -> None:
        """Have pip fetch what is missing, in parts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = self.missing()
        for part in _parts(missing):
            done = self.total - sum(one.size for one in missing)
            pip.download(part, self._folder, words, _Watch(self.wheels, done, self.total, teller))
            missing = [one for one in missing if one not in part]

    def _is_whole(self, wheel: Wheel) -> bool:
        file = self.file(wheel)
        if not file.is_file():
            return False
        if not wheel.sha256:
            return bool(wheel.size) and file.stat().st_size == wheel.size
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest() == wheel.sha256


class _Watch:
    """Reads what pip says while it downloads."""

    def __init__(self, wheels: Sequence[Wheel], done: int, total: int, teller: Teller) -> None:
        self._sizes = {one.file: one.size for one in wheels}
        self._names = {one.file: f"{one.name} {one.version}" for one in wheels}
        self._done = done
        self._total = total
        self._teller = teller
        self._file = ""

    def __call__(self, line: str) -> None:
        at = 0
        if found := FILE.search(line):
            file = unquote(found[1])
            if file not in self._sizes or file == self._file:
                return
            self._done += self._sizes.get(self._file, 0)
            self._file = file
        elif progress := PROGRESS.match(line):
            at = int(progress[1])
        else:
            return
        self._teller.phase("downloading", self._done + at, max(self._total, 1), self._names.get(self._file, ""))


def _parts(wheels: Sequence[Wheel]) -> list[list[Wheel]]:
    """The small ones together, the big ones alone; what has no digest apart from what has one."""
    parts: list[list[Wheel]] = []
    for one in sorted(wheels, key=lambda one: (not one.sha256, one.size)):
        last = parts[-1] if parts else []
        full = sum(each.size for each in last) + one.size > TOGETHER_BYTES
        if not last or full or bool(last[0].sha256) != bool(one.sha256):
            parts.append([one])
        else:
            last.append(one)
    return parts
