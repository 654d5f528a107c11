"""Settings: flag > environment (`ORCHD_NET__LISTEN`) > `config.toml` > default.

Every setting is a field of a frozen struct with its default beside it. An unknown key is an error that names the
nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import msgspec

from orchd.errors import ConfigInvalid, did_you_mean

#: Variables are settings when they hold `__` too: `ORCHD_HOME` is none.
ENV_PREFIX = "ORCHD_"


def _means(text: str) -> msgspec.Meta:
    """What a setting is for: `orchctl config show` prints it, and docs/settings.md."""
    return msgspec.Meta(description=text)


class NetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. Addresses are multiaddrs."""

    enabled: Annotated[bool, _means("take part in the network at all")] = True
    listen: Annotated[
        tuple[str, ...],
        _means(
            "addresses to listen on; port 0 is a new one at every start, so choose one that others can note; with none,"
            " this node only dials others"
        ),
    ] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    bootstrap: Annotated[
        tuple[str, ...],
        _means("addresses of peers to connect to at every start, with /p2p/ and the peer's id"),
    ] = ()
    mdns: Annotated[bool, _means("find the nodes on this LAN without any address")] = True
    share_bases: Annotated[
        bool,
        _means(
            "be found under the topic of each base that is here; it tells whoever asks the DHT which bases these are"
        ),
    ] = False
    announce_interval_s: Annotated[
        int, _means("announce every joined topic again this often, in seconds; others forget it after an hour")
    ] = 1500
    # Who joins later finds those who are there, so this is for the rare case that both missed each other.
    lookup_interval_s: Annotated[
        int,
        _means("look for others in every joined topic this often, in seconds, after pauses that double from one"),
    ] = 1800
    bulk: Annotated[
        bool,
        _means(
            "give and take adapters beside libp2p where more than 2 MiB are left to fetch and the peer is connected"
            " directly: over TLS on a port of its own, which has to be open; where it can't be reached, or with"
            " `net.capture`, all goes over libp2p, slower"
        ),
    ] = True
    bulk_port: Annotated[
        int,
        _means(
            "the port for that, opened when somebody asks first; 0: any free one, so give one to open it in a firewall;"
            " that it is taken is a warning in the log at the start"
        ),
    ] = 0
    upload_limit: Annotated[
        int, _means("kilobytes (1000 bytes) a second that peers are given, all together; 0: as many as there are")
    ] = 0
    download_limit: Annotated[
        int, _means("kilobytes (1000 bytes) a second that are taken from peers, all together; 0: as many as there are")
    ] = 0
    upload_slots: Annotated[int, _means("answers with an adapter's bytes that are under way at once")] = 8
    upload_quota_mb: Annotated[
        int, _means("megabytes that one peer is given in an hour; 0: as many as it asks for")
    ] = 20_000
    relay: Annotated[
        bool,
        _means(
            "let peers that nobody can reach directly be reached through this node, a few at once; what they say to"
            " each other can't be read here"
        ),
    ] = True
    relay_limit: Annotated[
        int, _means("kilobytes (1000 bytes) a second that pass through this node for others, all together")
    ] = 1000
    capture: Annotated[
        str | None,
        _means("a folder that every byte sent is recorded in, before encryption, to look at; empty: none"),
    ] = None


class JobsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Background work."""

    parallel: Annotated[
        int, _means("long jobs that run at once, each in a process of its own; as many short ones go beside them")
    ] = 1
    threads: Annotated[int, _means("threads that a job counts with")] = 1
    warm_seconds: Annotated[
        int, _means("how long a process waits for the next job before it ends; a new one starts slower")
    ] = 60
    sandbox: Annotated[
        str,
        _means(
            "auto: a job reaches no network and no files but its own, as far as this system can do that, and its report"
            " says what was in force; required: it does not run where it could reach more; off: nothing is closed"
        ),
    ] = "auto"
    memory_mb: Annotated[int, _means("megabytes that a job may fill; 0: nine tenths of the machine's")] = 0
    silent_seconds: Annotated[
        int,
        _means(
            "a job whose process neither tells nor computes anything for so long while it trains is ended, and goes on"
            " from its checkpoint once; three times as long in other phases, ten times while it computes; 0: never"
        ),
    ] = 300


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of adapters."""

    quota_mb: Annotated[
        int,
        _means(
            "above so many megabytes, fetched adapters that are not pinned or deployed go, the longest unused first;"
            " 0: none go"
        ),
    ] = 0


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Python environment in which workers train."""

    environment: Annotated[
        str,
        _means(
            "where training finds torch and the like: auto: in orchd's own Python if they are all there, else in an"
            " environment below the data folder, which the first training downloads from the package index; own: always"
            " in that environment; off: nothing is downloaded"
        ),
    ] = "auto"
    index_url: Annotated[
        str | None,
        _means(
            "the package index that the environment is downloaded from; empty: what pip is set up for on this machine"
        ),
    ] = None
    torch: Annotated[
        str, _means("the build of torch in that environment; auto: CUDA where `nvidia-smi` shows a GPU, else CPU")
    ] = "auto"


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where `orchctl deploy --target` puts adapters."""

    ollama: Annotated[
        str | None,
        _means("where Ollama answers, as OLLAMA_HOST is written; empty: as that says, else port 11434 here"),
    ] = None
    models_folder: Annotated[
        str | None,
        _means("the folder of `--target folder`, as publisher/model/file.gguf; empty: LM Studio's"),
    ] = None
    vllm: Annotated[str, _means("where vLLM answers")] = "http://127.0.0.1:8000"
    llama_server: Annotated[str, _means("where llama-server answers")] = "http://127.0.0.1:8080"
    llama_presets: Annotated[
        str | None,
        _means("the presets file that llama-server was started with; orchd keeps sections of its own in it"),
    ] = None


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `orchd` writes to standard error."""

    level: Annotated[str, _means("debug, info, warning or error: what is less than this is not logged")] = "info"
    format: Annotated[
        str, _means("text, json, or auto: as the systemd journal wants it where that reads along, else text")
    ] = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    net: NetConfig = NetConfig()
    jobs: JobsConfig = JobsConfig()
    registry: RegistryConfig = RegistryConfig()
    training: TrainingConfig = TrainingConfig()
    serve: ServeConfig = ServeConfig()
    log: LogConfig = LogConfig()


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting with the place its value comes from."""

    key: str
    value: Any
    origin: str
    meaning: str


class Known(NamedTuple):
    """What is known of a setting before anybody sets it."""

    type: Any
    default: Any
    meaning: str


def load(
    config_file: Path,
    environ: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
) -> tuple[Config, tuple[Setting, ...]]:
    """The settings and where each came from.

    `overrides` are flags, as dotted keys with text values. Raises `ConfigInvalid` naming origin, key and value.
    """
    known = known_settings()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(key: str, value: Any, origin: str) -> None:
        if key not in known:
            raise ConfigInvalid(f"{origin}: no setting is called {key!r}", hint=did_you_mean(key, known), field=key)
        values[key] = _convert(key, value, known[key].type, origin)
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
        Setting(key=key, value=_get(config, key), origin=origins.get(key, "default"), meaning=known[key].meaning)
        for key in sorted(known)
    )
    return config, settings


def known_settings() -> dict[str, Known]:
    """Every setting by its dotted key."""
    found: dict[str, Known] = {}
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            plain, meta = get_args(field.type)
            found[f"{section.name}.{field.name}"] = Known(plain, field.default, meta.description)
    return found


def allowed(key: str) -> str:
    """What a setting's value may be, in words."""
    if key in _BOUNDS:
        low, high = _BOUNDS[key]
        return f"{low} to {high}"
    if key in _WORDS:
        return ", ".join(_WORDS[key])
    kinds = {bool: "true or false", tuple[str, ...]: "a list of texts", str | None: "a text, or nothing", str: "a text"}
    return kinds.get(known_settings()[key].type, "")


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
    "jobs.memory_mb": (0, 100_000_000),
    "jobs.silent_seconds": (0, 86_400),
    "net.announce_interval_s": (5, 86_400),
    "net.lookup_interval_s": (1, 86_400),
    "net.upload_limit": (0, 10_000_000),
    "net.download_limit": (0, 10_000_000),
    "net.upload_slots": (1, 256),
    "net.bulk_port": (0, 65_535),
    "net.upload_quota_mb": (0, 100_000_000),
    "registry.quota_mb": (0, 1_000_000_000),
    "net.relay_limit": (64, 10_000_000),
}
_WORDS = {
    "training.environment": ("auto", "own", "off"),
    "training.torch": ("auto", "cpu", "cuda"),
    "jobs.sandbox": ("auto", "required", "off"),
    "log.format": ("auto", "text", "json"),
    "log.level": ("debug", "info", "warning", "error"),
}
