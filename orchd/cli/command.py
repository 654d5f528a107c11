"""What a command of `orchctl` is. A noun's file is a tuple of these."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from orchd.cli.context import Context

Params = dict[str, Any]


class Argument(NamedTuple):
    """For `ArgumentParser.add_argument`. Its name is that of the method's parameter."""

    names: tuple[str, ...]
    options: Mapping[str, Any]


class Command(NamedTuple):
    """`orchctl NOUN VERB`.

    Without `run` it calls `method` with its arguments as the parameters and shows the result through `human`. With
    `job` the method starts a job, which is followed to its end; with `changes` it can be tried with --dry-run, which
    shows what `subject` (a method and its parameter) finds. `verdict` makes the exit code from the result, `then` a
    note for people on what may come next, from the result of a job.
    `for_good` says what nothing takes back; a user at a terminal is asked then, unless --yes is given.
    """

    verb: str
    summary: str
    human: Callable[[Any], str] = str
    method: str = ""
    arguments: tuple[Argument, ...] = ()
    run: Callable[[Context, argparse.Namespace, Params], int | None] | None = None
    job: bool = False
    changes: bool = False
    subject: tuple[str, str] | None = None
    verdict: Callable[[Any], int] | None = None
    more: str = ""
    for_good: str = ""
    then: Callable[[Any], str] | None = None


def arg(name: str, help: str, **options: Any) -> Argument:
    """A positional argument."""
    return Argument((name,), {"help": help, **options})


def opt(name: str, help: str, **options: Any) -> Argument:
    """An option; left out of the call when it isn't given."""
    return Argument((name,), {"help": help, "default": None, **options})


def switch(name: str, help: str, **options: Any) -> Argument:
    """An option without a value."""
    action = {"action": "store_const", "const": True, "default": None}
    return Argument((name,), {"help": help, **action, **options})
