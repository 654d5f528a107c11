"""`orchctl daemon`, and `orchctl status`."""

from __future__ import annotations

from typing import Any

from orchd.cli.command import Command
from orchd.cli.nouns.net import called
from orchd.cli.text import duration, fields


def human_status(status: dict[str, Any]) -> str:
    """The daemon's state below each other."""
    jobs = status["jobs"]
    memory = f", {status['rss_mb']:.0f} MB" if status["rss_mb"] else ""
    return fields(
        [
            ("orchd", f"{status['version']}, process {status['pid']}, up {duration(status['uptime_s'])}{memory}"),
            ("data", status["home"]),
            ("author", status["author"]),
            ("peer", status["peer_id"]),
            ("network", f"{status['network']}, {status['peers']} peers"),
            ("addresses", "\n".join(status["addresses"])),
            ("topics", ", ".join(map(called, status["topics"]))),
            ("adapters", f"{status['adapters']}{_waiting(status['quarantined'])}"),
            ("bases", ", ".join(status["bases"])),
            ("jobs", f"{jobs['running']} running, {jobs['queued']} queued"),
            ("notice", status["notice"]),
            ("warning", "\n".join(status["warnings"])),
        ]
    )


def _waiting(quarantined: int) -> str:
    return f", {quarantined} of them in quarantine" if quarantined else ""


STATUS = Command("status", "What the daemon is doing", human_status, method="daemon.status")

COMMANDS = (
    STATUS,
    Command(
        "stop",
        "Stop the daemon; running jobs are interrupted",
        lambda _: "stopping",
        method="daemon.stop",
        changes=True,
    ),
)
