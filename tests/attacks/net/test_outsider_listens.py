"""An outsider connects to a member of a private topic and reads everything that it is sent, before encryption.

It must not learn the topic's name or secret from any protocol; its key only as a DHT server, where it stands for
nothing but itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchd.net.messages import topic_key
from orchd.net.policy.names import private_name
from orchd.net.topics import provider_key
from tests.net.support import TOPIC, cluster, until

SECRET = bytes(range(100, 132))


@pytest.mark.parametrize("name", [private_name("family", SECRET), "lan/family"])
async def test_nothing_of_a_closed_topic_is_sent_to_outsiders(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sent"
    secret = SECRET if name.startswith("private/") else None
    async with cluster(tmp_path) as made:
        outsider = await made.start("outsider")
        member = await made.start("member", capture=str(folder))
        if secret is None:  # everybody of this test is near
            assert member.network._node is not None
            member.network._node.members._is_near = lambda peer: False
        for peer in (member, outsider):
            await peer.network.join(TOPIC)
        await member.network.join(name, secret)
        closed = member.make(1)
        await member.network.tell(member.announcement(closed, name))
        open_one = await member.publish(seed=2)
        await outsider.events.wait("adapter.announced", id=open_one.id)
        assert outsider.network._node is not None
        if secret is not None:
            store = outsider.network._node.host.dht.provider_store
            await until(lambda: store.get_providers(provider_key(name)), "announced on the DHT")
        await until(lambda: member.network.topics()[0].members or member.network.topics()[1].members, "greeted")
    sent = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert any(topic_key(TOPIC) in data for data in sent.values()), "the control: open topics are seen"
    for file, data in sent.items():
        assert SECRET not in data, file
        assert b"family" not in data, file
        assert closed.digest not in data, file
        assert topic_key(name) not in data or ("kad" in file and secret is not None), file
