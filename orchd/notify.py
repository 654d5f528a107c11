"""Telling systemd how the daemon is: datagrams to the socket that `NOTIFY_SOCKET` names (`sd_notify(3)`).

Without that variable, as in a terminal or under launchd, nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

READY, STOPPING = "READY=1", "STOPPING=1"
#: A start that says so every two minutes is waited for.
MORE_TIME = "EXTEND_TIMEOUT_USEC=120000000"


def status(text: str) -> str:
    """The line that `systemctl status` shows. A line break would start another assignment, so it becomes a space."""
    return "STATUS=" + " ".join(text.splitlines())


def notify(*assignments: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send assignments such as `READY` and `status("…")` as one datagram. Returns whether anyone was told.

    A daemon must not die of a service manager that does not listen, so an error of the socket is an answer: False.
    """
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    name = "\0" + address[1:] if address.startswith("@") else address  # "@" is Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as sender:
        try:
            sender.connect(name)
            sender.sendall("\n".join(assignments).encode())
        except OSError:
            return False
    return True
