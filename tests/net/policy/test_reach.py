"""Where an address is."""

from __future__ import annotations

import pytest

from orchd.net.policy.reach import ip_of, is_near, is_this_machine, network_of


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("/ip4/127.0.0.1/tcp/1", True),
        ("/ip4/192.168.3.4/tcp/1", True),
        ("/ip4/10.1.2.3/tcp/1", True),
        ("/ip4/169.254.7.7/tcp/1", True),
        ("/ip6/fe80::1/tcp/1", True),
        ("/ip6/fd12::1/tcp/1", True),
        ("/ip6/::ffff:192.168.0.1/tcp/1", True),
        ("/ip4/8.8.8.8/tcp/1", False),
        ("/ip4/100.64.0.1/tcp/1", False),
        ("/ip6/2a00:1450::1/tcp/1", False),
        ("/ip6/::ffff:8.8.8.8/tcp/1", False),
        ("/ip4/192.168.3.4/tcp/1/p2p/Q/p2p-circuit", False),
        ("/dns4/localhost/tcp/1", False),
        ("", False),
    ],
)
def test_near_is_this_machine_and_private_networks(address: str, near: bool) -> None:
    assert is_near(address) is near


def test_this_machine() -> None:
    assert is_this_machine("/ip4/127.0.0.5/tcp/1")
    assert is_this_machine("/ip6/::1/tcp/1")
    assert not is_this_machine("/ip4/192.168.0.1/tcp/1")
    assert not is_this_machine("")


def test_one_customer_is_one_place() -> None:
    assert ip_of("/ip6/2a00:1:2:3::7/tcp/1") == "2a00:1:2:3::7"
    assert network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("2a00:1:2:3::7") == network_of("2a00:1:2:3:ffff::1") == "2a00:1:2:3::/64"
    assert network_of("2a00:1:2:4::7") != network_of("2a00:1:2:3::7")
    assert network_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert network_of("nowhere") == "nowhere"
