"""The daemon under a service manager: it says when it can be used, and when it leaves."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from orchd.demo.cast import node_environment
from orchd.paths import Paths
from orchd.rpc.client import Client

READY_SECONDS, STOP_SECONDS = 60, 10


def test_ready_means_that_the_socket_answers_and_stopping_comes_before_the_end(tmp_path: Path) -> None:
    environment = node_environment(tmp_path / "home", settings={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_SECONDS)
        with subprocess.Popen([sys.executable, "-m", "orchd.daemon"], env=environment) as daemon:
            try:
                said = manager.recv(4096).decode().splitlines()
                assert said[0] == "READY=1"
                assert said[1].startswith("STATUS=")
                with Client(Paths.from_env(environment).socket) as client:
                    assert client.call("daemon.status")["pid"] == daemon.pid
                daemon.send_signal(signal.SIGTERM)
                manager.settimeout(STOP_SECONDS)
                assert manager.recv(4096) == b"STOPPING=1"
                assert daemon.wait(STOP_SECONDS) == 0
            finally:
                daemon.kill()
