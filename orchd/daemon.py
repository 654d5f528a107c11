"""`orchd`: the daemon. One nursery holds every part, one path leads out.

Order at start: the lock on the home, settings, identity, registry, event log, jobs, embedded runtime, network, then
the RPC socket, and readiness is told. Order at the end: no new requests, jobs that can go on later leave a checkpoint,
then everything is cancelled at once; other jobs that ran are marked interrupted. The process imports no torch.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import trio

import orchd
from orchd import config as configuration
from orchd import resident
from orchd.errors import HomeBusy, HomeUnusable, OrchdError, UsageInvalid
from orchd.federating import Federations
from orchd.identity import Identity
from orchd.jobs import EventLog, Jobs
from orchd.log import set_up_logging
from orchd.net import Network
from orchd.node import Node, in_thread
from orchd.notify import MORE_TIME, READY, STOPPING, notify, status
from orchd.paths import Paths
from orchd.registry import Registry
from orchd.rollback import due
from orchd.rpc import methods
from orchd.rpc.server import RpcServer
from orchd.rpc.sockets import bind
from orchd.serve.embedded import EmbeddedRuntime
from orchd.serve.places import targets
from orchd.serve.specs import ChatSpec
from orchd.updates import Updates
from orchd.upkeep import Upkeep

LOG = logging.getLogger("orchd")
#: From the first signal to the end; what has not left by then is left behind.
STOP_SECONDS = 8.0
EMBEDDED_BASE = "demo"
RESTORING_LOGGED_SECONDS = 5.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or `daemon.stop`; the exit code."""
    paths = Paths.from_env(os.environ)
    try:
        arguments = _arguments(argv)
        overrides = dict(_setting(text) for text in arguments.set)
        config, settings = configuration.load(paths.config_file, os.environ, overrides)
        set_up_logging(config.log, os.environ)
        with hold_home(paths):
            trio.run(run, paths, config, settings)
    except OrchdError as error:
        return _told(error)
    except BaseExceptionGroup as group:  # a part that fell takes the nursery along
        reason = _only_reason(group)
        if reason is None:
            raise
        return _told(reason)
    except KeyboardInterrupt:
        return 130
    return 0


def _told(error: OrchdError) -> int:
    """Say what is wrong and what to do, in two lines; the exit code."""
    print(f"orchd: {error.message} [E{error.code}]\n  {error.hint}", file=sys.stderr)
    return error.exit_code


def _only_reason(group: BaseExceptionGroup[BaseException]) -> OrchdError | None:
    """The one numbered error that a nursery fell of; None when there is another reason too."""
    reason: BaseException = group
    while isinstance(reason, BaseExceptionGroup):
        if len(reason.exceptions) != 1:
            return None
        reason = reason.exceptions[0]
    return reason if isinstance(reason, OrchdError) else None


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing and leaving, so that wrong words are a numbered error too."""

    def error(self, message: str) -> NoReturn:
        raise UsageInvalid(message, hint="`orchd --help` shows how it goes.")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="orchd", description="The orchd daemon. `orchctl` talks to it.")
    parser.add_argument("--version", action="version", version=f"orchd {orchd.__version__}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, e.g. net.mdns=false"
    )
    return parser.parse_args(argv)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageInvalid(f"--set {text!r} is not KEY=VALUE", hint="A setting is given as in --set net.mdns=false.")
    return key, value


@contextmanager
def hold_home(paths: Paths) -> Iterator[None]:
    """Lock the home for this process. Raises `HomeBusy` naming the process that holds it."""
    os.umask(0o077)
    for directory in (paths.data, paths.state, paths.cache):
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HomeUnusable(f"the directory {directory} can't be made: {error.strerror}") from None
    with (paths.data / "lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise HomeBusy(f"another orchd (process {holder}) holds {paths.data}") from None
        file.truncate(0)
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


async def run(paths: Paths, config: configuration.Config, settings: tuple[configuration.Setting, ...]) -> None:
    """Compose the node, serve until it is told to stop, and take everything down again."""
    with ExitStack() as stack:
        bound = bind(paths.socket)
        until_served = stack.enter_context(ExitStack())
        until_served.callback(bound.release)
        node = await in_thread(compose, stack, paths, config, settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, node)
            await nursery.start(node.jobs.run)
            await nursery.start(node.runtime.run)
            await nursery.start(node.routes.runtime.run)
            await nursery.start(node.endpoint.run)
            quota = config.registry.quota_mb * 1_000_000
            await nursery.start(Upkeep(node.registry, node.datasets, node.runs, now_ms, quota).run)
            await in_thread(_restore_deployments, node)
            await nursery.start(node.rollbacks.run)
            await nursery.start(node.recipes.run)
            if config.net.enabled:
                await nursery.start(node.network.run)
            await node.join_topics()
            node.federations = Federations(node)
            await nursery.start(node.federations.run)
            await nursery.start(Updates(node).run)
            until_served.pop_all()  # from here the server releases it
            await nursery.start(RpcServer(bound, node, methods.TABLE).run)
            nursery.start_soon(resident.run)
            LOG.info("ready: %s as %s", paths.socket, node.identity.author)
            for notice in node.registry.notices:
                LOG.warning("%s", notice)
            notify(READY, status(f"serving {paths.socket}"))
            await node.stopping.wait()
            notify(STOPPING)
            LOG.info("stopping")
            with trio.move_on_after(STOP_SECONDS):
                async with trio.open_nursery() as leaving:
                    leaving.start_soon(node.runtime.stop)
                    leaving.start_soon(node.routes.runtime.stop)
                    leaving.start_soon(node.jobs.pause)
            nursery.cancel_scope.deadline = trio.current_time() + STOP_SECONDS
            nursery.cancel_scope.cancel()
    LOG.info("stopped")


class Restoring:
    """Says how far the index is, where it has to be made again: that may take longer than a start is given."""

    def __init__(self) -> None:
        self._logged_at = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` adapters are in the index again."""
        text = f"making the index again: {done:,} of {total:,} adapters"
        notify(status(text), MORE_TIME)
        if time.monotonic() >= self._logged_at + RESTORING_LOGGED_SECONDS:
            self._logged_at = time.monotonic()
            LOG.info("%s", text)


