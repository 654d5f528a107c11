"""Where is everything? The daemon and `orchctl` must give the same answer from the same environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchd.paths import SOCKET_PATH_LIMIT, Paths

linux_only = pytest.mark.skipif(sys.platform == "darwin", reason="XDG paths are for Linux")


def test_one_home_holds_everything() -> None:
    paths = Paths.from_env({"ORCHD_HOME": "/srv/node"})
    assert paths.config_file == Path("/srv/node/config.toml")
    assert paths.data == Path("/srv/node/data")
    assert paths.state == Path("/srv/node/state")
    assert paths.cache == Path("/srv/node/cache")
    assert paths.socket == Path("/srv/node/run/rpc.sock")
    assert paths.identity_file == Path("/srv/node/data/identity.pem")


def test_a_relative_home_means_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Paths.from_env({"ORCHD_HOME": "node"}).data == tmp_path / "node" / "data"


def test_nothing_is_made_by_asking(tmp_path: Path) -> None:
    Paths.from_env({"ORCHD_HOME": str(tmp_path / "node")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 80, 87, 88, 89, 200, 5000])
def test_the_socket_always_fits_its_address(length: int) -> None:
    paths = Paths.from_env({"ORCHD_HOME": "/" + "d" * length})
    assert len(os.fsencode(paths.socket)) <= SOCKET_PATH_LIMIT
    assert paths.data.is_relative_to("/" + "d" * length)


def test_the_socket_moves_only_when_it_must() -> None:
    longest = "/" + "d" * (SOCKET_PATH_LIMIT - len("//run/rpc.sock"))
    assert Paths.from_env({"ORCHD_HOME": longest}).socket == Path(longest, "run", "rpc.sock")
    assert Paths.from_env({"ORCHD_HOME": longest + "d"}).socket.is_relative_to("/tmp")


def test_the_limit_counts_bytes_not_letters() -> None:
    assert Paths.from_env({"ORCHD_HOME": "/" + "ü" * 60}).socket.is_relative_to("/tmp")


def test_two_long_homes_do_not_share_a_socket() -> None:
    one, two = (Paths.from_env({"ORCHD_HOME": "/" + "d" * 100 + end}).socket for end in "ab")
    assert one != two
    assert one == Paths.from_env({"ORCHD_HOME": "/" + "d" * 100 + "a"}).socket


def test_a_home_whose_name_is_no_text_still_has_a_socket() -> None:
    home = os.fsdecode(b"/srv/\xff" + b"d" * 100)
    assert len(os.fsencode(Paths.from_env({"ORCHD_HOME": home}).socket)) <= SOCKET_PATH_LIMIT


def test_a_system_service_uses_the_system_folders() -> None:
    paths = Paths.from_env({"ORCHD_SYSTEM": "1"})
    assert (paths.data, paths.runtime) == (Path("/var/lib/orchd"), Path("/run/orchd"))


@linux_only
def test_xdg_variables_are_followed() -> None:
    env = {"HOME": "/home/ada", "XDG_DATA_HOME": "/disk/data", "XDG_RUNTIME_DIR": "/run/user/7"}
    paths = Paths.from_env(env)
    assert paths.data == Path("/disk/data/orchd")
    assert paths.state == Path("/home/ada/.local/state/orchd")
    assert paths.socket == Path("/run/user/7/orchd/rpc.sock")


@linux_only
def test_without_a_home_variable_the_users_home_is_asked_for() -> None:
    assert Paths.from_env({}).data == Path.home() / ".local/share/orchd"


@linux_only
def test_relative_xdg_variables_are_ignored_as_their_specification_says() -> None:
    paths = Paths.from_env({"HOME": "/home/ada", "XDG_DATA_HOME": "data", "XDG_RUNTIME_DIR": "run"})
    assert paths.data == Path("/home/ada/.local/share/orchd")
    assert paths.runtime.is_relative_to("/tmp")


@linux_only
def test_without_a_runtime_folder_the_socket_is_in_a_short_one_of_this_user() -> None:
    paths = Paths.from_env({"HOME": "/home/ada"})
    assert paths.runtime.parent == Path("/tmp")
    assert f"-{os.getuid()}-" in paths.runtime.name
