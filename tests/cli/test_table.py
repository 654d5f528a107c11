"""`orchctl --help`, the commands, the daemon's method table and the OpenRPC document say the same."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from orchd.cli.command import Command
from orchd.cli.run import OUTSIDE, OWN, load, parser
from orchd.cli.table import EXIT_CODES, NOUNS, overview
from orchd.rpc.discover import document
from orchd.rpc.methods import TABLE

WITHOUT_A_COMMAND = {"events.unsubscribe", "chat.pick", "chat.standing"}
"""Ctrl-C does the first, `orchctl chat --ab` the others."""

ELSEWHERE = {
    "chat.complete": {"messages", "stream"},
    "chat": {"text", "system", "ab", "picks", "route"},
    "adapter.list": {"announced"},
    "dataset.create": {"file", "rows"},
    "dataset.stats": {"page"},
    "train.plan": {"lora_rank", "lora_alpha"},
    **{f"train.{verb}": {"lora_rank", "lora_alpha", "yes"} for verb in ("start", "continue_from")},
    "job.report": {"out"},
    "adapter.evaluate": {"page"},
    "adapter.compare": {"page"},
    "base.add": {"yes", "dry_run"},
}
"""Parameters that a command makes itself or calls otherwise (--rank for lora_rank), and arguments that aren't any."""

INSIDE = [noun for noun in NOUNS if noun not in OUTSIDE]
COMMANDS: list[tuple[str, Command]] = [(noun, command) for noun in INSIDE for command in load(noun)]
CALLING = [(noun, command) for noun, command in COMMANDS if command.method]


def test_every_method_has_a_command_and_the_document_names_it() -> None:
    called = {command.method for _, command in CALLING}
    assert called == set(TABLE) - WITHOUT_A_COMMAND
    assert [method["name"] for method in document(TABLE)["methods"]] == sorted(TABLE)


@pytest.mark.parametrize("noun", INSIDE)
def test_the_static_table_lists_the_verbs(noun: str) -> None:
    _, verbs = NOUNS[noun]
    commands = load(noun)
    if verbs:
        assert tuple(command.verb for command in commands if command.verb in verbs) == verbs
    else:
        assert len(commands) == 1


@pytest.mark.parametrize(("noun", "command"), CALLING, ids=lambda value: getattr(value, "method", ""))
def test_arguments_are_the_methods_parameters(noun: str, command: Command) -> None:
    known = set(TABLE[command.method].params.__struct_fields__)
    given = {
        action.dest
        for argument in command.arguments
        for action in [argparse.ArgumentParser().add_argument(*argument.names, **argument.options)]
    }
    elsewhere = ELSEWHERE.get(command.method, set())
    assert given - known <= elsewhere | ELSEWHERE.get(noun, set())
    assert known - given <= elsewhere
    assert not known & OWN


@pytest.mark.parametrize(("noun", "command"), CALLING, ids=lambda value: getattr(value, "method", ""))
def test_commands_that_start_jobs_can_detach(noun: str, command: Command) -> None:
    assert command.job == ("job" in getattr(TABLE[command.method].result, "__struct_fields__", ()))


def test_help_tells_nouns_verbs_and_exit_codes() -> None:
    text = overview()
    for noun, (_, verbs) in NOUNS.items():
        assert f"\n  {noun} " in text
        assert " ".join(verbs) in text
    assert EXIT_CODES in text


@pytest.mark.parametrize(("noun", "command"), COMMANDS, ids=lambda value: getattr(value, "verb", value))
def test_each_help_documents_the_exit_codes(noun: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    verb = [command.verb] if NOUNS[noun][1] else []
    with pytest.raises(SystemExit) as left:
        parser(noun).parse_args([*verb, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert EXIT_CODES in shown
    assert "--json" in shown
    assert shown.startswith(" ".join(["usage: orchctl", noun, *verb]))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "orchd.cli.main", *words], capture_output=True, text=True, check=False)


def test_help_and_usage_from_outside() -> None:
    assert run("--help").stdout == overview() + "\n"
    nothing = run()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert run("--version").stdout.startswith("orchctl ")


@pytest.mark.parametrize("statement", ["main(['--help'])", "main(['status'])", "main(['train', 'start', '--help'])"])
def test_a_command_line_loads_the_standard_library_only(statement: str) -> None:
    code = (
        "import sys, os\nfrom orchd.cli.main import main\n"
        "try:\n    " + statement + "\nexcept SystemExit:\n    pass\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'msgspec', 'platformdirs', 'cryptography', 'asyncio', 'trio', 'duckdb', 'numpy'}))"
    )
    environment = {"ORCHD_HOME": "/nonexistent", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
