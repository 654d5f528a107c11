"""Who may come in, before it has shown its key: `policy/gate.py` on one host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from orchd.errors import PeerRefused
from orchd.net.policy.gate import Gate, Knock
from orchd.net.policy.reach import ip_of, network_of


class Door:
    """`is_banned` is asked for each place; `count` is told what was turned away."""

    def __init__(self, is_banned: Callable[[str], bool], count: Callable[[str], None]) -> None:
        self._gate = Gate()
        self._is_banned, self._count = is_banned, count
        self._waiting: dict[Knock, trio.CancelScope] = {}

    @contextmanager
    def passing(self, address: str) -> Iterator[Callable[[], None]]:
        """Around the life of a connection from `address`; what it yields is called when the connection is secured.

        Until then the block may be cancelled, to make room. Raises `PeerRefused` for one that may not come in.
        """
        place = network_of(ip_of(address))
        knock, out = (None, None) if self._is_banned(place) else self._gate.knock(place, trio.current_time())
        if knock is None:
            self._count("inbound_refused")
            raise PeerRefused(f"{address} may not come in now")
        if out is not None:
            self._count("inbound_pushed_out")
            self._waiting.pop(out).cancel()
        is_secured = False

        def secured() -> None:
            nonlocal is_secured
            self._waiting.pop(knock, None)
            self._gate.secured(knock)
            is_secured = True

        with trio.CancelScope() as scope:
            self._waiting[knock] = scope
            try:
                yield secured
            finally:
                self._waiting.pop(knock, None)
                (self._gate.left if is_secured else self._gate.gone)(knock)
