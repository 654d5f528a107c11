"""`orchctl service`: `orchd/cli/service.py` with words around it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from orchd.cli.command import Command, Params, switch
from orchd.cli.context import Context
from orchd.cli.service import Service, Step, carry_out, program_path, run_command
from orchd.cli.text import fields

SYSTEM = switch("--system", "the machine's service instead of this user's (needs root)")
DRY_RUN = switch("--dry-run", "say what would be done, and do nothing", dest="dry_run")


def install(context: Context, options: argparse.Namespace, params: Params) -> None:
    service = Service.of(system=bool(params.get("system")))
    steps = service.install_steps(program_path())
    _do(context, options, service, steps, done=f"installed and started: {service.path}")


def uninstall(context: Context, options: argparse.Namespace, params: Params) -> None:
    service = Service.of(system=bool(params.get("system")))
    steps = service.uninstall_steps()
    _do(context, options, service, steps, done="uninstalled; data and settings stay" if steps else "not installed")


def status(context: Context, options: argparse.Namespace, params: Params) -> int:
    found = Service.of(system=bool(params.get("system"))).status(run_command)
    context.show(dataclasses.asdict(found), _human_status)
    return 0 if found.running else 3


def _do(context: Context, options: argparse.Namespace, service: Service, steps: list[Step], done: str) -> None:
    if options.dry_run:
        plan = {"dry_run": True, "steps": [_plain(step) for step in steps]}
        context.show(plan, lambda _: "\n".join(_told(step) for step in steps) or "nothing to do")
        return
    service.check_rights()
    carry_out(steps, run_command)
    context.show({"done": [_plain(step) for step in steps]}, lambda _: done)


def _plain(step: Step) -> dict[str, Any]:
    return {
        "command": list(step.command) or None,
        "path": str(step.path) if step.path else None,
        "text": step.text,
    }


def _told(step: Step) -> str:
    if step.text is None:
        return f"would {step}"
    return f"would {step}:\n" + "\n".join(f"    {line}" for line in step.text.splitlines())


def _human_status(found: dict[str, Any]) -> str:
    return fields(
        [
            ("service", f"{'installed' if found['installed'] else 'not installed'} ({found['manager']})"),
            ("file", found["path"]),
            ("state", found["state"]),
            ("detail", found["detail"]),
        ]
    )


COMMANDS = (
    Command(
        "install",
        "Write the service's file for this platform, enable it and start it",
        run=install,
        arguments=(SYSTEM, DRY_RUN),
    ),
    Command(
        "status",
        "Whether the service is installed and runs",
        run=status,
        more="Exit code 3 when it does not run.",
        arguments=(SYSTEM,),
    ),
    Command(
        "uninstall",
        "Stop the service and remove its file; data and settings stay",
        run=uninstall,
        arguments=(SYSTEM, DRY_RUN),
    ),
)
