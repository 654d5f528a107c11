"""Jobs: anything that takes longer than a second. The names below are what the daemon uses.

They are loaded when they are asked for: a worker imports `orchd.jobs.context` and needs neither trio nor the queue.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchd.jobs.entry import LocalContext
    from orchd.jobs.events import Event, EventLog, Subscription
    from orchd.jobs.jobs import Jobs
    from orchd.jobs.process import WorkerProcess
    from orchd.jobs.states import ErrorInfo, Job, Progress, State

__all__ = [
    "ErrorInfo",
    "Event",
    "EventLog",
    "Job",
    "Jobs",
    "LocalContext",
    "Progress",
    "State",
    "Subscription",
    "WorkerProcess",
]

_PLACES = {
    "ErrorInfo": "states",
    "Event": "events",
    "EventLog": "events",
    "Job": "states",
    "Jobs": "jobs",
    "LocalContext": "entry",
    "Progress": "states",
    "State": "states",
    "Subscription": "events",
    "WorkerProcess": "process",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
