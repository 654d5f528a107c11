"""What of libp2p is not loaded, and that nothing which matters is among it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchd.net import lean

SCRIPT = """
import sys
import orchd.net
from orchd.net import lean
assert not [name for name in sys.modules if lean._is_unused(name)], "placeholders are left over"
import zeroconf  # the real one
assert zeroconf.Zeroconf.__module__.startswith("zeroconf")
from libp2p.network import swarm
from libp2p.transport.quic import transport
try:
    transport.QuicConfiguration()
except ImportError as error:
    assert "does not load" in str(error)
else:
    raise SystemExit("a placeholder can be used")
"""


def test_placeholders_are_gone_and_can_not_be_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["cryptography", "nacl", "noise", "Crypto", "coincurve", "fastecdsa", "libp2p.security.noise"]
)
def test_what_verifies_is_never_a_placeholder(name: str) -> None:
    assert not lean._is_unused(name)
    assert not any(package.startswith(name) for package in lean.UNUSED)


def test_the_resolver_of_the_library_is_not_loaded() -> None:
    script = """
import sys
import orchd.net
from libp2p.network import swarm
from orchd.net.resolver import LIBRARY, Resolver
assert swarm.DNSResolver is Resolver
assert "dns" not in sys.modules and LIBRARY not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_imported_before_it_stays_whole() -> None:
    script = "import libp2p, orchd.net; from libp2p.relay.circuit_v2 import nat; assert nat.is_private_ip('10.0.0.1')"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
