"""A job tries to get out. Each try works outside, so that what fails inside fails of the sandbox."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from orchd.errors import BaseUnusable, MemoryShort, SandboxMissing
from orchd.jobs.process import WorkerProcess
from orchd.jobs.sandbox import Readable, Sandbox, Writable, confine, landlock, namespaces, places, seatbelt, seccomp
from orchd.jobs.sandbox.access import Granted, granted
from orchd.worker import _numbered
from tests.jobs import escapes
from tests.jobs.escapes import Target, attempt, every

SECONDS = 60
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux mechanisms")
ALLOWED = {"given", "link to weights", "kept", "own", "temporary", "child"}
"""What a job may do; everything else that `escapes` tries has to fail."""

NOT_HERE = {"dns"}
"""The machine that tests may have no network: the control can't work there."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    given, secrets = tmp_path / "base", tmp_path / "home"
    given.mkdir()
    secrets.mkdir()
    (given / "config.json").write_text("{}")
    (secrets / "key").write_text("a key")
    (secrets / "shard.safetensors").write_text("weights")
    (given / "model.safetensors").symlink_to(secrets / "shard.safetensors")
    (given / "link").symlink_to(secrets / "key")
    with ExitStack() as stack:

        def listener(family: int, kind: int, address: Any) -> Any:
            one = stack.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind == socket.SOCK_STREAM:
                one.listen()
            return one.getsockname()

        unix, datagrams, abstract = str(tmp_path / "s"), str(tmp_path / "d"), f"orchd-test-{os.getpid()}"
        listener(socket.AF_UNIX, socket.SOCK_STREAM, unix)
        listener(socket.AF_UNIX, socket.SOCK_DGRAM, datagrams)
        listener(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + abstract)
        yield Target(
            tcp=listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))[1],
            tcp6=listener(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))[1],
            udp=listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))[1],
            unix=unix,
            unix_datagrams=datagrams,
            abstract=abstract,
            given=str(given),
            kept=str(tmp_path / "run"),
            secret=str(secrets / "key"),
            outside=str(secrets / "key"),
            pid=os.getpid(),
        )


async def job(folder: Path, kind: str, spec: Target, warm: bool = False, **setting: object) -> list[dict[str, Any]]:
    """All that a worker says while it runs one job."""
    work = folder / "work"
    work.mkdir()
    assignment = {"kind": kind, "spec": msgspec.to_builtins(spec), "workdir": str(work), **setting}
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await WorkerProcess.start(nursery, command=escapes.COMMAND, warm=warm)
            await process.send(assignment)
            said = []
            async for message in process.messages():
                said.append(message)
                if message["event"] in ("result", "error"):
                    break
            nursery.cancel_scope.cancel()
    return said


def told(said: list[dict[str, Any]]) -> tuple[Sandbox, dict[str, str]]:
    found = next(msgspec.convert(message["sandbox"], Sandbox) for message in said if message["event"] == "sandbox")
    return found, said[-1]["result"]["tries"]


@pytest.fixture(scope="module")
def everything() -> None:
    """Skips where this system lacks a mechanism, as a child of this process finds by the kernel's own answers."""
    code = (
        "from orchd.jobs.sandbox import landlock, namespaces, seccomp\n"
        "assert landlock.version() >= 1\n"
        "namespaces._unshare(namespaces.NEW_NETWORK | (0 if namespaces.os.geteuid() == 0 else namespaces.NEW_USER))\n"
        "seccomp.ctypes.CDLL('libseccomp.so.2')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not to be had here: {done.stderr.strip().splitlines()[-1]}")


@LINUX
@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("warm", [False, True])
async def test_a_job_reaches_nothing_but_its_own(
    tmp_path: Path, target: Target, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, tries = told(await job(tmp_path, "warm" if warm else "escape", target, warm=warm))
    assert sandbox.open == ()
    assert {name for name, end in tries.items() if end == "ok"} == ALLOWED
    assert all(one.in_force for one in sandbox.mechanisms)
    monkeypatch.chdir(tmp_path)  # the run's folder was made for the job
    outside = {name: attempt(action) for name, action in every(target).items() if name != "namespace"}
    assert {name for name, end in outside.items() if end != "ok"} <= NOT_HERE


@LINUX
@pytest.mark.usefixtures("everything")
async def test_processes_of_one_job_share_a_lo_that_is_nobody_elses(tmp_path: Path, target: Target) -> None:
    sandbox, tries = told(await job(tmp_path, "talk", target))
    assert {name for name, end in tries.items() if end == "ok"} == {"own lo", "udp"}  # udp: sent to nobody's port
    assert (sandbox.no_network, sandbox.no_sockets) == (True, True)


@LINUX
@pytest.mark.usefixtures("everything")
async def test_a_job_that_listens_connects_nowhere(tmp_path: Path, target: Target) -> None:
    sandbox, tries = told(await job(tmp_path, "listen", target))
    assert sandbox.open == ()
    assert {name for name, end in tries.items() if end == "ok"} == {"listens"}


@LINUX
@pytest.mark.usefixtures("everything")
async def test_a_job_that_has_to_connect_says_that_sockets_are_open(tmp_path: Path, target: Target) -> None:
    sandbox, tries = told(await job(tmp_path, "connect", target, sandbox="required"))
    assert {name for name, end in tries.items() if end == "ok"} == {"unix", "listens"}
    assert sandbox.open == ("other programs' sockets",)


@LINUX
async def test_memory_ends_at_the_limit(tmp_path: Path) -> None:
    sandbox, tries = told(await job(tmp_path, "fill", Target(megabytes=600), memory_mb=500))
    assert (tries["fill"], sandbox.memory_bytes) == ("MemoryError", 500_000_000)


@LINUX
async def test_memory_below_the_limit_can_be_had(tmp_path: Path) -> None:
    _, tries = told(await job(tmp_path, "fill", Target(megabytes=300), memory_mb=500))
    assert tries["fill"] == "ok"


@LINUX
async def test_memory_that_runs_out_is_told_with_its_limit(tmp_path: Path) -> None:
    said = await job(tmp_path, "hog", Target(megabytes=600), memory_mb=500)
    assert said[-1]["code"] == MemoryShort.code
    assert "MB in use of 500.0 MB that it may fill" in said[-1]["message"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes. Error code 12", "4.0 GB"),
        ("you tried to allocate 2359296 bytes. Error code 12", "2.4 MB"),
        ("you tried to allocate 65536 bytes. Error code 12", "65.5 kB"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", "20.00 MiB"),
    ],
)
def test_what_torch_says_of_memory_is_understood(said: str, told: str) -> None:
    assert f": {told} more" in str(confine.limits.shortage(RuntimeError(said)))
    assert confine.limits.shortage(RuntimeError("shapes differ")) is None


def test_a_thread_that_finds_no_room_is_a_lack_of_memory() -> None:
    """Also where whoever loaded the base took it for a fault of the base."""
    fault = BaseUnusable("demo: can't start new thread")
    fault.__cause__ = RuntimeError("can't start new thread")
    assert isinstance(_numbered(fault), MemoryShort)
    fault.__cause__ = RuntimeError("shapes differ")
    assert _numbered(fault) is fault


def test_what_was_missing_is_what_was_asked_for_beyond_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.limits, "_in_use", lambda: 699_000_000)
    monkeypatch.setattr(confine.limits.resource, "getrlimit", lambda which: (700_000_000, 700_000_000))
    assert confine.limits.shortage(RuntimeError("you tried to allocate 4000000 bytes.")) == (
        "there was not enough memory: 4.0 MB more were asked for, with 699.0 MB in use of 700.0 MB that it may fill;"
        " at least 3.0 MB were missing"
    )


