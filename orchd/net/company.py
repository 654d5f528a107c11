"""Whom this node is connected to, whom it seeks, and whom it will have nothing to do with.

Ways to others, each tried for itself: peers of the settings, peers that could be reached before (`policy/book.py`),
peers found under topics and on the LAN, and whoever comes. Unwelcome are peers that the user blocks or bans, and those
whose offences add up (`policy/scores.py`), by their key and by the place that they come from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from orchd.errors import PeerBlocked, PeerIsSelf, PeerUnreachable
from orchd.net import hardening, pulse
from orchd.net.context import Context, address_of
from orchd.net.door import Door
from orchd.net.host import Host, is_through_relay, parse_peer_address, parse_peer_id
from orchd.net.policy import reach, rooms
from orchd.net.policy.book import Remembered
from orchd.net.policy.scores import Offence
from orchd.net.policy.seeking import PEERS_SOUGHT, Seeking

log = logging.getLogger(__name__)

#: A bootstrap peer that can't be reached is tried again after so many seconds, doubling up to the second figure.
BOOTSTRAP_PAUSE_S, BOOTSTRAP_PAUSE_MAX_S = 1.0, 60.0
#: A connection that lasts shorter than this, in seconds, counts as one that did not come about.
LASTING_S = 10.0
#: While fewer peers than this are connected, so many remembered ones are tried at once, first after a moment by
#: chance (not everybody at once when the power is back), then with pauses that double; in seconds.
PEERS_WANTED, REMEMBERED_AT_ONCE = 4, 8
REMEMBERED_FIRST_S, REMEMBERED_PAUSE_S, REMEMBERED_PAUSE_MAX_S = 1.0, 5.0, 300.0
#: Dials at once.
DIALS = 4
#: A member whose connection went through a relay is sought again after so many seconds, by chance: so does the other.
AGAIN_S = (1.0, 5.0)
#: A peer that the user connects to may take this long, in seconds, to say that it is one of us, or to hang up.
SETTLE_S = 2.0


class Company:
    """On one host. `spawn` runs something beside everything else."""

    def __init__(self, host: Host, context: Context, spawn: Callable[..., None]) -> None:
        self._host, self._context, self._spawn = host, context, spawn
        self._seeking: Seeking[ID] = Seeking(context.rng)
        #: When peers came, in seconds of trio's clock.
        self._since: dict[ID, float] = {}
        self._lost = trio.Event()
        #: Connections on which the other end has answered our greeting; the event is for that and for losses.
        self._greeted: WeakSet[Any] = WeakSet()
        self._settled = trio.Event()
        self._dials = trio.CapacityLimiter(DIALS)

    def start(self) -> None:
        """Guard the door, feel the pulse, seek peers."""
        self._context.book.forget(str(self._host.id))  # kept by an orchd that connected to itself
        hardening.guard_inbound(self._host.swarm, Door(self.is_banned, self._context.count).passing)
        self._spawn(pulse.run, self._host)
        for text in self._context.bootstrap:
            self._spawn(self._keep_bootstrap, text)
        self._spawn(self._seek_remembered)

    # ---- who is welcome -----------------------------------------------------------------------------------------

    def is_banned(self, subject: str) -> bool:
        """Whether a peer id or a place is banned, by the user or for what it did."""
        return self._context.scores.is_banned(subject, trio.current_time()) or self._context.book.is_banned(
            subject, self._context.clock()
        )

    def is_unwelcome(self, peer: ID) -> bool:
        """Also this node itself, at one of its own addresses."""
        if peer == self._host.id or str(peer) in self._context.blocked:
            return True
        return self.is_banned(str(peer)) or self.is_banned(self.place_of(peer))

    def place_of(self, peer: ID) -> str:
        """Where a connected peer comes from; nothing for this machine, for a relayed one, and for one that is not
        connected."""
        connections = self._host.connections(peer)
        address = address_of(connections[0]) if connections else ""
        return "" if reach.is_this_machine(address) else reach.network_of(reach.ip_of(address))

    def is_near(self, peer: ID) -> bool:
        """Whether every connection to `peer` comes from this network."""
        connections = self._host.swarm.get_connections(peer)
        return bool(connections) and all(map(reach.is_near, map(address_of, connections)))

    def blame(self, peer: ID, offence: Offence, reason: str) -> None:
        """A peer did something wrong: enough of that, and it is banned for a while."""
        now = trio.current_time()
        self._context.count(f"offences_{offence.name.lower()}")
        bans = self._context.scores.blame(str(peer), self.place_of(peer), offence, reason, now)
        for ban in bans:
            self._context.count("bans")
            log.info("%s is banned for %.0f s: %s", ban.subject, ban.until - now, reason)
            self._context.events.emit(
                "net.peer.banned", {"subject": ban.subject, "reason": reason, "seconds": round(ban.until - now)}
            )
        if bans:
            self.drop_unwelcome()

    def forgive(self, peer: ID) -> None:
        """The user asks for this very peer. A ban by the user holds."""
        self._context.scores.forgive(str(peer))
        self._seeking.forgive(peer)

    def drop_unwelcome(self) -> None:
        """Close the connections to those who are unwelcome now."""
        for peer in self._host.peers():
            if self.is_unwelcome(peer):
                self._spawn(self._host.disconnect, peer)

    def avoids(self, peer: ID) -> bool:
        """Whether a peer is not to be dialled now."""
        return self._seeking.avoids(peer, trio.current_time()) or self.is_unwelcome(peer)

    def make_room(self, is_wanted: Callable[[ID], bool]) -> None:
        """End connections with strangers when there are too many of them."""
        count = len(self._host.swarm.get_connections())
        if count <= rooms.STRANGERS:
            return
        strangers = [
            rooms.Stranger(peer, self.place_of(peer), since)
            for peer, since in self._since.items()
            if not is_wanted(peer)
        ]
        for peer in rooms.too_many(strangers, count, trio.current_time()):
            self._context.count("strangers_let_go")
            self._spawn(self._host.disconnect, peer)

    # ---- connecting ---------------------------------------------------------------------------------------------

    async def connect(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Reach a peer. Raises `PeerUnreachable`, `PeerBlocked` or `PeerIsSelf`."""
        if peer == self._host.id:
            raise PeerIsSelf(f"{peer} is this node", field="address")
        if str(peer) in self._context.blocked:
            raise PeerBlocked(f"{peer} is blocked here")
        if self.is_unwelcome(peer):
            raise PeerBlocked(f"{peer} is banned here", hint=f"`orchctl net unban {peer}` lifts it.")
        allowed = [address for address in addresses if not self._banned_place(address)]
        if addresses and not allowed:
            place = self._banned_place(addresses[0])
            hint = f"`orchctl net unban {place}` lifts it."
            raise PeerBlocked(f"{place}, where {peer} is, is banned here", hint=hint)
        self._context.count("dials")
        try:
            await self._host.connect(peer, allowed)
        except PeerUnreachable:
            self._context.count("dials_failed")
            raise

    def _banned_place(self, address: Multiaddr) -> str:
        """The place that an address leads to if that is banned, else nothing."""
        place = "" if reach.is_this_machine(str(address)) else reach.network_of(reach.ip_of(str(address)))
        return place if place and self.is_banned(place) else ""

    async def connect_for_good(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """As `connect`, and see that it lasts: who has banned this node hangs up only when it knows the key."""
        await self.connect(peer, addresses)
        with trio.move_on_after(SETTLE_S):
            while self._host.connected(peer) and not any(map(self._is_settled, self._host.connections(peer))):
                await self._settled.wait()
        if not self._host.connected(peer):
            hint = "Ask who runs it, or try again in a while."
            raise PeerUnreachable(f"{peer} hung up at once: it may have banned this node, or have no room", hint=hint)

    def _is_settled(self, connection: Any) -> bool:
        """Whether the other end wants it: it has answered on it, or it was who connected."""
        return connection in self._greeted or _is_inbound(connection)

    def meet(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """Somebody has been found: connect, in the background, unless there is a reason not to."""
        if peer != self._host.id and not self._host.connected(peer):
            self._spawn(self._meet, peer, addresses)

    async def meet_later(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        """One that was connected a moment ago: it may do the same."""
        await trio.sleep(self._context.rng.uniform(*AGAIN_S))
        self.meet(peer, addresses)

    def meet_some(self, found: Mapping[ID, Sequence[Multiaddr]], members: Iterable[ID]) -> None:
        """Of the members of a topic who were found, as many as are enough beside the connected `members`."""
        places = {peer: _place(ways) for peer, ways in found.items() if not self._is_out(peer)}
        here = {peer: self.place_of(peer) for peer in members}
        for peer in self._seeking.choose(places, here, self._host.peers(), trio.current_time()):
            self.meet(peer, found[peer])

    def _is_out(self, peer: ID) -> bool:
        return peer == self._host.id or self.is_unwelcome(peer)

    async def _meet(self, peer: ID, addresses: Sequence[Multiaddr]) -> None:
        async with self._dials:
            if self._host.connected(peer) or self.avoids(peer) or len(self._host.peers()) >= PEERS_SOUGHT:
                return
            try:
                await self.connect(peer, addresses)
            except PeerUnreachable as error:
                self._seeking.failed(peer, trio.current_time())
                self._context.book.failed(str(peer), self._context.clock())
                log.info("%s", error)

    def came(self, connection: Any) -> None:
        """A connection is there that is welcome."""
        self._since.setdefault(connection.muxed_conn.peer_id, trio.current_time())
        if not _is_inbound(connection):
            return
        if is_through_relay(connection):
            self._context.count("inbound_relayed")
            return
        if any(map(is_through_relay, self._host.connections(connection.muxed_conn.peer_id))):
            return  # through a hole that was made for it: others find none
        self._context.count("inbound")
        if not reach.is_near(address_of(connection)):
            self._context.count("inbound_from_afar")

    def reached(self, peer: ID) -> None:
        """It is one of us, and this node has dialled it: remember where."""
        self._greeted.update(self._host.connections(peer))
        self._settle()
        for connection in self._host.swarm.get_connections(peer):
            is_ours = not _is_inbound(connection) and not is_through_relay(connection)
            if is_ours and (address := address_of(connection)):
                self._context.book.reached(str(peer), address, self._context.clock())

    def lost(self, connection: Any) -> None:
        """A connection has ended."""
        if not is_through_relay(connection):  # its bytes are those of the connection to the relay
            self._context.count_traffic(hardening.traffic_of(connection))
        if not self._host.connected(connection.muxed_conn.peer_id):
            self._since.pop(connection.muxed_conn.peer_id, None)
        self._lost.set()
        self._lost = trio.Event()
        self._settle()

    def _settle(self) -> None:
        self._settled.set()
        self._settled = trio.Event()

    async def _keep_bootstrap(self, text: str) -> None:
        """Stay connected to a configured peer."""
        peer, address = parse_peer_address(text)
        pause = BOOTSTRAP_PAUSE_S
        while peer != self._host.id:
            try:
                await self.connect(peer, [address])
            except (PeerUnreachable, PeerBlocked) as error:
                log.warning("%s", error)
            else:
                begun = trio.current_time()
                while self._host.connected(peer):
                    await self._lost.wait()
                if trio.current_time() - begun > LASTING_S:
                    pause = BOOTSTRAP_PAUSE_S
                    continue  # else it does not want us, or is on its way out
            await trio.sleep(pause * self._context.rng.uniform(0.8, 1.2))
            pause = min(pause * 2, BOOTSTRAP_PAUSE_MAX_S)

    async def _seek_remembered(self) -> None:
        """While there are few peers, try some that could be reached before."""
        pause = REMEMBERED_PAUSE_S
        await trio.sleep(REMEMBERED_FIRST_S * self._context.rng.random())
        while True:
            if len(self._host.peers()) < PEERS_WANTED:
                for entry in self._context.book.to_try(REMEMBERED_AT_ONCE, self._context.rng):
                    self.meet_remembered(entry)
            with trio.move_on_after(pause * self._context.rng.uniform(0.8, 1.2)) as waited:
                await self._lost.wait()
            pause = min(pause * 2, REMEMBERED_PAUSE_MAX_S) if waited.cancelled_caught else REMEMBERED_PAUSE_S
            if not waited.cancelled_caught:
                await trio.sleep(REMEMBERED_FIRST_S)

    def meet_remembered(self, entry: Remembered) -> None:
        """An address that is none any more (the file may have been written by hand) is passed over."""
        with suppress(Exception):
            self.meet(parse_peer_id(entry.peer), [Multiaddr(address) for address in entry.addresses])


def _is_inbound(connection: Any) -> bool:
    return "inbound" in str(connection.direction).lower()


def _place(addresses: Sequence[Multiaddr]) -> str:
    """That of the first address which says one."""
    texts = (str(address) for address in addresses)
    places = (reach.network_of(reach.ip_of(text)) for text in texts if not reach.is_this_machine(text))
    return next(filter(None, places), "")
