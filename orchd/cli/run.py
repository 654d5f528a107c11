"""From the words of a command line to its exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from orchd.cli.command import Command, Params
from orchd.cli.context import Context, Detached
from orchd.cli.table import EXIT_CODES, JSON_NOTE, NOUNS
from orchd.errors import EXIT_FAILED, EXIT_INTERRUPTED, OrchdError, UsageInvalid, did_you_mean

LEADING = frozenset({"--json", "--quiet", "-q"})
"""May stand before the noun too."""

OWN = frozenset({"json", "quiet", "detach", "dry_run", "yes", "command"})
"""Arguments that are for `orchctl`, not for the method."""

OUTSIDE = frozenset({"demo"})
"""Nouns with a command line of their own."""


def run(words: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; prints every error that a user can meet."""
    words = _leading_to_the_end(words)
    context = Context.standard(json="--json" in words, quiet="--quiet" in words or "-q" in words)
    try:
        return _run(words, context)
    except OrchdError as error:
        context.show_error(error)
        return error.exit_code
    except Detached as detached:
        context.show_detached(detached.job)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        context.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    finally:
        context.close()


def _run(words: Sequence[str], context: Context) -> int:
    noun = words[0]
    if noun in LEADING:
        raise UsageInvalid("a noun is missing")
    if noun not in NOUNS:
        raise _unknown(noun)
    if noun in OUTSIDE:
        from orchd.demo import main

        return main(list(words[1:]))
    options = _parsed(noun, words[1:])
    command: Command = options.command
    params = {name: value for name, value in vars(options).items() if name not in OWN and value is not None}
    return _carry_out(command, context, options, params)


def _carry_out(command: Command, context: Context, options: argparse.Namespace, params: Params) -> int:
    if command.changes and options.dry_run:
        context.show_plan(command, params)
        return 0
    if command.for_good and not options.yes and not params.get("preview") and not context.agreed(command.for_good):
        return EXIT_INTERRUPTED
    if command.run is not None:
        return command.run(context, options, params) or 0
    if command.job:
        return context.run_job(command, params, detach=options.detach)
    result = context.call(command.method, **params)
    context.show(result, command.human)
    return command.verdict(result) if command.verdict else 0


def _parsed(noun: str, words: Sequence[str]) -> argparse.Namespace:
    """Options may stand anywhere, also between the arguments: argparse does that for one command, not below verbs."""
    words, verbs = _leading_to_the_end(words), NOUNS[noun][1]
    if not verbs:
        return parser(noun).parse_intermixed_args(words)
    if words and words[0] in verbs:
        command = next(one for one in load(noun) if one.verb == words[0])
        return _fill(Parser(prog=f"orchctl {noun} {command.verb}", **_words(command)), command).parse_intermixed_args(
            words[1:]
        )
    if words and not words[0].startswith("-"):
        hint = did_you_mean(words[0], verbs) or f"`orchctl {noun} --help` lists what it knows."
        raise UsageInvalid(f"`orchctl {noun}` knows no {words[0]!r}", hint=hint)
    return parser(noun).parse_args(words)


class Parser(argparse.ArgumentParser):
    """Raises instead of printing and leaving, so that --json holds for wrong words too."""

    def error(self, message: str) -> NoReturn:
        left_over, _, words = message.partition("unrecognized arguments: ")
        hint = None if left_over or not words else self._about(words)
        raise UsageInvalid(message, hint=hint or f"`{self.prog} --help` shows how it goes.")

    def _about(self, words: str) -> str | None:
        """What may have been meant by words that are left over."""
        first = words.split()[0]
        if first.startswith("-"):
            return did_you_mean(first.partition("=")[0], self._option_string_actions)
        return f"Words that belong together stand in quotes, 'like these'; `{self.prog} --help` shows how it goes."


def parser(noun: str) -> argparse.ArgumentParser:
    """The parser of one noun, with all its verbs, for its help."""
    commands = load(noun)
    if not NOUNS[noun][1]:
        return _fill(Parser(prog=f"orchctl {noun}", **_words(commands[0])), commands[0])
    made = Parser(
        prog=f"orchctl {noun}",
        description=NOUNS[noun][0],
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(metavar="VERB", required=True)
    for command in commands:
        _fill(verbs.add_parser(command.verb, help=command.summary, **_words(command)), command)
    return made


def load(noun: str) -> tuple[Command, ...]:
    """The commands of a noun."""
    commands: tuple[Command, ...] = importlib.import_module(f"orchd.cli.nouns.{noun}").COMMANDS
    return commands


def _words(command: Command) -> dict[str, Any]:
    """What its --help says beside the arguments."""
    return {
        "description": "\n\n".join(filter(None, [command.summary, command.more])),
        "epilog": f"{JSON_NOTE}\n\n{EXIT_CODES}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _fill(made: argparse.ArgumentParser, command: Command) -> argparse.ArgumentParser:
    for argument in command.arguments:
        made.add_argument(*argument.names, **argument.options)
    if command.job:
        made.add_argument("--detach", action="store_true", help="print the job's id and leave at once")
    if command.changes:
        made.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    if command.for_good:
        made.add_argument("--yes", action="store_true", help="do not ask")
    made.add_argument("--json", action="store_true", help="JSON on standard output")
    made.add_argument("--quiet", "-q", action="store_true", help="no progress, no notes")
    made.set_defaults(command=command)
    return made


def _leading_to_the_end(words: Sequence[str]) -> list[str]:
    """`orchctl --json status` is `orchctl status --json`."""
    leading = []
    rest = list(words)
    while rest and rest[0] in LEADING:
        leading.append(rest.pop(0))
    return [*rest, *leading]


def _unknown(noun: str) -> UsageInvalid:
    hint = did_you_mean(noun, NOUNS, before="orchctl ") or "`orchctl --help` lists the nouns."
    return UsageInvalid(f"orchctl knows no {noun!r}", hint=hint)
