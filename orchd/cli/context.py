"""What a command has at hand: the daemon's socket, and the two streams that people and programs read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from orchd.errors import OrchdError

if TYPE_CHECKING:
    from orchd.cli.command import Command, Params
    from orchd.rpc.client import Client


class Detached(Exception):
    """Ctrl-C while a job was followed: the job goes on."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job


class Context:
    """Results go to `out`; progress, notes and errors for people go to `err`."""

    def __init__(self, *, json: bool, quiet: bool, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> None:
        self.json = json
        self.quiet = quiet
        self.out = out
        self.err = err
        self.environ = environ
        self.doubts: set[str] = set()  # what was said against a training
        self._client: Client | None = None

    @classmethod
    def standard(cls, *, json: bool, quiet: bool) -> Context:
        return cls(json=json, quiet=quiet, out=sys.stdout, err=sys.stderr, environ=os.environ)

    # ---- the daemon ---------------------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The one connection of this command. Raises `DaemonUnreachable`."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    def connect(self) -> Client:
        """A new connection to the daemon of this environment."""
        from orchd.paths import Paths
        from orchd.rpc.client import Client

        return Client(Paths.from_env(self.environ).socket)

    def call(self, method: str, /, **params: Any) -> Any:
        return self.client.call(method, **params)

    def run_job(self, command: Command, params: Params, *, detach: bool) -> int:
        """Start a job and follow it to its end, unless `detach`."""
        started = self.call(command.method, **params)
        job = started["job"]
        if started.get("note"):
            self.note(started["note"])
        if job is None:  # nothing was to be done
            self.show(started["deployment"], command.human)
            return 0
        if detach:
            self.show({"job": job}, lambda shown: str(shown["job"]))
            return 0
        result = self.follow(job)
        self.show(result, command.human)
        if command.then and not self.json and (told := command.then(result)):
            self.note(f"\nnext: {told}")
        return command.verdict(result) if command.verdict else 0

    def follow(self, job: str) -> Any:
        """A job's result, once it is there; a bar is drawn meanwhile. Raises the job's error, or `Detached`."""
        from orchd.cli.progress import waiting
        from orchd.rpc.client import wait_job

        bar = None
        try:
            found = self.call("job.show", job=job)
            bar = self.bar(found["title"])
            if bar is None:
                self.note(": ".join(filter(None, [f"job {job}", waiting(found["progress"])])))
            elif found["progress"]:
                bar.update(found["progress"])
            return wait_job(self.client, job, self._doubting(job, bar))
        except KeyboardInterrupt:
            raise Detached(job) from None
        finally:
            if bar:
                bar.clear()

    def _doubting(self, job: str, bar: Any) -> Callable[[dict[str, Any]], None]:
        """Draws progress; what speaks against a training is said once, as soon as that is known."""

        def update(progress: dict[str, Any]) -> None:
            doubt = progress.get("figures", {}).get("doubt")
            if doubt and doubt not in self.doubts:
                self.doubts.add(doubt)
                if bar:
                    bar.clear()
                self.note(f"this training is not worth it: {doubt}\n`orchctl job cancel {job}` stops it")
            if bar:
                bar.update(progress)

        return update

    # ---- what is shown ------------------------------------------------------------------------------------------

    def show(self, result: Any, human: Callable[[Any], str] = str) -> None:
        """The result: JSON for programs, `human(result)` for people."""
        from orchd.cli.text import printable

        text = self._json(result) if self.json else printable(human(result))
        if text:
            print(text, file=self.out, flush=True)

    def show_error(self, error: OrchdError) -> None:
        if self.json:
            shown = {name: getattr(error, name) for name in ("code", "name", "message", "hint", "page", "field")}
            print(self._json({"error": shown}), file=self.out, flush=True)
            return
        from orchd.cli.text import painted, printable

        word = painted("error:", "red", self.err, self.environ)
        told = printable(f"{error.message} [E{error.code}]\n  {error.hint}")
        print(f"{word} {told}", file=self.err, flush=True)

    def show_detached(self, job: str) -> None:
        if self.json:
            print(self._json({"job": job, "detached": True}), file=self.out, flush=True)
        self.note(
            f"\nThe job goes on. `orchctl job watch {job}` shows it again, `orchctl job cancel {job}` stops it.",
            always=True,
        )

    def show_plan(self, command: Command, params: Params) -> None:
        """--dry-run: what would be called, and for what; unknown things are errors here too."""
        subject = None
        if command.subject:
            method, name = command.subject
            subject = self.call(method, **{name: params[name]})
        plan: dict[str, Any] = {"dry_run": True, "method": command.method, "params": params, "subject": subject}
        told = ": ".join(filter(None, [f"would {_lowered(command.summary)}", _named(subject, params)]))
        self.show(plan, lambda _: told)

    def note(self, text: str, *, always: bool = False) -> None:
        """A line for people, beside the result."""
        if always or not self.quiet:
            print(text, file=self.err, flush=True)

    def agreed(self, warning: str) -> bool:
        """Whether the user goes on after a warning. Only a person at a terminal is asked."""
        if self.json or not sys.stdin.isatty():
            return True
        print(f"{warning} Go on? [y/N] ".lstrip(), end="", file=self.err, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
        self.note("nothing was done", always=True)
        return False

    def bar(self, label: str) -> Any:
        """A progress bar, or None where nobody would see it."""
        if self.json or self.quiet or not self.err.isatty():
            return None
        from orchd.cli.progress import Bar

        return Bar(label, self.err)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @staticmethod
    def _json(value: Any) -> str:
        import json

        return json.dumps(value, ensure_ascii=False)


def _lowered(summary: str) -> str:
    return summary[:1].lower() + summary[1:]


def _named(subject: Any, params: Params) -> str:
    if isinstance(subject, dict) and subject.get("id"):
        return f"{subject.get('name') or subject.get('title')} ({subject['id']})"
    if isinstance(subject, dict) and subject.get("subject"):
        here = ", ".join(one["name"] for one in subject["adapters"])
        return f"{subject['kind']} {subject['subject']} ({subject['level']} now{here and f'; here: {here}'})"
    return ", ".join(f"{name} {value}" for name, value in params.items())
