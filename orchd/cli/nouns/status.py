"""`orchctl status`."""

from __future__ import annotations

from orchd.cli.nouns.daemon import STATUS

COMMANDS = (STATUS,)
