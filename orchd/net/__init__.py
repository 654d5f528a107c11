"""The network: find peers under topics, hear of adapters, fetch and verify them. `Network` is all of it."""

from orchd.net import lean

with lean.imports():
    from orchd.net.doctor import Check, Finding
    from orchd.net.download import Transferred
    from orchd.net.figures import BanStatus, NetworkStats, PeerStatus, prometheus
    from orchd.net.library import Library
    from orchd.net.network import Network, NetworkStatus, TopicStatus

__all__ = [
    "BanStatus",
    "Check",
    "Finding",
    "Library",
    "Network",
    "NetworkStats",
    "NetworkStatus",
    "PeerStatus",
    "TopicStatus",
    "Transferred",
    "prometheus",
]
