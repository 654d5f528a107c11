"""Put a job's process into its sandbox, then try what is left open. The order: network, rights, files, system calls.

The process does it to itself, before it loads the job's function and before a second thread runs. What is in force
then can't be undone, so it is for one job, whose process exits after it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from orchd.errors import SandboxMissing
from orchd.jobs.sandbox import landlock, limits, namespaces, places, seatbelt, seccomp
from orchd.jobs.sandbox.access import Granted
from orchd.jobs.sandbox.report import SOCKETS, Mechanism, Sandbox, Sockets

Policy = Literal["auto", "required", "off"]
"""auto: what this system can. required: no job runs unless all is closed. off: only the limits."""

NOWHERE = ("192.0.2.1", 9)
"""An address that nobody has (RFC 5737). Connecting a UDP socket looks for a way there and sends nothing."""

HERE = ("127.0.0.1", 9)
SWITCHED_OFF = "switched off by the setting jobs.sandbox"

ALLOWED_SOCKETS: Mapping[Sockets, str] = {
    "none": "no sockets",
    "own": "one Unix socket to listen on",
    "unix": "Unix sockets only",
    "loopback": "sockets of lo only",
}

_KEPT: list[int] = []
"""Descriptors that stay open as long as the process: see `landlock.restrict`."""


class Plan(NamedTuple):
    """`workdir` is the job's own folder, `granted` what its spec names. `sockets`: see `kinds.Kind`."""

    workdir: Path
    granted: Granted
    sockets: Sockets = "none"
    memory_bytes: int = 0
    nice: int = 10
    policy: Policy = "auto"


def confine(plan: Plan) -> Sandbox:
    """Confine this process for good. Raises `SandboxMissing` where `plan` requires what this system hasn't got."""
    memory = plan.memory_bytes or limits.automatic_bytes()
    _own_temporary_folder(plan.workdir)
    for path in plan.granted.write:
        path.mkdir(parents=True, exist_ok=True)  # a rule is for a folder that is there
    limited = [  # first: afterwards it can't write to /proc
        _try("low priority", lambda: limits.lower_priority(plan.nice)),
        _try("memory limit", lambda: limits.limit_memory(memory)),
    ]
    tried: list[Mechanism] = []
    if plan.policy == "off":
        tried.append(Mechanism(name="sandbox", in_force=False, detail=SWITCHED_OFF))
    elif sys.platform == "darwin":
        tried += _macos(plan)
    else:
        tried += _linux(plan)
    found = look_around((*tried, *limited), memory if limited[-1].in_force else 0, sockets=plan.sockets)
    _require(plan, found)
    return found


def _linux(plan: Plan) -> list[Mechanism]:
    read = [*places.system(), *places.python(plan.workdir), *places.with_links(plan.granted.read)]
    write = [plan.workdir, *plan.granted.write]

    def files() -> str:
        loopback, own = plan.sockets == "loopback", plan.sockets in ("own", "unix")
        abi, kept = landlock.restrict(read, write, places.devices(), tcp=loopback, listen=own)
        _KEPT.extend(kept)
        return f"version {abi}"

    def calls() -> str:
        seccomp.restrict(plan.sockets)
        return ALLOWED_SOCKETS[plan.sockets]

    def rights() -> str:
        namespaces.drop_rights()
        return "given up"

    leave = namespaces.leave_the_network
    network = _try("network namespace", lambda: leave(loopback=plan.sockets == "loopback"))
    return [network, _try("capabilities", rights), _try("landlock", files), _try("seccomp", calls)]


def _macos(plan: Plan) -> list[Mechanism]:
    read = [*places.python(plan.workdir), *places.with_links(plan.granted.read)]

    def take_on() -> str:
        seatbelt.restrict(read, [plan.workdir, *plan.granted.write], sockets=plan.sockets)
        return "people's folders closed"

    return [_try("seatbelt", take_on)]


def _try(name: str, put_in_force: Callable[[], str]) -> Mechanism:
    try:
        return Mechanism(name=name, in_force=True, detail=put_in_force())
    except OSError as error:
        return Mechanism(name=name, in_force=False, detail=error.strerror or str(error))


def look_around(tried: tuple[Mechanism, ...], memory: int, *, sockets: Sockets) -> Sandbox:
    """Try what a program that wants out would try; nothing is sent anywhere.

    With sockets of `lo` the job's own `lo` answers, which is another machine's or nobody's in its namespace.
    """
    own_network = any(one.name == "network namespace" and one.in_force for one in tried)
    own = own_network if sockets == "loopback" else not _reaches(HERE)
    return Sandbox(
        no_network=own and not _reaches(NOWHERE),
        no_sockets=not _connects(),
        only_own_files=not _lists(Path("/") if sys.platform == "linux" else Path.home()),
        memory_bytes=memory,
        mechanisms=tried,
    )


def _reaches(address: tuple[str, int]) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(address)
    except OSError:
        return False
    return True


def _connects() -> bool:
    """To a Unix socket, if one were there: being refused is another answer than finding none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect("/nobody-listens-here")
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _lists(folder: Path) -> bool:
    try:
        os.listdir(folder)
    except OSError:
        return False
    return True


def _require(plan: Plan, found: Sandbox) -> None:
    lacking = [name for name in found.open if not (plan.sockets == "unix" and name == SOCKETS)]
    if plan.sockets == "loopback" and plan.policy != "off" and not found.no_network:
        raise SandboxMissing(f"processes that talk to each other need a network namespace of their own: {found.words}")
    if plan.policy == "required" and lacking:
        raise SandboxMissing(f"jobs.sandbox is `required`, and a job could reach {', '.join(lacking)}: {found.words}")


def _own_temporary_folder(workdir: Path) -> None:
    """Temporary files lie in the job's own folder, and go with it. torch's folder for compiled code, too."""
    folder = workdir / "tmp"
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torchinductor")
