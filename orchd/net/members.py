"""Who shares which topics with us, and so: what may be shown to whom.

A peer says its topics in `Hello`. Of the open ones that is believed, because anybody may take part in them; a private
one counts only with a proof of its secret, a LAN one only while the peer is connected from this network. What a
`Hello` of ours says is cut in the same way: an outsider hears of no closed topic at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchd.net import messages
from orchd.net.messages import Hello
from orchd.net.policy.names import Kind, is_open, kind_of, proof
from orchd.net.policy.rounds import Peer

P = TypeVar("P", bound=Peer)


@dataclass(frozen=True)
class _Said:
    """Topics that a peer named, and proofs that it gave, as they came."""

    topics: frozenset[bytes]
    proofs: frozenset[bytes]
    as_of_ms: int


class Members(Generic[P]):
    """`topics` are the joined ones, by key; `secret` gives a private one's; `is_near` tells whether a connected peer is
    on this network, `clock` the time in milliseconds since 1970."""

    def __init__(
        self,
        this_node: P,
        topics: Mapping[bytes, str],
        secret: Callable[[bytes], bytes | None],
        is_near: Callable[[P], bool],
        clock: Callable[[], int],
    ) -> None:
        self._this_node = this_node.to_bytes()
        self._topics, self._secret, self._is_near = topics, secret, is_near
        self._clock = clock
        #: The topics of our last `Hello`, and since when they are those.
        self._told: frozenset[bytes] | None = None
        self._as_of_ms = 0
        self._said: dict[P, _Said] = {}
        #: What each peer has to show for each private topic: a name stands for one secret alone.
        self._proofs: dict[P, dict[bytes, bytes]] = {}

    def hello(self, peer: P) -> Hello:
        """What `peer` may know of our topics."""
        keys, proofs = [], []
        for key, name in list(self._topics.items())[: messages.TOPICS_LIMIT]:
            kind = kind_of(name)
            if kind is Kind.PRIVATE:
                if secret := self._secret(key):
                    proofs.append(proof(secret, self._this_node, peer.to_bytes()))
            elif kind is not Kind.LAN or self._is_near(peer):
                keys.append(key)
        if (now := frozenset(self._topics)) != self._told:
            self._told, self._as_of_ms = now, max(self._as_of_ms + 1, self._clock())
        return Hello(topics=tuple(keys), proofs=tuple(proofs), as_of_ms=self._as_of_ms)

    def heard(self, peer: P, hello: Hello) -> None:
        """Each `Hello` comes on a stream of its own: an older one may come last, and changes nothing."""
        before = self._said.get(peer)
        if before is None or not hello.as_of_ms or hello.as_of_ms >= before.as_of_ms:
            self._said[peer] = _Said(frozenset(hello.topics), frozenset(hello.proofs), hello.as_of_ms)

    def lost(self, peer: P) -> None:
        """The last connection to `peer` has ended."""
        self._said.pop(peer, None)
        self._proofs.pop(peer, None)

    def knows(self, peer: P) -> bool:
        """Whether `peer` speaks our protocol."""
        return peer in self._said

    def of(self, peer: P) -> frozenset[bytes]:
        """Keys of the topics that `peer` shares with us, as far as it may."""
        said = self._said.get(peer)
        if said is None:
            return frozenset()
        named = said.topics
        return frozenset(
            key
            for key, name in self._topics.items()
            if (key in named or said.proofs) and self._is_member(peer, said, key, name)
        )

    def _is_member(self, peer: P, said: _Said, key: bytes, name: str) -> bool:
        kind = kind_of(name)
        if kind is Kind.PRIVATE:
            secret = self._secret(key)
            return secret is not None and self._proof(peer, key, secret) in said.proofs
        return key in said.topics and (kind is not Kind.LAN or self._is_near(peer))

    def _proof(self, peer: P, key: bytes, secret: bytes) -> bytes:
        proofs = self._proofs.setdefault(peer, {})
        if key not in proofs:
            proofs[key] = proof(secret, peer.to_bytes(), self._this_node)
        return proofs[key]

    def members(self, topics: Collection[bytes] | None = None) -> list[P]:
        """Connected peers that share one of `topics`, or any topic, with us."""
        shared = ((peer, self.of(peer)) for peer in tuple(self._said))
        return [peer for peer, keys in shared if (keys if topics is None else not keys.isdisjoint(topics))]

    def topics_of(self, peer: P) -> list[str]:
        """Names of the topics that `peer` shares with us."""
        return sorted(self._topics[key] for key in self.of(peer))

    def may_see(self, peer: P, topics: Iterable[str]) -> bool:
        """Whether a peer may have what was announced under these topics: one of them is open, or shared with it."""
        names = frozenset(topics)
        return any(map(is_open, names)) or not names.isdisjoint(self.topics_of(peer))

    def visible(self, peer: P, keys: Iterable[bytes]) -> list[str]:
        """Names of those topics that `peer` asks for and may hear of."""
        shared = self.of(peer)
        named = ((key, self._topics[key]) for key in keys if key in self._topics)
        return [name for key, name in named if is_open(name) or key in shared]