@LINUX
async def test_priority_is_low(tmp_path: Path) -> None:
    _, tries = told(await job(tmp_path, "priority", Target()))
    assert tries == {"nice": str(min(19, os.nice(0) + 10)), "oom_score_adj": "500"}


async def test_switched_off_is_said(tmp_path: Path, target: Target) -> None:
    sandbox, tries = told(await job(tmp_path, "escape", target, sandbox="off"))
    assert tries["tcp"] == tries["secret"] == "ok"
    assert sandbox.open == ("the network", "other programs' sockets", "other files")
    assert "switched off by the setting jobs.sandbox" in sandbox.words


@pytest.fixture
def nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that forbids namespaces, on a kernel without Landlock, without libseccomp."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for module, name in (
        (namespaces, "leave_the_network"),
        (namespaces, "drop_rights"),
        (landlock, "restrict"),
        (seccomp, "restrict"),
        (seatbelt, "restrict"),
    ):
        monkeypatch.setattr(module, name, refuse)
    for name in ("lower_priority", "limit_memory"):  # not for the process that tests
        monkeypatch.setattr(confine.limits, name, refuse)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", ""))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.mark.usefixtures("nothing_works")
def test_what_can_not_be_had_is_said_and_not_taken_for_closed(tmp_path: Path) -> None:
    found = confine.confine(confine.Plan(workdir=tmp_path, granted=Granted((), ())))
    assert found.open == ("the network", "other programs' sockets", "other files")
    assert found.memory_bytes == 0
    assert not any(one.in_force for one in found.mechanisms)
    assert "OPEN: the network" in found.words
    assert "Operation not permitted" in found.words


@pytest.mark.usefixtures("nothing_works")
@pytest.mark.parametrize("change", [{"policy": "required"}, {"sockets": "loopback"}])
def test_a_job_that_needs_the_sandbox_does_not_run_without(tmp_path: Path, change: dict[str, Any]) -> None:
    plan = confine.Plan(workdir=tmp_path, granted=Granted((), ()))._replace(**change)
    with pytest.raises(SandboxMissing, match="Operation not permitted"):
        confine.confine(plan)


class Inner(msgspec.Struct, frozen=True):
    path: Readable


class Outer(msgspec.Struct, frozen=True):
    base: Readable
    maybe: Readable | None
    several: tuple[Inner, ...]
    plain: tuple[Readable, ...]
    run: Writable
    title: str
    one: Inner | None = None


def test_a_spec_grants_what_its_types_say() -> None:
    spec = Outer("/base", "/maybe", (Inner("/a"), Inner("/b")), ("/c",), "/run", "/not/this", Inner("/d"))
    read, write = granted(spec)
    assert [str(path) for path in read] == ["/base", "/maybe", "/a", "/b", "/c", "/d"]
    assert [str(path) for path in write] == ["/run"]
    assert granted(Outer("", None, (), (), "", "/title")) == ((), ())


def test_the_folder_of_jobs_and_a_home_are_not_taken_for_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    for private in (tmp_path, Path.home(), Path("/")):
        monkeypatch.setattr(sys, "path", ["", str(private), str(library)])
        found = list(places.python(tmp_path / "work"))
        assert private not in found
        assert library in found


def test_the_profile_for_macos_names_what_is_given(tmp_path: Path) -> None:
    """Text only: nobody has run it on a Mac."""
    rules = seatbelt.profile([Path('/a "b"')], [tmp_path], sockets="none").splitlines()
    assert rules[:3] == ["(version 1)", "(allow default)", "(deny network*)"]
    assert '(allow file-read* (subpath "/a \\"b\\""))' in rules
    assert f'(allow file-read* file-write* (subpath "{tmp_path}"))' == rules[-1]
    assert not any(rule.startswith("(allow network") for rule in rules)
