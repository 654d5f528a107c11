"""The network: find peers under topics, hear of adapters, fetch and verify them. `Network` is all of it."""

from orchd.net import lean

with lean.imports():
    from orchd.net.download import Transferred
    from orchd.net.library import Library
    from orchd.net.network import Network, NetworkStatus, PeerStatus, TopicStatus

__all__ = ["Library", "Network", "NetworkStatus", "PeerStatus", "TopicStatus", "Transferred"]
