"""What is advertised on the LAN, and what is believed of what others advertise."""

from __future__ import annotations

import socket
import threading
from functools import partial

import pytest
from zeroconf import Zeroconf

from orchd.identity import Identity
from orchd.net import mdns
from orchd.net.host import peer_id_of

PEER = str(peer_id_of(Identity.from_seed(bytes(32)).public_key))
ADDRESSES = [f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}", f"/ip6/2001:db8::7/tcp/4002/p2p/{PEER}"]


def test_concrete_addresses_and_no_name_of_the_machine() -> None:
    info = mdns.service_info("x" * 32, ADDRESSES)
    assert info.name == "x" * 32 + "._p2p-orchd._udp.local."
    assert sorted(value.decode() for value in info.properties.values() if value) == sorted(ADDRESSES)
    assert info.parsed_addresses() == ["192.0.2.7", "2001:db8::7"]
    assert socket.gethostname() not in str(info)


def test_what_is_heard_comes_back() -> None:
    peers = mdns.peers_in(mdns.service_info("x", ADDRESSES))
    assert {str(peer): [str(address) for address in ways] for peer, ways in peers.items()} == {
        PEER: ["/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::7/tcp/4002"]
    }


def test_garbage_is_passed_over() -> None:
    info = mdns.service_info("x", ADDRESSES)
    info._set_properties({"dnsaddr": b"\xff\xfe", "dnsaddr1": "/ip4/1.2.3.4", "dnsaddr2": f"/p2p/{PEER}x", "id": PEER})
    assert mdns.peers_in(info) == {}


def test_no_thread_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that outlives the daemon holds what it has open, and DuckDB prints a screenful about it."""
    monkeypatch.setattr(mdns, "Zeroconf", partial(Zeroconf, interfaces=["127.0.0.1"]))
    before = set(threading.enumerate())
    stop = mdns.start("x" * 32, ADDRESSES, lambda peer, addresses: None, None)
    assert set(threading.enumerate()) - before, "the control"
    stop()
    assert not {thread for thread in threading.enumerate() if "zeroconf" in thread.name.lower()} - before
