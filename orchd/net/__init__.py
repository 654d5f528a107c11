"""The network: find peers under topics, hear of adapters, fetch and verify them. `Network` is all of it."""

from orchd.net.omitted import omit

omit()  # before anything here imports libp2p

from orchd.net.library import Library  # noqa: E402
from orchd.net.network import Network, NetworkStatus, PeerStatus, TopicStatus  # noqa: E402

__all__ = ["Library", "Network", "NetworkStatus", "PeerStatus", "TopicStatus"]
