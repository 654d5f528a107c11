"""The RPC server of a node: a Unix socket that only this user (and root) may use."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from orchd.errors import LimitExceeded
from orchd.rpc import protocol
from orchd.rpc.connection import Connection
from orchd.rpc.sockets import Bound, bind, peer_uid
from orchd.rpc.table import Method

CONNECTIONS = 128
"""Clients at once."""

log = logging.getLogger("orchd.rpc")


class RpcServer:
    """Serves `table` for `node` on a bound socket. `serve` makes and runs one."""

    def __init__(
        self,
        bound: Bound,
        node: Any,
        table: Mapping[str, Method],
        uid_of: Callable[[Any], int] = peer_uid,
    ) -> None:
        self._bound = bound
        self._node = node
        self._table = table
        self._uid_of = uid_of
        self._connections = 0

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, then remove the socket."""
        self._bound.socket.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._bound.socket))
        try:
            async with trio.open_nursery() as nursery:
                serve = partial(trio.serve_listeners, self._serve, [listener], handler_nursery=nursery)
                await nursery.start(serve)
                task_status.started()
        finally:
            self._bound.release()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection. Whatever goes wrong in it stays in it."""
        self._connections += 1
        try:
            async with stream:
                if self._welcome(stream):
                    await self._refuse_or_run(stream)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._connections -= 1

    def _welcome(self, stream: trio.SocketStream) -> bool:
        """Whether the kernel says that the peer is this user or root. A stranger gets no word."""
        uid = self._uid_of(stream.socket)
        if uid in {os.geteuid(), 0}:
            return True
        log.warning("a process of uid %d was turned away", uid)
        return False

    async def _refuse_or_run(self, stream: trio.SocketStream) -> None:
        if self._connections > CONNECTIONS:
            error = LimitExceeded(f"{CONNECTIONS} clients may be connected", hint="Close some of them.")
            await stream.send_all(protocol.error_line(None, error) + b"\n")
            return
        await Connection(stream, self._node, self._table).run()


async def serve(
    table: Mapping[str, Method],
    node: Any,
    path: Path,
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen at `path` and serve until cancelled. Raises `HomeBusy` when another daemon listens there."""
    await RpcServer(bind(path), node, table).run(task_status)
