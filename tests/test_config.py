"""Does each setting come from the right place, and does a wrong one say so with its name?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from orchd.cli.nouns.config import human
from orchd.config import Config, Setting, allowed, known_settings, load
from orchd.errors import ConfigInvalid


def _load(
    folder: Path, text: str = "", environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> tuple[Config, dict[str, Setting]]:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    config, settings = load(file, environ or {}, flags)
    return config, {setting.key: setting for setting in settings}


def test_without_a_file_everything_is_default(tmp_path: Path) -> None:
    config, settings = load(tmp_path / "none.toml", {})
    assert config == Config()
    assert {setting.origin for setting in settings} == {"default"}


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    text = "[jobs]\nparallel = 2\nthreads = 2\nwarm_seconds = 2"
    environ = {"ORCHD_JOBS__PARALLEL": "3", "ORCHD_JOBS__THREADS": "3"}
    config, settings = _load(tmp_path, text, environ, {"jobs.parallel": "4"})
    assert (config.jobs.parallel, config.jobs.threads, config.jobs.warm_seconds) == (4, 3, 2)
    assert settings["jobs.parallel"].origin == "command line"
    assert settings["jobs.threads"].origin == "$ORCHD_JOBS__THREADS"
    assert settings["jobs.warm_seconds"].origin == str(tmp_path / "config.toml")
    assert settings["net.mdns"].origin == "default"


def test_every_setting_is_listed_with_its_value(tmp_path: Path) -> None:
    config, settings = _load(tmp_path, "[net]\nmdns = false")
    assert settings["net.mdns"].value is False
    assert settings["net.listen"].value == config.net.listen
    assert len(settings) == 15 + 6 + 1 + 3 + 5 + 2 + 1


def test_lists_in_the_environment_are_divided_by_commas(tmp_path: Path) -> None:
    config, _ = _load(tmp_path, environ={"ORCHD_NET__BOOTSTRAP": " /ip4/1.2.3.4/tcp/5 ,/dns4/a/tcp/6,"})
    assert config.net.bootstrap == ("/ip4/1.2.3.4/tcp/5", "/dns4/a/tcp/6")


def test_an_empty_variable_empties_a_list_and_unsets_an_optional_setting(tmp_path: Path) -> None:
    environ = {"ORCHD_NET__LISTEN": "", "ORCHD_NET__CAPTURE": ""}
    config, _ = _load(tmp_path, "[net]\ncapture = '/tmp/x'", environ)
    assert config.net.listen == ()
    assert config.net.capture is None


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_switches_in_the_environment(tmp_path: Path, text: str, value: bool) -> None:
    assert _load(tmp_path, environ={"ORCHD_NET__MDNS": text})[0].net.mdns is value


def test_the_bounds_themselves_are_taken(tmp_path: Path) -> None:
    for value in (1, 64):
        assert _load(tmp_path, f"[jobs]\nparallel = {value}")[0].jobs.parallel == value


def test_variables_of_others_are_none_of_ours(tmp_path: Path) -> None:
    assert _load(tmp_path, environ={"OTHER_NET__MDNS": "maybe", "NET__MDNS": "0"})[0] == Config()


def test_a_variable_without_two_underscores_is_no_setting(tmp_path: Path) -> None:
    assert _load(tmp_path, environ={"ORCHD_HOME": "/x", "ORCHD_SYSTEM": "1"})[0] == Config()


def test_a_misspelt_key_names_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"net\.listne") as caught:
        _load(tmp_path, "[net]\nlistne = []")
    assert "net.listen" in caught.value.hint
    assert caught.value.field == "net.listne"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("net = 1", "net"),
        ("x = 1", "x"),
        ("[[y]]\nz = 1", "y"),
        ("[net]\nmdns = 1", "net.mdns"),
        ("[net]\ncapture = 5", "net.capture"),
        ("[net]\nlisten = ['a', 1]", "net.listen"),
        ("[net.listen]\na = 1", "net.listen"),
        ("[jobs]\nparallel = true", "jobs.parallel"),
        ("[jobs]\nparallel = 2.0", "jobs.parallel"),
        ("[jobs]\nparallel = nan", "jobs.parallel"),
        ("[jobs]\nparallel = 0", "jobs.parallel"),
        ("[jobs]\nparallel = 65", "jobs.parallel"),
        ("[jobs]\nparallel = 99999999999999999999999", "jobs.parallel"),
        ("[jobs]\nthreads = -1", "jobs.threads"),
        ("[jobs]\nwarm_seconds = -1", "jobs.warm_seconds"),
        ("[net]\nannounce_interval_s = 0", "net.announce_interval_s"),
        ("[net]\nlookup_interval_s = 0", "net.lookup_interval_s"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("[log]\nformat = 'xml'", "log.format"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"config\.toml") as caught:
        _load(tmp_path, text)
    assert caught.value.field == key
    assert key in caught.value.message


@pytest.mark.parametrize("content", [b"[net", b"\xff\xfe", b"a = 1\na = 2", b"[net]\nmdns = tru"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"config\.toml"):
        load(file, {})


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=str(tmp_path)):
        load(tmp_path, {})


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"\$ORCHD_JOBS__THREADS.*many"):
        _load(tmp_path, environ={"ORCHD_JOBS__THREADS": "many"})
    with pytest.raises(ConfigInvalid, match=r"\$ORCHD_WHAT__X"):
        _load(tmp_path, environ={"ORCHD_WHAT__X": "1"})


def test_what_is_shown_is_a_file_of_settings(tmp_path: Path) -> None:
    config, settings = _load(tmp_path, "[net]\nmdns = false\nbootstrap = ['/ip4/1.2.3.4/tcp/5']")
    shown = human({"settings": [msgspec.to_builtins(setting) for setting in settings.values()]})
    assert "net.mdns = false  # " in shown
    assert 'net.bootstrap = ["/ip4/1.2.3.4/tcp/5"]' in shown
    assert _load(tmp_path, shown)[0] == config


def test_each_setting_says_what_it_is_for() -> None:
    meanings = [known.meaning for known in known_settings().values()]
    assert all(meanings)
    assert len(set(meanings)) == len(meanings)


def test_each_setting_says_what_it_may_be() -> None:
    assert all(allowed(key) for key in known_settings())
    assert allowed("net.relay_limit") == "64 to 10000000"
    assert allowed("log.format") == "auto, text, json"


def test_lists_in_variables_and_flags(tmp_path: Path) -> None:
    both = "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001"
    assert _load(tmp_path, environ={"ORCHD_NET__LISTEN": both})[0].net.listen == tuple(both.split(","))
    assert _load(tmp_path, flags={"net.listen": ""})[0].net.listen == ()


def test_the_page_of_settings_is_up_to_date() -> None:
    """`make settings` writes it."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "tools/settings_page.py"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
