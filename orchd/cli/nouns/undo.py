"""`orchctl undo`."""

from __future__ import annotations

from orchd.cli.nouns.registry import UNDO

COMMANDS = (UNDO,)
