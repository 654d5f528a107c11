"""`python -m tests.jobs.escapes` is a worker whose jobs try to get out of the sandbox, each with a control outside."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchd import worker
from orchd.jobs.context import JobContext
from orchd.jobs.kinds import Kind
from orchd.jobs.sandbox import Readable, Writable

HERE = "tests.jobs.escapes"
COMMAND = (sys.executable, "-P", "-m", HERE)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where listeners of the test are, and files. `given` and `kept` are the job's, the others are not."""

    tcp: int = 0
    tcp6: int = 0
    udp: int = 0
    unix: str = ""
    unix_datagrams: str = ""
    abstract: str = ""
    given: Readable = ""
    kept: Writable = ""
    secret: str = ""
    outside: str = ""
    pid: int = 0
    megabytes: int = 0


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What came of each try: `ok`, or the error's name."""

    tries: dict[str, str]


def attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "ok"


def connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as one:
        one.settimeout(5)
        one.connect(address)
        one.send(b"hello")


def misuse_a_pair(address: str) -> None:
    """A datagram socket that was born connected may send elsewhere."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(b"hello", address)


def new_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def read_memory_of(pid: int) -> None:
    """As a debugger would."""
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.read(0)


def network(target: Target) -> dict[str, Callable[[], object]]:
    return {
        "dns": lambda: socket.getaddrinfo("example.org", 443),
        "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", target.tcp)),
        "tcp6": lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", target.tcp6)),
        "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", target.udp)),
        "unix": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, target.unix),
        "unix datagrams": lambda: connect(socket.AF_UNIX, socket.SOCK_DGRAM, target.unix_datagrams),
        "abstract": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + target.abstract),
        "pair": lambda: misuse_a_pair(target.unix_datagrams),
    }


def files(target: Target) -> dict[str, Callable[[], object]]:
    return {
        "given": (Path(target.given) / "config.json").read_bytes,
        "link to weights": (Path(target.given) / "model.safetensors").read_bytes,
        "kept": (Path(target.kept) / "new").touch,
        "own": Path("new").touch,
        "temporary": lambda: tempfile.NamedTemporaryFile().close(),
        "secret": Path(target.secret).read_bytes,
        "link to a secret": (Path(target.given) / "link").read_bytes,
        "write given": lambda: (Path(target.given) / "config.json").write_bytes(b"other"),
        "write outside": lambda: Path(target.outside).write_bytes(b"other"),
        "list": lambda: os.listdir(Path(target.secret).parent),
        "passwords": Path("/etc/passwd").read_bytes,
    }


def processes(target: Target) -> dict[str, Callable[[], object]]:
    return {
        "signal": lambda: os.kill(target.pid, 0),
        "memory": lambda: read_memory_of(target.pid),
        "command line": Path(f"/proc/{target.pid}/cmdline").read_bytes,
        "namespace": new_namespace,
        "child": lambda: subprocess.run(["/bin/true"], check=True),
    }


def every(target: Target) -> dict[str, Callable[[], object]]:
    return network(target) | files(target) | processes(target)


def escape(spec: Target, job: JobContext) -> Told:
    return Told(tries={name: attempt(action) for name, action in every(spec).items()})


def fill(spec: Target, job: JobContext) -> Told:
    held: list[bytearray] = []

    def more() -> None:
        for _ in range(spec.megabytes):
            held.append(bytearray(b"x") * 1_000_000)

    return Told(tries={"fill": attempt(more)})


def hog(spec: Target, job: JobContext) -> Told:
    return Told(tries={"length": str(len(bytearray(spec.megabytes * 1_000_000)))})


def talk(spec: Target, job: JobContext) -> Told:
    """Two ends in one namespace, as the processes of one training on several."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        told = attempt(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, server.getsockname()))
    return Told(tries=network_tries(spec) | {"own lo": told})


def network_tries(spec: Target) -> dict[str, str]:
    return {name: attempt(action) for name, action in network(spec).items()}


def priority(spec: Target, job: JobContext) -> Told:
    kernel = Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip()
    return Told(tries={"nice": str(os.nice(0)), "oom_score_adj": kernel})


def listen(spec: Target, job: JobContext) -> Told:
    """As llama.cpp does it: a Unix socket in the job's folder, which is let in and goes nowhere."""

    def make(path: str, kind: int = socket.SOCK_STREAM) -> None:
        with socket.socket(socket.AF_UNIX, kind) as one:
            one.bind(path)
            one.listen()

    elsewhere = str(Path(spec.secret).with_name("mine"))
    own = {"listens": attempt(lambda: make("mine")), "listens elsewhere": attempt(lambda: make(elsewhere))}
    return Told(tries=network_tries(spec) | own)


KINDS = {
    "connect": Kind(f"{HERE}:listen", f"{HERE}:Target", f"{HERE}:Told", sockets="unix"),
    "listen": Kind(f"{HERE}:listen", f"{HERE}:Target", f"{HERE}:Told", sockets="own"),
    "escape": Kind(f"{HERE}:escape", f"{HERE}:Target", f"{HERE}:Told"),
    "warm": Kind(f"{HERE}:escape", f"{HERE}:Target", f"{HERE}:Told", warm=True),
    "fill": Kind(f"{HERE}:fill", f"{HERE}:Target", f"{HERE}:Told"),
    "hog": Kind(f"{HERE}:hog", f"{HERE}:Target", f"{HERE}:Told"),
    "talk": Kind(f"{HERE}:talk", f"{HERE}:Target", f"{HERE}:Told", sockets="loopback"),
    "priority": Kind(f"{HERE}:priority", f"{HERE}:Target", f"{HERE}:Told"),
}

if __name__ == "__main__":
    worker.WARM_MODULES = ("csv",)
    worker.leave(worker.main(kinds=KINDS))
