"""The daemon, its settings, its identity and its bases."""

from __future__ import annotations

import os
from typing import Any

import msgspec

import orchd
from orchd.jobs import State
from orchd.node import Node, in_thread
from orchd.registry.loud import warnings
from orchd.rpc.table import NoParams, Result, method

ADAPTERS = "SELECT count(*), count(*) FILTER (WHERE state = 'quarantined') FROM adapter WHERE state <> 'removed'"


class JobCounts(Result, frozen=True, kw_only=True):
    queued: int
    running: int


class DaemonStatus(Result, frozen=True, kw_only=True):
    """`rss_mb` is the daemon's own memory, without its workers. `adapters` are those here, `quarantined` among them;
    `warnings` are for the user to look into."""

    version: str
    pid: int
    home: str
    uptime_s: float
    author: str
    peer_id: str
    network: str
    addresses: list[str]
    peers: int
    topics: list[str]
    adapters: int
    quarantined: int
    bases: list[str]
    jobs: JobCounts
    rss_mb: float
    notice: str
    warnings: list[str]


@method("daemon.status", NoParams, DaemonStatus, "What the daemon is doing.")
async def daemon_status(node: Node, _: NoParams) -> DaemonStatus:
    ((adapters, quarantined),) = await in_thread(node.registry.index.read, ADAPTERS)
    network = node.network.status()
    return DaemonStatus(
        version=orchd.__version__,
        pid=os.getpid(),
        home=str(node.paths.data),
        uptime_s=(node.clock() - node.started_ms) / 1000,
        author=node.identity.author,
        peer_id=node.network.peer_id,
        network=network.state,
        addresses=list(node.network.addresses()),
        peers=len(node.network.peers()),
        topics=[topic.name for topic in node.network.topics()],
        adapters=adapters,
        quarantined=quarantined,
        bases=[base.name for base in node.registry.bases()],
        jobs=JobCounts(queued=await _count(node, State.QUEUED), running=await _count(node, State.RUNNING)),
        rss_mb=resident_mb(),
        notice=node.registry.rebuilt,
        warnings=await in_thread(warnings, node.registry),
    )


async def _count(node: Node, state: State) -> int:
    rows = await in_thread(node.registry.index.read, "SELECT count(*) FROM job WHERE state = ?", (state.value,))
    return int(rows[0][0])


def resident_mb() -> float:
    """This process's resident memory in megabytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


class Stopping(Result, frozen=True, kw_only=True):
    stopping: bool


@method("daemon.stop", NoParams, Stopping, "Stop the daemon; running jobs are interrupted.")
async def daemon_stop(node: Node, _: NoParams) -> Stopping:
    node.stopping.set()
    return Stopping(stopping=True)


class SettingRow(Result, frozen=True, kw_only=True):
    key: str
    value: Any
    origin: str
    meaning: str


class Settings(Result, frozen=True, kw_only=True):
    settings: list[SettingRow]


@method("config.show", NoParams, Settings, "Every setting, its value and where it comes from.")
async def config_show(node: Node, _: NoParams) -> Settings:
    rows = [
        SettingRow(key=s.key, value=msgspec.to_builtins(s.value), origin=s.origin, meaning=s.meaning)
        for s in node.settings
    ]
    return Settings(settings=rows)


class IdentityShown(Result, frozen=True, kw_only=True):
    author: str
    peer_id: str


@method("identity.show", NoParams, IdentityShown, "Who this node is: its key as author and as peer.")
async def identity_show(node: Node, _: NoParams) -> IdentityShown:
    return IdentityShown(author=node.identity.author, peer_id=node.network.peer_id)
