"""Log lines: for people on a terminal, with `<N>` priorities for the journal, as JSON on request."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping

from orchd.config import LogConfig

#: sd-daemon(3) priorities by level.
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
#: Libraries that tell more than anybody wants to read below a warning.
CHATTY = ("libp2p", "multiaddr", "asyncio", "zeroconf", "httpx", "httpcore", "async_service")


def set_up_logging(config: LogConfig, environ: Mapping[str, str]) -> None:
    """Everything goes to stderr in the one form that fits where it ends up."""
    handler = logging.StreamHandler(sys.stderr)
    if config.format == "json":
        handler.setFormatter(_Json())
    elif config.format == "auto" and "JOURNAL_STREAM" in environ:
        handler.setFormatter(_Journal("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Journal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
