"""`sd_notify` against a real datagram socket."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchd.daemon import Restoring
from orchd.notify import READY, STOPPING, notify, status


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What systemd does: a datagram socket whose path is in NOTIFY_SOCKET."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(5)
        yield path, receiver


def test_the_manager_hears_each_state(manager: tuple[str, socket.socket]) -> None:
    path, receiver = manager
    assert notify(READY, status("3 peers"), environ={"NOTIFY_SOCKET": path})
    assert receiver.recv(4096) == b"READY=1\nSTATUS=3 peers"
    assert notify(STOPPING, environ={"NOTIFY_SOCKET": path})
    assert receiver.recv(4096) == b"STOPPING=1"


def test_a_status_can_not_smuggle_an_assignment(manager: tuple[str, socket.socket]) -> None:
    path, receiver = manager
    assert notify(status("one\nMAINPID=1"), environ={"NOTIFY_SOCKET": path})
    assert receiver.recv(4096) == b"STATUS=one MAINPID=1"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0orchd-test-{os.getpid()}")
        receiver.settimeout(5)
        assert notify(READY, environ={"NOTIFY_SOCKET": f"@orchd-test-{os.getpid()}"})
        assert receiver.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens/here"])
def test_nobody_to_tell_is_no_error(address: str) -> None:
    assert not notify(READY, environ={"NOTIFY_SOCKET": address})
    assert not notify(READY, environ={})


def test_a_long_start_asks_for_more_time(manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    path, receiver = manager
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    Restoring().tell(2_000, 100_000)
    told = receiver.recv(4096).decode().splitlines()
    assert told == ["STATUS=making the index again: 2,000 of 100,000 adapters", "EXTEND_TIMEOUT_USEC=120000000"]
