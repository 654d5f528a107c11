"""Settings: flag > environment (`ORCHD_NET__LISTEN`) > `config.toml` > default.

Every setting is a field of a frozen struct with its default beside it. An unknown key is an error that names the
nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchd.errors import ConfigInvalid, did_you_mean

#: Variables are settings when they hold `__` too: `ORCHD_HOME` is none.
ENV_PREFIX = "ORCHD_"


class NetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. Addresses are multiaddrs."""

    enabled: bool = True
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    bootstrap: tuple[str, ...] = ()
    mdns: bool = True
    #: Be found under the topic of each base that is here. It tells whoever asks the DHT which bases these are.
    share_bases: bool = False
    #: Re-announce every topic this often, in seconds (a provider record lives an hour on our servers).
    announce_interval_s: int = 600
    #: Look a joined topic up again this often, in seconds, after pauses that double from one. Who joins later finds
    #: those who are there, so this is for the rare case that both missed each other.
    lookup_interval_s: int = 1800
    #: Give and take large files beside libp2p, over TLS on a port of its own (0: any free one), where that is reached.
    bulk: bool = True
    bulk_port: int = 0
    #: Kilobytes (1000 bytes) a second that are given to peers and taken from them; 0: as many as there are.
    upload_limit: int = 0
    download_limit: int = 0
    #: Answers with an adapter's bytes that are under way at once.
    upload_slots: int = 8
    #: Megabytes that one peer is given in an hour; 0: as many as it asks for.
    upload_quota_mb: int = 20_000
    #: Record every outbound byte before encryption into this folder (for tests and the suspicious).
    capture: str | None = None


class JobsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Background work."""

    #: Worker processes at once.
    parallel: int = 1
    #: Threads of a worker's numeric libraries.
    threads: int = 1
    #: A worker that has loaded torch waits this long for the next job before it leaves, in seconds.
    warm_seconds: int = 60


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of adapters."""

    #: Above this many megabytes, unpinned fetched adapters are thrown out, the longest unused first; 0: never.
    quota_mb: int = 0


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: str = "info"
    #: `auto` (journal priorities under systemd, plain text else), `text` or `json`.
    format: str = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    net: NetConfig = NetConfig()
    jobs: JobsConfig = JobsConfig()
    registry: RegistryConfig = RegistryConfig()
    log: LogConfig = LogConfig()


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting with the place its value comes from."""

    key: str
    value: Any
    origin: str


def load(
    config_file: Path,
    environ: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
) -> tuple[Config, tuple[Setting, ...]]:
    """The settings and where each came from.

    `overrides` are flags, as dotted keys with text values. Raises `ConfigInvalid` naming origin, key and value.
    """
    known = _known_keys()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(key: str, value: Any, origin: str) -> None:
        if key not in known:
            raise ConfigInvalid(f"{origin}: no setting is called {key!r}", hint=did_you_mean(key, known), field=key)
        values[key] = _convert(key, value, known[key], origin)
        origins[key] = origin

    for key, value in _file_values(config_file).items():
        put(key, value, str(config_file))
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            put(key, environ[name], f"${name}")
    for key, value in (overrides or {}).items():
        put(key, value, "command line")

    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    config = msgspec.convert(nested, Config)
    _check(config, origins)
    settings = tuple(
        Setting(key=key, value=_get(config, key), origin=origins.get(key, "default")) for key in sorted(known)
    )
    return config, settings


def _known_keys() -> dict[str, Any]:
    """Dotted key → type of every setting."""
    found: dict[str, Any] = {}
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            found[f"{section.name}.{field.name}"] = field.type
    return found


def _get(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _file_values(config_file: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigInvalid(f"{config_file} can't be read: {error}") from None
    flat: dict[str, Any] = {}
    for section, table in tree.items():
        if isinstance(table, dict):
            flat.update({f"{section}.{name}": value for name, value in table.items()})
        else:
            flat[section] = table
    return flat


def _convert(key: str, value: Any, wanted: Any, origin: str) -> Any:
    if value == "" and wanted == str | None:
        return None
    if isinstance(value, str) and wanted == tuple[str, ...]:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, wanted, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise ConfigInvalid(f"{origin}: {key} = {value!r}: {error}", field=key) from None


def _check(config: Config, origins: Mapping[str, str]) -> None:
    """Bounds that a type does not state."""
    for key, (low, high) in _BOUNDS.items():
        value = _get(config, key)
        if not low <= value <= high:
            raise ConfigInvalid(f"{origins.get(key, 'default')}: {key} = {value} is outside {low} to {high}", field=key)
    for key, words in _WORDS.items():
        value = _get(config, key)
        if value not in words:
            listed = f"{', '.join(words[:-1])} or {words[-1]}"
            raise ConfigInvalid(f"{origins.get(key, 'default')}: {key} = {value!r} is not {listed}", field=key)


_BOUNDS = {
    "jobs.parallel": (1, 64),
    "jobs.threads": (1, 1024),
    "jobs.warm_seconds": (0, 86_400),
    "net.announce_interval_s": (5, 86_400),
    "net.lookup_interval_s": (1, 86_400),
    "net.upload_limit": (0, 10_000_000),
    "net.download_limit": (0, 10_000_000),
    "net.upload_slots": (1, 256),
    "net.bulk_port": (0, 65_535),
    "net.upload_quota_mb": (0, 100_000_000),
}
_WORDS = {"log.format": ("auto", "text", "json"), "log.level": ("debug", "info", "warning", "error")}
