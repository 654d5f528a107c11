"""Importing libp2p without what orchd never uses of it: 15 MB less in every daemon.

`import libp2p` loads every transport and tool it knows, whichever are used. While `imports()` is open, the packages in
`UNUSED` are served as placeholders that can be named, subclassed and called at import time; afterwards, using one
raises ImportError. Nothing that signs, verifies or encrypts may be on the list. `tests/net/test_lean.py` watches that.
In place of the resolver of names in addresses there is `resolver.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from orchd.net import resolver

#: QUIC, the metrics exporter, relays, certificates by ACME (two HTTP clients and a terminal toolkit), and mDNS, which
#: `mdns.py` imports for itself when it is turned on.
UNUSED = ("aioquic", "prometheus_client", "libp2p.relay", "libp2p.security.tls.autotls", "zeroconf")

_open = False


class _Placeholder(type):
    """A class that stands for anything, as long as imports are open."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(cls.__name__, name)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return _stand_in(cls.__name__, "()")

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _stand_in(owner: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if not _open:
        raise ImportError(f"{owner}.{name} belongs to a part of libp2p that orchd does not load (see {__name__})")
    return _Placeholder(name, (), {})


class _PlaceholderModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _stand_in(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        served = fullname == resolver.LIBRARY or _is_unused(fullname)
        return ModuleSpec(fullname, self, is_package=True) if served else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == resolver.LIBRARY:
            vars(module)["DNSResolver"] = resolver.Resolver


def _is_unused(name: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in UNUSED)


@contextmanager
def imports() -> Iterator[None]:
    """Import libp2p in this block. What was imported before stays as it is."""
    global _open
    if "libp2p" in sys.modules:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    _open = True
    try:
        yield
    finally:
        _open = False
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _PlaceholderModule)]:
            del sys.modules[name]
