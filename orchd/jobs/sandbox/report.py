"""What was in force while a job ran: told by the worker, kept with the job, shown in its report."""

from __future__ import annotations

from typing import Literal

import msgspec

Sockets = Literal["none", "own", "unix", "loopback"]
"""none; a Unix socket of its own to listen on; Unix sockets to connect to as well; its own `lo` and nothing else."""


SOCKETS = "other programs' sockets"


class Mechanism(msgspec.Struct, frozen=True, kw_only=True):
    """One means that was tried. `detail` says what it does here, or why it can't be had."""

    name: str
    in_force: bool
    detail: str


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """`no_network`, `no_sockets` (Unix sockets) and `only_own_files` are what the process found when it tried.

    Not what the mechanisms promise: `mechanisms` has those. `memory_bytes` is the limit, 0 for none.
    """

    no_network: bool
    no_sockets: bool
    only_own_files: bool
    memory_bytes: int
    mechanisms: tuple[Mechanism, ...]

    @property
    def open(self) -> tuple[str, ...]:
        """What the job could still reach."""
        found = (
            ("the network", self.no_network),
            (SOCKETS, self.no_sockets),
            ("other files", self.only_own_files),
        )
        return tuple(name for name, closed in found if not closed)

    @property
    def words(self) -> str:
        """One line for a log or a report."""
        told = "; ".join(f"{one.name}: {one.detail}" for one in self.mechanisms if one.in_force)
        missing = "; ".join(f"{one.name}: {one.detail}" for one in self.mechanisms if not one.in_force)
        closed = "no network, no sockets, only its own files" if not self.open else f"OPEN: {', '.join(self.open)}"
        return f"{closed} ({told or 'nothing in force'})" + (f". Not in force: {missing}" if missing else "")
