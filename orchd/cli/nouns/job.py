"""`orchctl job`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from orchd.cli.command import Command, Params, arg, opt
from orchd.cli.context import Context, Detached
from orchd.cli.progress import amount, waiting
from orchd.cli.text import duration, fields, lines, outline, table, when
from orchd.errors import EXIT_FAILED

JOB = arg("job", "its id or the beginning of it")
STARTED_BY = {
    "train": ("train", "start"),
    "average": ("average", "start"),
    "average.verify": ("average", "verify"),
    "evaluate": ("adapter", "evaluate"),
    "leak": ("adapter", "leak-report"),
    "fetch": ("adapter", "fetch"),
    "export": ("adapter", "export"),
    "import": ("adapter", "import"),
    "dataset.import": ("dataset", "import"),
    "dataset.create": ("dataset", "create"),
    "dataset.validate": ("dataset", "validate"),
    "dataset.prepare": ("dataset", "prepare"),
    "dataset.preview": ("dataset", "preview"),
    "dataset.stats": ("dataset", "stats"),
    "dataset.export": ("dataset", "export"),
    "base.add": ("base", "add"),
    "deploy": ("deploy", "start"),
    "scrub": ("registry", "scrub"),
    "rebuild": ("registry", "rebuild"),
}
"""Kind of job → noun and verb."""

STATES = ("queued", "running", "cancelling", "done", "failed", "cancelled", "interrupted")


def human_list(shown: dict[str, Any]) -> str:
    rows = [(j["id"], j["title"], j["state"], _how_far(j), when(j["created_ms"]), _took(j)) for j in shown["jobs"]]
    more = f"\nmore: --cursor {shown['cursor']}" if shown["cursor"] else ""
    return table(("id", "job", "state", "done", "asked for", "took"), rows) + more


def human_row(job: dict[str, Any]) -> str:
    error, told = job["error"], _told(job)
    about = fields(
        [
            ("id", job["id"]),
            ("job", f"{job['title']} ({job['kind']})"),
            ("state", job["state"]),
            ("progress", _how_far(job)),
            ("at", _now(job)),
            ("waits", "" if waiting(job["progress"]) else (job["progress"] or {}).get("figures", {}).get("waits")),
            ("silent since", _silent_since(job)),
            ("asked for", when(job["created_ms"])),
            ("took", _took(job)),
            ("sandbox", _sandbox(job.get("sandbox"))),
            ("result", "" if told else outline(job["result"])),
            ("error", error and f"{error['message']} [E{error['code']}]\n{error['hint']}"),
            ("log", error and "\n".join(error["log"])),
        ]
    )
    return f"{about}\n\n{told}" if told else about


def _sandbox(found: dict[str, Any] | None) -> str:
    """What the job's process could not reach, and by which means; first what it could."""
    if not found:
        return ""
    closed = {
        "the network": found["no_network"],
        "other programs' sockets": found["no_sockets"],
        "other files": found["only_own_files"],
    }
    reached = ", ".join(name for name, is_closed in closed.items() if not is_closed)
    means = [
        f"{'' if one['in_force'] else 'not in force: '}{one['name']}: {one['detail']}" for one in found["mechanisms"]
    ]
    head = f"OPEN: {reached}" if reached else "no network, no sockets, only its own files"
    return "\n".join([head, *means])


def _told(job: dict[str, Any]) -> str:
    """The result as the command shows it that starts such jobs; empty where there is none, or it is of another one."""
    if job["result"] is None or job["kind"] not in STARTED_BY:
        return ""
    from orchd.cli.run import load

    noun, verb = STARTED_BY[job["kind"]]
    command = next(one for one in load(noun) if one.verb == verb)
    try:
        return command.human(job["result"])
    except (KeyError, TypeError):
        return ""


def watch(context: Context, options: argparse.Namespace, params: Params) -> int:
    """Follow a job to its end. With --json, progress and the end are a line each."""
    from orchd.rpc.client import job_error, watch_job

    job = context.call("job.show", job=params["job"])
    bar = None
    try:
        bar = context.bar(job["title"])
        ended = watch_job(context.client, job["id"], bar.update if bar else _telling(context), after=0 if bar else None)
    except KeyboardInterrupt:
        raise Detached(job["id"]) from None
    finally:
        if bar:
            bar.clear()
    if ended["state"] != "done" and not context.json:
        raise job_error(ended)
    context.show(ended, human_row)
    if ended["state"] == "done":
        return 0
    return job_error(ended).exit_code or EXIT_FAILED


