"""`orchctl demo`: the arguments, the run, and an end that leaves nothing behind however it comes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from orchd.demo import real
from orchd.demo.cast import Cast, CastClosed
from orchd.demo.examples import Examples
from orchd.demo.players import Plan
from orchd.demo.prompt import questions, side_by_side
from orchd.demo.real_page import write_page
from orchd.demo.real_screen import RealScreen
from orchd.demo.report import write_report
from orchd.demo.screen import Screen
from orchd.demo.story import Story
from orchd.demo.terminal import Terminal
from orchd.errors import EXIT_FAILED, EXIT_INTERRUPTED, DemoFailed, OrchdError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_ROUNDS = 8
#: No signal has this number.
OVER = b"\0"


def run(argv: Sequence[str] | None = None) -> int:
    """Play the demo. Returns 0 only when every check held, 130 when it was interrupted."""
    options = parser().parse_args(argv)
    terminal = Terminal(sys.stderr if options.json else sys.stdout)
    play: _Demo | _Real = (_Real if options.real or options.model else _Demo)(options, terminal)
    signals = _Signals()
    try:
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        cast = play.cast()
    except OrchdError as error:
        play.screen.failed(error)
        return error.exit_code
    except OSError as error:
        play.screen.failed(DemoFailed(str(error), hint="Name a folder that can be written with --out or $TMPDIR."))
        return EXIT_FAILED
    try:
        return _Run(options, signals, cast, play).play()
    finally:
        cast.close()
        if options.keep:
            play.screen.kept(cast.root)


@dataclass(frozen=True)
class _Ended:
    """How a story ended. `tell` writes its page into a folder, if there is one, and tells the end."""

    ok: bool
    json: Mapping[str, Any]
    tell: Callable[[Path | None], None]


class _Demo:
    """The demo on the shipped base."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        self.options = options
        self.screen = Screen(terminal, quiet=options.quiet)
        self.story: Story

    def cast(self) -> Cast:
        """Its stage. Raises numbered errors where something is missing."""
        examples = Examples.find(self.options.examples)
        cast = Cast(keep=self.options.keep)
        plan = Plan(examples=examples, rounds=self.options.rounds, seed=self.options.seed)
        self.story = Story(plan, cast, self.screen)
        return cast

    def run(self) -> _Ended:
        results = self.story.run()

        def tell(out: Path | None) -> None:
            self.screen.finale(results, None if out is None else write_report(results, out))

        return _Ended(results.ok, results.to_json(), tell)

    def prompt(self) -> None:
        """Only C is needed for it; the others go first."""
        for peer in self.story.peers:
            self.story.cast.stop(peer.node)
        side_by_side(self.story, self.screen)


class _Real:
    """The demo on a real model."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        self.options = options
        self.screen = RealScreen(terminal, quiet=options.quiet)
        self.story: real.RealStory

    def cast(self) -> Cast:
        if self.options.model is not None and not self.options.model.is_file():
            hint = "Give the path of a GGUF file, or leave --model out: then it is downloaded."
            raise DemoFailed(f"{self.options.model} is not there", hint=hint)
        cast = Cast(keep=self.options.keep, more=real.SPACE)
        self.story = real.RealStory(self.options.model, self.options.seed, cast, self.screen)
        return cast

    def run(self) -> _Ended:
        results = self.story.run()

        def tell(out: Path | None) -> None:
            self.screen.real_finale(results, None if out is None else write_page(results, out))

        return _Ended(results.ok, results.to_json(), tell)

    def prompt(self) -> None:
        questions(self.story, self.screen)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="orchctl demo",
        description="Two people teach one model a language, and neither shows the other a sentence: the whole loop "
        "with real daemons on this machine, in two or three minutes.",
        epilog="exit codes: 0 every check held, 1 one did not or a step failed, 2 usage, 5 the examples are missing, "
        "130 interrupted",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="write report.html and demo.svg there")
    made.add_argument(
        "--real", action="store_true", help="on SmolLM2-135M, ten minutes, 93 MB to download (unfinished)"
    )
    made.add_argument(
        "--model", type=Path, metavar="FILE", help="with --real: its GGUF file, instead of downloading it"
    )
    made.add_argument("--rounds", type=_rounds, default=3, metavar="N", help="rounds of training (3)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of every random choice (0)")
    made.add_argument("--examples", type=Path, metavar="DIR", help="where the three files of sentences lie")
    made.add_argument("--no-prompt", action="store_true", help="do not ask for sentences in the end")
    made.add_argument("--json", action="store_true", help="one JSON object on standard output, the story beside it")
    made.add_argument("--quiet", action="store_true", help="do not tell the story")
    made.add_argument("--keep", action="store_true", help="keep the homes of the daemons, and say where they are")
    return made


def _rounds(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= MOST_ROUNDS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_ROUNDS}")
    return int(text)


class _Signals:
    """SIGINT, SIGTERM and SIGHUP as bytes on a socket, so that none of them breaks off a clean-up halfway.

    A wake-up descriptor and no Python handler that wakes somebody: the kernel may give a signal to any thread, and
    then the handler would wait until the main thread wakes of itself (seen here, one time in some thirty).
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _do_nothing)

    def wait(self) -> bool:
        """Whether a signal came before `over` was called."""
        return self._receiver.recv(1) != OVER

    def over(self) -> None:
        self._sender.send(OVER)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A signal without a handler would end the process at once."""


class _Run:
    """The story runs in a thread; the main thread waits for its end or for a signal, whichever comes first."""

    def __init__(self, options: argparse.Namespace, signals: _Signals, cast: Cast, play: _Demo | _Real) -> None:
        self.options = options
        self.signals = signals
        self.cast = cast
        self.demo = play
        self.screen = play.screen
        self.outcome: _Ended | BaseException

    def play(self) -> int:
        thread = threading.Thread(target=self._tell, name="story", daemon=True)
        thread.start()
        if self.signals.wait():
            return self._interrupted()
        if isinstance(self.outcome, BaseException):
            return self._failed(self.outcome)
        return self._ended(self.outcome)

    def _tell(self) -> None:
        try:
            self.outcome = self.demo.run()
        except BaseException as error:  # handed to the main thread, which tells it
            self.outcome = error
        self.signals.over()

    def _interrupted(self) -> int:
        self.screen.quiet = True
        self.cast.close()
        self.screen.interrupted(kept=self.cast.root if self.options.keep else None)
        return EXIT_INTERRUPTED

    def _failed(self, error: BaseException) -> int:
        if isinstance(error, OrchdError):
            self.screen.failed(error)
            return error.exit_code
        if isinstance(error, CastClosed):
            return EXIT_INTERRUPTED
        if isinstance(error, BrokenPipeError):  # whoever read the story has left (`orchctl demo | head`)
            self.screen.terminal.stream = open(os.devnull, "w")  # noqa: SIM115
            os.dup2(self.screen.terminal.stream.fileno(), sys.stdout.fileno())
            return EXIT_INTERRUPTED
        raise error

    def _ended(self, ended: _Ended) -> int:
        ended.tell(self.options.out)
        if self.options.json:
            print(json.dumps(ended.json, ensure_ascii=False), flush=True)
        elif not self.options.no_prompt and sys.stdin.isatty() and self.screen.terminal.is_terminal:
            self._prompt()
        return 0 if ended.ok else EXIT_FAILED

    def _prompt(self) -> None:
        """Ctrl-C and Ctrl-D end it."""
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        try:
            self.demo.prompt()
        except (KeyboardInterrupt, EOFError):
            self.screen.terminal.line()
        finally:
            for number in SIGNALS:
                signal.signal(number, _do_nothing)
