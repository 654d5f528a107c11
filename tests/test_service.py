"""The service files, as systemd and launchd read them, and what `orchctl service` would do with them."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchd.cli import service
from orchd.cli.service import Service, carry_out
from orchd.errors import ServiceManagerFailed, ServiceRefused

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path("/opt/my orchd/50%/bin/orchd")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine, so no unit is verified"
)


def of(kind: str, environ: Mapping[str, str]) -> Service:
    platform = "darwin" if kind == "launchd" else "linux"
    return Service.of(system=kind == "systemd-system", environ=environ, platform=platform)


class Manager:
    """Stands for systemctl or launchctl: remembers what it was asked, answers what it is told to."""

    def __init__(self, stdout: str = "", code: int = 0) -> None:
        self.asked: list[str] = []
        self.stdout, self.code = stdout, code

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(" ".join(command))
        return subprocess.CompletedProcess(command, self.code, self.stdout, "it said no" if self.code else "")


@pytest.mark.parametrize("name", ["orchd.service", "orchd-system.service", "io.orchd.orchd.plist"])
def test_deploy_shows_the_files_that_are_installed(name: str) -> None:
    assert (ROOT / "deploy" / name).read_bytes() == (service.UNITS / name).read_bytes()


@needs_systemd
@pytest.mark.parametrize("kind", ["systemd-user", "systemd-system"])
@pytest.mark.parametrize("folder", ["plain", "with space and 50%"])
def test_systemd_accepts_the_units(kind: str, folder: str, tmp_path: Path) -> None:
    program = tmp_path / folder / "orchd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "orchd.service"
    unit.write_text(of(kind, {"HOME": "/home/a", "ORCHD_HOME": f"/srv/{folder}"}).text(program))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_would_see_a_mistake(tmp_path: Path) -> None:
    """The control."""
    unit = tmp_path / "orchd.service"
    unit.write_text(of("systemd-user", {}).text(Path("/nobody/has/this/orchd")).replace("Type=notify", "Typo=notify"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Typo" in done.stderr


def test_paths_with_spaces_and_percent_signs_are_quoted() -> None:
    text = of("systemd-user", {"HOME": "/home/a", "ORCHD_HOME": "/srv/a b"}).text(PROGRAM)
    assert 'ExecStart="/opt/my orchd/50%%/bin/orchd"\nEnvironment="ORCHD_HOME=/srv/a b"\n' in text


def test_a_path_can_not_smuggle_a_line() -> None:
    with pytest.raises(ServiceRefused, match="control character"):
        of("systemd-user", {"HOME": "/home/a"}).text(Path("/a\nExecStartPre=/bin/evil"))


def test_the_agent_is_a_property_list() -> None:
    environ = {"HOME": "/Users/ann & co", "ORCHD_HOME": "/srv/<home>"}
    agent = plistlib.loads(of("launchd", environ).text(PROGRAM).encode())
    assert agent["ProgramArguments"] == [str(PROGRAM)]
    assert agent["ProcessType"] == "Background"
    assert agent["EnvironmentVariables"] == {"ORCHD_HOME": "/srv/<home>"}
    assert agent["StandardErrorPath"] == "/Users/ann & co/Library/Logs/orchd/orchd.log"
    assert agent["Umask"] == 0o077
    assert "EnvironmentVariables" not in plistlib.loads(of("launchd", {"HOME": "/a"}).text(PROGRAM).encode())


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("systemd-user", "{home}/.config/systemd/user/orchd.service", ["--user daemon-reload", "--user enable --now"]),
        ("systemd-system", "/etc/systemd/system/orchd.service", ["systemctl daemon-reload", "enable --now"]),
        ("launchd", "{home}/Library/LaunchAgents/io.orchd.orchd.plist", ["mkdir", "bootout", "bootstrap"]),
    ],
)
def test_what_install_would_do(kind: str, path: str, words: list[str], tmp_path: Path) -> None:
    found = of(kind, {"HOME": str(tmp_path)})
    shown = [str(step) for step in found.install_steps(PROGRAM)]
    assert f"write {path.format(home=tmp_path)}" in shown
    said = [line for line in shown if not line.startswith("write")]
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_xdg_config_home_is_where_the_user_unit_goes() -> None:
    found = of("systemd-user", {"HOME": "/home/a", "XDG_CONFIG_HOME": "/cfg"})
    assert found.path == Path("/cfg/systemd/user/orchd.service")


def test_installing_twice_and_uninstalling(tmp_path: Path) -> None:
    found, manager = of("systemd-user", {"HOME": str(tmp_path)}), Manager()
    for _ in range(2):
        found.check_rights()
        carry_out(found.install_steps(PROGRAM), manager)
    assert found.path.read_text() == found.text(PROGRAM)
    carry_out(found.uninstall_steps(), manager)
    assert not found.path.exists()
    assert manager.asked[-2:] == ["systemctl --user disable --now orchd.service", "systemctl --user daemon-reload"]
    assert found.uninstall_steps() == []


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    found = of("systemd-user", {"HOME": str(tmp_path)})
    found.path.parent.mkdir(parents=True)
    found.path.write_text("[Service]\nExecStart=/usr/bin/other\n")
    with pytest.raises(ServiceRefused, match="not written by orchd"):
        found.check_rights()
    with pytest.raises(ServiceRefused, match="not written by orchd"):
        found.uninstall_steps()


def test_a_manager_that_fails_is_named(tmp_path: Path) -> None:
    found = of("systemd-user", {"HOME": str(tmp_path)})
    with pytest.raises(ServiceManagerFailed, match=r"`systemctl --user daemon-reload` failed: it said no"):
        carry_out(found.install_steps(PROGRAM), Manager(code=1))
    assert not found.path.exists()
    carry_out(found.install_steps(PROGRAM), Manager())
    with pytest.raises(ServiceManagerFailed):
        carry_out(found.install_steps(Path("/another/orchd")), Manager(code=1))
    assert found.path.read_text() == found.text(PROGRAM)
    with pytest.raises(ServiceManagerFailed, match="it said no"):
        found.status(Manager(code=1))


def test_a_manager_that_is_not_there() -> None:
    with pytest.raises(ServiceManagerFailed, match="not here"):
        service.run_command(["no-such-manager-anywhere"])


def test_the_status_in_the_managers_words(tmp_path: Path) -> None:
    found = of("systemd-user", {"HOME": str(tmp_path)})
    answer = "LoadState=loaded\nActiveState=active\nSubState=running\nStatusText=3 peers\n"
    status = found.status(Manager(answer))
    assert (status.installed, status.running, status.state, status.detail) == (
        True,
        True,
        "active (running)",
        "3 peers",
    )
    absent = found.status(Manager("LoadState=not-found\nActiveState=inactive\nSubState=dead\nStatusText=\n"))
    assert (absent.installed, absent.running, absent.state) == (False, False, "")
    agent = of("launchd", {"HOME": str(tmp_path)}).status(Manager("io.orchd.orchd = {\n\tstate = running\n}\n"))
    assert (agent.running, agent.state) == (True, "running")


def test_the_machines_service_belongs_to_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServiceRefused, match="belong to root"):
        of("systemd-system", {}).check_rights()


def test_an_unknown_platform_is_refused() -> None:
    with pytest.raises(ServiceRefused, match="win32"):
        Service.of(system=False, environ={}, platform="win32")
    with pytest.raises(ServiceRefused, match="agent of one user"):
        Service.of(system=True, environ={}, platform="darwin")
