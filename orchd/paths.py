"""Where orchd keeps things. Standard library only: `orchctl status` loads nothing else to find the socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

#: A Unix socket's path must fit `sockaddr_un.sun_path` (104 bytes with the final NUL on macOS).
SOCKET_PATH_LIMIT = 103


class Paths:
    """The directories of one node. Nothing is created here.

    Written out by hand: `dataclasses` would cost `orchctl` a quarter of its start.
    """

    __slots__ = ("cache", "config_file", "data", "runtime", "state")

    def __init__(self, *, config_file: Path, data: Path, state: Path, cache: Path, runtime: Path) -> None:
        self.config_file = config_file
        self.data = data
        self.state = state
        self.cache = cache
        self.runtime = runtime

    @property
    def socket(self) -> Path:
        return self.runtime / "rpc.sock"

    @property
    def identity_file(self) -> Path:
        return self.data / "identity.pem"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Paths:
        """The paths for this environment: `ORCHD_HOME` puts everything below one directory."""
        env = os.environ if environ is None else environ
        home = env.get("ORCHD_HOME")
        if home:
            root = Path(os.path.abspath(os.path.expanduser(home)))
            return cls(
                config_file=root / "config.toml",
                data=root / "data",
                state=root / "state",
                cache=root / "cache",
                runtime=_fitting(root / "run", key=str(root)),
            )
        return _system_paths(env) if env.get("ORCHD_SYSTEM") == "1" else _user_paths(env)


def sync(path: Path) -> None:
    """fsync of a file or a folder: what was written to it, or renamed in it, is still there after the power went."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fitting(runtime: Path, key: str) -> Path:
    """`runtime`, or a short directory of this user when the socket's path would be too long there."""
    if len(os.fsencode(runtime / "rpc.sock")) <= SOCKET_PATH_LIMIT:
        return runtime
    return _short_runtime(key)


def _short_runtime(key: str) -> Path:
    import hashlib  # only the rare long path needs it

    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:12]
    return Path(f"/tmp/orchd-{os.getuid()}-{digest}")


def _system_paths(env: Mapping[str, str]) -> Paths:
    return Paths(
        config_file=Path("/etc/orchd/config.toml"),
        data=Path("/var/lib/orchd"),
        state=Path("/var/lib/orchd/state"),
        cache=Path(env.get("CACHE_DIRECTORY", "/var/cache/orchd")),
        runtime=Path("/run/orchd"),
    )


def _user_paths(env: Mapping[str, str]) -> Paths:
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    if sys.platform == "darwin":
        support = home / "Library" / "Application Support" / "orchd"
        return Paths(
            config_file=support / "config.toml",
            data=support,
            state=home / "Library" / "Logs" / "orchd",
            cache=home / "Library" / "Caches" / "orchd",
            runtime=_short_runtime(str(support)),
        )

    def xdg(name: str, default: str) -> Path:
        value = env.get(name, "")  # the XDG specification: relative paths are to be ignored
        return (Path(value) if value.startswith("/") else home / default) / "orchd"

    data = xdg("XDG_DATA_HOME", ".local/share")
    run = env.get("XDG_RUNTIME_DIR", "")
    key = str(data)
    return Paths(
        config_file=xdg("XDG_CONFIG_HOME", ".config") / "config.toml",
        data=data,
        state=xdg("XDG_STATE_HOME", ".local/state"),
        cache=xdg("XDG_CACHE_HOME", ".cache"),
        runtime=_fitting(Path(run) / "orchd", key) if run.startswith("/") else _short_runtime(key),
    )
