"""What the DHT and Yamux say by themselves, and how much of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from libp2p.kad_dht import kad_dht
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.stream_muxer.yamux import yamux

from orchd.config import NetConfig
from orchd.net import pulse, topics
from orchd.net.hardening import PROVIDER_EXPIRY_S, quiet_dht, without
from tests.net.support import until
from tests.net.test_hardening import a_host, join

NAME = "test/quiet"


@pytest.mark.parametrize("corrected", [True, False])
async def test_answers_name_peers_without_their_records(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Message] = []

    with nullcontext() if corrected else without(quiet_dht):
        async with a_host(1) as server, a_host(2) as other, a_host(3) as seeker:
            for host in (other, seeker):
                await join(host, server)
            await until(lambda: server.dht.get_routing_table_size() == 2, "identified")
            assert await topics.announce(other.dht, NAME)
            ask = kad_dht.KadDHT._add_closer_peers_to_response

            def added(self: Any, response: Message, *arguments: Any, **named: Any) -> None:
                ask(self, response, *arguments, **named)
                answers.append(response)

            monkeypatch.setattr(kad_dht.KadDHT, "_add_closer_peers_to_response", added)
            found = await topics.lookup(seeker.dht, NAME)
            assert list(found) == [other.id]
            assert found[other.id], "its addresses are told all the same"
            named = [peer for answer in answers for peer in (*answer.closerPeers, *answer.providerPeers)]
            assert named
            assert any(peer.HasField("signedRecord") for peer in named) != corrected


def test_intervals_fit_each_other() -> None:
    with without(quiet_dht):
        assert (kad_dht.ROUTING_TABLE_REFRESH_INTERVAL, yamux.RTT_MEASURE_INTERVAL) == (600, 30)
    assert (kad_dht.ROUTING_TABLE_REFRESH_INTERVAL, yamux.RTT_MEASURE_INTERVAL) == (1800, 100)
    assert yamux.RTT_MEASURE_INTERVAL < pulse.IDLE_QUIET_S, "else each quiet link would be asked on a stream"
    assert 2 * NetConfig().announce_interval_s < PROVIDER_EXPIRY_S, "one announcement may get lost"
