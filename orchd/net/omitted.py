"""Parts of libp2p that orchd never uses and does not load: QUIC, WebSocket, UPnP, and an ACME client.

`import libp2p` 0.8.1 loads all of them, with aioquic, requests, httpx and rich behind them: 13 MB of memory, 0.4 s of
start, and code whose only purpose is to talk to servers on the internet (the ACME client has a certificate authority's
address in it). Placeholders stand in their place; a test starts two hosts without them and sees that none is loaded.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

#: Module → the names that the rest of libp2p imports from it.
OMITTED: dict[str, tuple[str, ...]] = {
    "libp2p.discovery.upnp": (),
    "libp2p.discovery.upnp.upnp": ("UpnpManager",),
    "libp2p.security.tls.autotls": (),
    "libp2p.security.tls.autotls.acme": ("ACMEClient", "compute_b36_peer_id"),
    "libp2p.security.tls.autotls.broker": ("BrokerClient",),
    "libp2p.transport.quic": (),
    "libp2p.transport.quic.config": ("QUICTransportConfig",),
    "libp2p.transport.quic.connection": ("QUICConnection",),
    "libp2p.transport.quic.exceptions": ("QUICStreamClosedError", "QUICStreamResetError"),
    "libp2p.transport.quic.stream": ("QUICStream",),
    "libp2p.transport.quic.transport": ("QUICTransport",),
    "libp2p.transport.quic.utils": ("is_quic_multiaddr",),
    "libp2p.transport.websocket": (),
    "libp2p.transport.websocket.transport": ("WebsocketTransport",),
}


def omit() -> None:
    """Put the placeholders in place. Call it before the first `import libp2p`; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Absent(Exception):
    """Stands for a class that is not loaded: nothing is an instance of it, and making one is a fault of ours."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("a part of libp2p was used that orchd leaves out (orchd/net/omitted.py)")


def _never(*_: object) -> bool:
    return False


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name in OMITTED else None

    def exec_module(self, module: ModuleType) -> None:
        for name in OMITTED[module.__name__]:
            value: Any = _never if name.startswith("is_") else type(name, (_Absent,), {})
            setattr(module, name, value)