def compose(
    stack: ExitStack, paths: Paths, config: configuration.Config, settings: tuple[configuration.Setting, ...]
) -> Node:
    """Open everything that lies on disk, and put the parts together. `stack` closes it."""
    identity = Identity.load_or_create(paths.identity_file)
    registry = Registry.open(paths.data, now_ms, identity.author, {EMBEDDED_BASE: embedded_base()}, Restoring().tell)
    stack.callback(registry.close)
    identity = finish_rotation(identity, registry, paths.identity_file)
    events = EventLog(paths.state, now_ms)
    stack.callback(events.close)
    jobs = Jobs(registry.local, paths.state, config.jobs, events, work=paths.data / "work")
    network = Network(identity, config.net, registry, events, now_ms, random.SystemRandom())
    runtime = EmbeddedRuntime(
        paths.runtime / "chat",
        threads=config.jobs.threads,
        spec=ChatSpec(models=str(registry.blobs.root)),
        sandbox=config.jobs.sandbox,
    )
    return Node(
        paths=paths,
        config=config,
        settings=settings,
        identity=identity,
        registry=registry,
        events=events,
        jobs=jobs,
        network=network,
        runtime=runtime,
        targets=targets(config.serve, runtime, os.environ),
        clock=now_ms,
        started_ms=now_ms(),
    )


def finish_rotation(identity: Identity, registry: Registry, path: Path) -> Identity:
    """This node's key, when the process ended while it was being changed: the new one if the change was signed."""
    following = Identity.next_of(path)
    if following is None:
        return identity
    if not registry.people.view().same(identity.author, following.author):
        Identity.drop_next(path)
        return identity
    Identity.adopt_next(path, now_ms())
    registry.become(following.author)
    return following


def embedded_base() -> Path:
    """The base model that ships in the package."""
    return Path(str(resources.files("orchd.train") / "base" / "demo"))


def _restore_deployments(node: Node) -> None:
    """What may not answer any more is left out; `Rollbacks` puts the base in its place."""
    out = {deployment.name for deployment, _ in due(node)}
    for deployment in node.deployments.list():
        if deployment.target == "embedded" and deployment.name not in out:
            node.runtime.restore(deployment.name, node.registry.blobs.path(bytes.fromhex(deployment.blob)))


async def _watch_signals(node: Node, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            LOG.info("signal %s", signal.Signals(number).name)
            node.stopping.set()


if __name__ == "__main__":
    sys.exit(main())
