"""Reading what a node sent, as its own capture recorded it before encryption."""

from __future__ import annotations

import ast
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchd.demo.results import Departure

#: Every signed record carries its type in plain text.
_RECORD_TYPE = re.compile(rb"application/vnd\.orchd\.[a-z-]+\.v\d+\+msgpack")
#: `<n>-<protocol>.bin`, one file a stream or socket.
_STREAM_NAME = re.compile(r"\d+-(?P<protocol>.+)\.bin")
CONNECTS = "connects.txt"


@dataclass(frozen=True)
class Capture:
    """The recorded bytes of one node."""

    streams: tuple[tuple[str, bytes], ...]
    connects: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Capture:
        """Raises `FileNotFoundError` when there is none: a capture that was not taken proves nothing."""
        streams = []
        for path in sorted(folder.iterdir()):
            if match := _STREAM_NAME.fullmatch(path.name):
                streams.append((match["protocol"], path.read_bytes()))
        connects = folder / CONNECTS
        lines = connects.read_text().splitlines() if connects.exists() else []
        return cls(streams=tuple(streams), connects=tuple(line for line in lines if line))

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self.streams)

    def find(self, texts: Iterable[str]) -> list[str]:
        """Which of the texts occur in any stream, whatever their letter case."""
        lowered = [data.lower() for _, data in self.streams]
        return [text for text in texts if any(text.lower().encode() in data for data in lowered)]

    def beyond_loopback(self) -> tuple[str, ...]:
        """The connections that were opened to anything but this machine."""
        return tuple(line for line in self.connects if not is_local(line))


def departure(capture: Capture, sentences: Iterable[str], leak: str = "") -> Departure:
    """What left, and whether any of these sentences was in it; `leak` is the verdict on the adapter itself."""
    searched = sorted(set(sentences))
    sizes: Counter[str] = Counter()
    for protocol, data in capture.streams:
        sizes[protocol] += len(data)
    return Departure(
        bytes=capture.size,
        streams=len(capture.streams),
        by_protocol=tuple(sizes.most_common()),
        records=sum(len(_RECORD_TYPE.findall(data)) for _, data in capture.streams),
        connects=len(capture.connects),
        beyond_loopback=capture.beyond_loopback(),
        sentences_searched=len(searched),
        sentences_found=len(capture.find(searched)),
        leak=leak,
    )


def is_local(connect: str) -> bool:
    """Whether a line of `connects.txt` (`connect ('127.0.0.1', 4001)`, `resolve 'name'`) stays on this machine."""
    _, _, target = connect.partition(" ")
    address = ast.literal_eval(target)
    host = address[0] if isinstance(address, tuple) else address
    if not isinstance(address, tuple) and connect.startswith(("connect", "send")):
        return True  # a path, or None on a socket that is connected already
    try:
        return host in (None, "localhost") or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False
