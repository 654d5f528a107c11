"""Finds out that a link is dead: within ten seconds under a transfer, within three minutes else.

A connection from which nothing has come for a while is pinged by Yamux, which costs one frame each way and no stream:
a short while if one of our streams is open on it, or being opened, a long one else. A peer that is busy, or reads a
slow disk, answers the ping and keeps the connection; one that does not has lost it, and whoever waits on it is told at
once. The library's own monitor is off: it pings every connection whether anything came or not, and one after the other,
so that twenty dead ones would take it five minutes.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import trio
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT

from orchd.net import hardening
from orchd.net.asking import end_rested
from orchd.net.hardening import Traffic
from orchd.net.host import Host
from orchd.net.messages import PROTOCOL

log = logging.getLogger(__name__)

#: In seconds: between looks; silence during a transfer that is asked about; time to answer. Together less than ten.
EVERY_S, QUIET_S, ANSWER_S = 1.0, 4.0, 4.0
#: The same while nobody waits for anything. Who begins to do so waits longer for a look, which then finds the silence
#: that was there before: `IDLE_EVERY_S` and `ANSWER_S` together are less than ten, too.
IDLE_EVERY_S, IDLE_QUIET_S, IDLE_ANSWER_S = 5.0, 120.0, 30.0


async def run(host: Host) -> None:
    """Until cancelled."""
    probed: set[Any] = set()
    pause = EVERY_S
    async with trio.open_nursery() as nursery:
        while True:
            slept = trio.current_time()
            await trio.sleep(pause)
            now = trio.current_time()
            if host.resting:
                nursery.start_soon(end_rested, host)
            if now - slept > 2 * pause:  # it was this process that stood still
                continue
            connections = host.swarm.get_connections()
            # Two peers that dialled each other have two connections, over one link: where one is dead, both are.
            busy = {one.muxed_conn.peer_id for one in connections if is_waited_for(host, one)}
            pause = EVERY_S if busy or host.resting else IDLE_EVERY_S
            for connection in connections:
                hurry = connection.muxed_conn.peer_id in busy
                if connection not in probed and _silence(connection, now) > (QUIET_S if hurry else IDLE_QUIET_S):
                    probed.add(connection)
                    nursery.start_soon(_probe, connection, ANSWER_S if hurry else IDLE_ANSWER_S, probed)


def is_waited_for(host: Host, connection: Any) -> bool:
    """Whether one of our questions is open on it, in either direction, or about to be."""
    return connection.muxed_conn.peer_id in host.opening or any(
        stream.get_protocol() == PROTOCOL and stream not in host.idle for stream in connection.get_streams()
    )


def _silence(connection: Any, now: float) -> float:
    traffic = hardening.traffic_of(connection)
    return now - traffic.heard_at if traffic else 0.0


async def _probe(connection: Any, patience_s: float, probed: set[Any]) -> None:
    try:
        before = _heard(connection)
        with trio.move_on_after(patience_s):
            await _ping(connection)
        if _heard(connection) == before and not connection.is_closed:
            log.info("%s does not answer any more: its connection is closed", connection.muxed_conn.peer_id)
            await hardening.drop_connection(connection)
    except Exception as error:
        log.debug("pinging %s: %r", connection.muxed_conn.peer_id, error)
    finally:
        probed.discard(connection)


async def _ping(connection: Any) -> None:
    """As the library's own loop does, which asks rarely and draws nothing from it."""
    yamux, answered = connection.muxed_conn, trio.Event()
    yamux._ping_id += 1
    yamux._ping_event, yamux._ping_sent_time = answered, trio.current_time()
    await yamux._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, yamux._ping_id))
    await answered.wait()


def _heard(connection: Any) -> int:
    return (hardening.traffic_of(connection) or Traffic()).bytes_in
