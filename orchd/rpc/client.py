"""A client of the daemon's socket. Standard library only, so that `orchctl` starts fast."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchd.errors import DaemonUnreachable, OrchdError, ParamsInvalid, SocketRefused, from_wire

READ_BYTES = 65_536
SECONDS = 60.0
"""Ordinary calls are answered at once; a daemon that takes longer than this is stuck."""

OnNotification = Callable[[str, dict[str, Any]], None]

_ENDLESS = (float("inf"), -float("inf"))


class Client:
    """One connection. Calls go one after the other; notifications that arrive meanwhile are kept for whoever asks.

    Raises `DaemonUnreachable` when nobody listens, or when the daemon goes away, and `SocketRefused` when somebody
    else may have put the socket there; every error that the daemon answers is raised as the class of its number.
    """

    def __init__(self, socket_path: Path | str, timeout: float | None = SECONDS) -> None:
        self._path = str(socket_path)
        self._timeout = timeout
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._notifications: deque[tuple[str, dict[str, Any]]] = deque()
        self._last_id = 0
        _check_place(os.path.dirname(self._path))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            raise DaemonUnreachable(f"the daemon is not running: {self._path}: {reason}") from None

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of a method that answers at once."""
        return self._call(method, params, self._timeout, self._keep)

    def stream(self, method: str, on_notification: OnNotification, /, **params: Any) -> Any:
        """The result of a method that may take long; notifications go to `on_notification` meanwhile."""
        while self._notifications:
            on_notification(*self._notifications.popleft())
        return self._call(method, params, None, on_notification)

    def events(
        self,
        after: int | None = None,
        job: str | None = None,
        kinds: tuple[str, ...] = (),
        idle: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Events without end: those after number `after`, then what happens. Subscribed when this returns.

        Raises `DaemonUnreachable` when none came for `idle` seconds.
        """
        subscription = self.call("events.subscribe", after=after, job=job, kinds=list(kinds))
        return self._events(subscription["subscription"], idle)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _events(self, subscription: str, idle: float | None) -> Iterator[dict[str, Any]]:
        while True:
            while self._notifications:
                method, params = self._notifications.popleft()
                if method == "events.event" and params["subscription"] == subscription:
                    yield params["event"]
            message = self._receive(idle)
            if "method" in message:
                self._keep(message["method"], message["params"])

    def _keep(self, method: str, params: dict[str, Any]) -> None:
        self._notifications.append((method, params))

    def _call(self, method: str, params: dict[str, Any], timeout: float | None, on_notification: OnNotification) -> Any:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        self._send(_line(request))
        while True:
            message = self._receive(timeout)
            if "method" in message:
                on_notification(message["method"], message["params"])
            elif message.get("id") == self._last_id and "result" in message:
                return message["result"]
            elif "error" in message and message.get("id") in {self._last_id, None}:
                raise error_from(message["error"])

    def _send(self, line: bytes) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(line)
        except OSError as error:
            raise self._gone(error) from None

    def _receive(self, timeout: float | None) -> dict[str, Any]:
        while not self._lines:
            try:
                self._socket.settimeout(timeout)
                data = self._socket.recv(READ_BYTES)
            except TimeoutError:
                raise DaemonUnreachable(
                    f"the daemon at {self._path} didn't answer within {timeout:.0f} s",
                    hint="`orchctl service status` and its log say what it does.",
                ) from None
            except OSError as error:
                raise self._gone(error) from None
            if not data:
                raise self._gone(None)
            *lines, rest = data.split(b"\n")
            if lines:
                self._lines.append(self._rest + lines[0])
                self._lines.extend(lines[1:])
                self._rest = b""
            self._rest += rest
        message = json.loads(self._lines.popleft())
        if not isinstance(message, dict):
            raise DaemonUnreachable(f"what listens at {self._path} doesn't speak orchd's language")
        return message

    def _gone(self, error: OSError | None) -> DaemonUnreachable:
        why = f": {error.strerror or error}" if error else ""
        return DaemonUnreachable(f"the daemon closed the connection at {self._path}{why}")


def _line(request: dict[str, Any]) -> bytes:
    """A request as it is sent. Raises `ParamsInvalid` for nan and infinity, which JSON does not have."""
    try:
        return json.dumps(request, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except ValueError:
        odd = {name: value for name, value in request["params"].items() if value != value or value in _ENDLESS}
        name, value = next(iter(odd.items()), ("a parameter", "nan"))
        raise ParamsInvalid(f"{name} {value} is no number", hint="Give a finite number.", field=name) from None


def wait_job(client: Client, job_id: str, on_progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
    """The result of a job once it is done; `on_progress` gets `{done, total, unit, eta_s, figures}` meanwhile.

    Raises the job's own error when it failed, was cancelled or interrupted. Leaves the job alone when interrupted.
    """
    job = watch_job(client, job_id, on_progress)
    if job["state"] != "done":
        raise job_error(job)
    return job["result"]


def watch_job(
    client: Client,
    job_id: str,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    after: int | None = None,
) -> dict[str, Any]:
    """The job, as `job.show` tells it, once it has ended in whatever way. `after` 0: also the progress up to now."""

    def notified(method: str, params: dict[str, Any]) -> None:
        event = params.get("event", {})
        if on_progress and event.get("kind") == "job.progress" and event.get("job") == job_id:
            on_progress(event["data"])

    if on_progress:
        client.call("events.subscribe", job=job_id, kinds=["job.progress"], after=after)
    job: dict[str, Any] = client.stream("job.wait", notified, job=job_id)
    return job


def job_error(job: dict[str, Any]) -> OrchdError:
    """What went wrong with a job that has ended without a result."""
    error = job.get("error")
    if error:
        return from_wire(error["code"], error["message"], error.get("hint"), error.get("field"))
    return from_wire(3003, f"job {job['id']} ({job['title']}) was cancelled")


def error_from(error: dict[str, Any]) -> OrchdError:
    """The exception for a JSON-RPC error object."""
    data = error.get("data") or {}
    return from_wire(
        data.get("number", error.get("code", 1000)),
        error.get("message", "unknown error"),
        data.get("hint"),
        data.get("field"),
    )


def _check_place(folder: str) -> None:
    """In /tmp anybody can make the directory before our daemon does, and listen there."""
    try:
        owner = os.lstat(folder).st_uid
        everybody_writes = os.stat(os.path.dirname(folder)).st_mode & stat.S_IWOTH
    except OSError:
        return  # connecting will say what is wrong
    if everybody_writes and owner != os.geteuid():
        raise SocketRefused(f"{folder} belongs to user {owner}, who could listen there: nothing was sent")