def report(context: Context, options: argparse.Namespace, params: Params) -> int:
    """Write the page to a file."""
    job = context.call("job.show", job=params["job"])
    path = write_page(context, job["id"], params.get("out") or _page_of(context, job["id"]))
    context.show({"job": job["id"], "path": path}, lambda shown: shown["path"])
    return 0


def _page_of(context: Context, job: str) -> str:
    """Where pages lie that nobody gave a place: beside the logs of the jobs."""
    from pathlib import Path

    from orchd.paths import Paths

    folder = Paths.from_env(context.environ).state / "reports"
    with contextlib.suppress(OSError):  # writing the page will say what is wrong
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(folder / f"{job}.html")


def write_page(context: Context, job: str, file: str) -> str:
    """The report of a job as a file; its whole path. Raises `OutputRefused`."""
    from pathlib import Path

    from orchd.errors import OutputRefused

    page = context.call("job.report", job=job)["html"]
    path = Path(file).absolute()
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        hint = "Name a file in a folder that you may write to with `--out`."
        raise OutputRefused(f"{path} can't be written: {error.strerror}", hint=hint, field="out") from None
    return str(path)


def _telling(context: Context) -> Any:
    if not context.json:
        return None
    return lambda progress: context.show({"progress": progress})


def _how_far(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if not progress:
        return ""
    if waits := waiting(progress):
        return waits
    left = f", {duration(progress['eta_s'])} left" if progress["eta_s"] else ""
    return f"{amount(progress['done'], progress['total'], progress['unit'])}{left}"


def _now(job: dict[str, Any]) -> str:
    """What it does where that is no training: making its environment, preparing."""
    figures = (job["progress"] or {}).get("figures", {})
    return ", ".join(str(figures[name]) for name in ("phase", "step", "package") if name in figures)


def _silent_since(job: dict[str, Any]) -> str:
    since_ms = (job["progress"] or {}).get("figures", {}).get("silent_since_ms")
    return when(since_ms) if since_ms else ""


def _took(job: dict[str, Any]) -> str:
    if job.get("seconds") is not None:
        return duration(job["seconds"])
    if not (job["started_ms"] and job["finished_ms"]):
        return ""
    return duration(max(0, job["finished_ms"] - job["started_ms"]) / 1000)  # it ended with another daemon


COMMANDS = (
    Command(
        "list",
        "Jobs of this node, newest first",
        human_list,
        method="job.list",
        arguments=(
            opt("--state", "only these", choices=STATES),
            opt("--limit", "how many (50)", type=int, metavar="N"),
            opt("--cursor", "go on from there", metavar="JOB"),
        ),
    ),
    Command("show", "One job: its state, progress, result or error", human_row, method="job.show", arguments=(JOB,)),
    Command(
        "watch",
        "Follow a job to its end",
        human_row,
        method="job.wait",
        run=watch,
        more=(
            "Draws a progress bar on a terminal, with a sparkline of a training's loss. Ctrl-C leaves the job running."
            " The exit code is the job's."
        ),
        arguments=(JOB,),
    ),
    Command(
        "cancel",
        "Ask a queued or running job to stop",
        lambda job: f"{job['id']} is {job['state']}",
        method="job.cancel",
        changes=True,
        subject=("job.show", "job"),
        arguments=(JOB,),
    ),
    Command(
        "logs",
        "The last lines of a job's log",
        lambda shown: lines(shown["lines"]),
        method="job.logs",
        arguments=(JOB, opt("--limit", "how many (200)", type=int, metavar="N")),
    ),
    Command(
        "report",
        "A page about a training with its curves, an evaluation with the answers, or an average",
        str,
        method="job.report",
        run=report,
        arguments=(JOB, opt("--out", "the file to write (reports/JOB.html in the state folder)", metavar="FILE")),
    ),
)
