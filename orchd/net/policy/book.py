"""Peers that could be reached before, so that a node finds its way back without anybody's server; and bans.

Only addresses that this node has dialled with success are in it, of peers that speak our protocol: what a stranger
says of others is not believed. The book is bounded, and what has not answered for long is struck out.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from orchd.net.policy.reach import ip_of, network_of

#: Peers in the book, of them from one place, and addresses of one: who has many keys at one address fills no book.
PEERS, PEERS_PER_PLACE, ADDRESSES = 256, 8, 4
#: Struck out after so many failures in a row, if it has not been reached for as many milliseconds.
FAILURES, STALE_MS = 8, 14 * 86_400_000
#: Bans by hand that are kept.
BANS = 4096

Text = Annotated[str, Meta(max_length=256)]


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses` are multiaddrs without the peer's id, the last one that worked first; `reached_ms` is 0 for one that
    came with an invitation and was never reached."""

    peer: Text
    addresses: Annotated[tuple[Text, ...], Meta(max_length=ADDRESSES)]
    reached_ms: int
    failures: int = 0


class Banned(msgspec.Struct, frozen=True, kw_only=True):
    """By the user. `subject` is a peer id or a place; `until_ms` None: until it is lifted."""

    subject: Text
    until_ms: int | None = None
    reason: Text = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The book as it is kept."""

    peers: Annotated[tuple[Remembered, ...], Meta(max_length=PEERS)] = ()
    bans: Annotated[tuple[Banned, ...], Meta(max_length=BANS)] = ()


class Book:
    """`changes` grows with every change."""

    def __init__(self, page: Page | None = None) -> None:
        page = page or Page()
        self.changes = 0
        self._peers = {entry.peer: entry for entry in page.peers}
        self._bans = {ban.subject: ban for ban in page.bans}

    def page(self) -> Page:
        return Page(peers=tuple(self._peers.values()), bans=tuple(self._bans.values()))

    # ---- peers --------------------------------------------------------------------------------------------------

    def peers(self) -> list[Remembered]:
        """The last reached first."""
        return sorted(self._peers.values(), key=lambda entry: -entry.reached_ms)

    def reached(self, peer: str, address: str, now_ms: int) -> None:
        """It answered at this address."""
        before = self._peers.get(peer)
        others = [other for other in (before.addresses if before else ()) if other != address]
        self._put(Remembered(peer=peer, addresses=(address, *others)[:ADDRESSES], reached_ms=now_ms))

    def told(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Somebody whom the user believes gave these addresses."""
        before = self._peers.get(peer)
        known = before.addresses if before else ()
        kept = tuple(dict.fromkeys((*known, *addresses)))[:ADDRESSES]
        self._put(Remembered(peer=peer, addresses=kept, reached_ms=before.reached_ms if before else 0))

    def failed(self, peer: str, now_ms: int) -> None:
        """It could not be reached at any of its addresses."""
        entry = self._peers.get(peer)
        if entry is None:
            return
        failures = entry.failures + 1
        if failures >= FAILURES and now_ms - entry.reached_ms > STALE_MS:
            self.forget(peer)
        else:
            self._put(msgspec.structs.replace(entry, failures=failures))

    def forget(self, peer: str) -> None:
        if self._peers.pop(peer, None):
            self.changes += 1

    def to_try(self, count: int, rng: random.Random) -> list[Remembered]:
        """Half of them the last reached, half of them any: who fills the first half can't shut out the rest."""
        entries = self.peers()
        first = entries[: (count + 1) // 2]
        rest = entries[len(first) :]
        return first + rng.sample(rest, min(count - len(first), len(rest)))

    def _put(self, entry: Remembered) -> None:
        if entry.peer not in self._peers:
            everybody, place = self._peers.values(), _place(entry)
            self._make_room([other for other in everybody if _place(other) == place], PEERS_PER_PLACE)
            self._make_room(list(everybody), PEERS)
        self._peers[entry.peer] = entry
        self.changes += 1

    def _make_room(self, entries: list[Remembered], limit: int) -> None:
        if len(entries) >= limit:
            worst = min(entries, key=lambda other: (-other.failures, other.reached_ms))
            del self._peers[worst.peer]

    # ---- bans ---------------------------------------------------------------------------------------------------

    def ban(self, ban: Banned) -> None:
        """Replaces an older one of the same subject."""
        if ban.subject not in self._bans and len(self._bans) >= BANS:
            del self._bans[next(iter(self._bans))]
        self._bans[ban.subject] = ban
        self.changes += 1

    def lift(self, subject: str) -> bool:
        """Whether there was one."""
        there = self._bans.pop(subject, None) is not None
        self.changes += there
        return there

    def is_banned(self, subject: str, now_ms: int) -> bool:
        ban = self._bans.get(subject)
        return ban is not None and (ban.until_ms is None or now_ms < ban.until_ms)

    def bans(self, now_ms: int) -> list[Banned]:
        """Those in force."""
        return [ban for ban in self._bans.values() if self.is_banned(ban.subject, now_ms)]


def _place(entry: Remembered) -> str:
    return _place_at(entry.addresses[0]) if entry.addresses else ""


@lru_cache(maxsize=4096)  # each new entry is compared with all
def _place_at(address: str) -> str:
    return network_of(ip_of(address))
