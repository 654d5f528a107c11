"""Everything that leaves before it is encrypted is recorded, whatever the protocol."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchd.errors import ConfigInvalid
from orchd.net.capture import Capture
from orchd.net.host import peer_id_of
from orchd.records.manifest import CHUNK_SIZE
from tests.net.support import TOPIC, cluster


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.bin")))


async def test_what_a_node_sends_is_in_the_record_and_nothing_else_is_dialled(tmp_path: Path) -> None:
    async with cluster(tmp_path, width=512) as made:
        a = await made.start("a", capture=str(tmp_path / "sent"))
        b = await made.start("b")
        for peer in (a, b):
            await peer.network.join(TOPIC)
        manifest = await a.publish(rank=512)
        await b.events.wait("adapter.announced", id=manifest.id)
        await b.network.fetch(manifest.id)
        weights = (b.registry.adapter_folder(manifest.id) / "adapter_model.safetensors").read_bytes()
    names = [path.name for path in (tmp_path / "sent").glob("*.bin")]
    sent = everything(tmp_path / "sent")
    for protocol in ("orchd_exchange_1", "ipfs_id_1.0.0", "ipfs_kad_1.0.0"):
        assert any(protocol in name for name in names), names
    assert b"/multistream/1.0.0" in sent
    assert manifest.envelope in sent
    assert TOPIC.encode() in sent
    # All of the file, though it could have gone by the bulk channel: nothing cuts a chunk up on the way to the record.
    for start in range(0, len(weights), CHUNK_SIZE):
        assert weights[start : start + CHUNK_SIZE] in sent
    assert peer_id_of(a.identity.public_key).to_bytes() in sent
    assert b.identity.sign(b"x") not in sent
    for line in (tmp_path / "sent" / "connects.txt").read_text().splitlines():
        assert "127.0.0.1" in line, line


@pytest.mark.parametrize("there", ["a file", "in a file", "not ours"])
def test_where_nothing_can_be_written_is_a_setting_to_mend(tmp_path: Path, there: str) -> None:
    file = tmp_path / "taken"
    file.write_text("")
    folder = {"a file": file, "in a file": file / "sent", "not ours": Path("/proc/sent")}[there]
    with pytest.raises(ConfigInvalid, match=rf"net.capture = '{folder}': nothing can be written there"):
        Capture(folder)


def test_connections_datagrams_and_names_are_recorded(tmp_path: Path) -> None:
    Capture(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))
    socket.getaddrinfo("localhost", None)
    lines = (tmp_path / "connects.txt").read_text()
    assert f"connect ('127.0.0.1', {port})" in lines
    assert f"send ('127.0.0.1', {port})" in lines
    assert "resolve 'localhost'" in lines


def test_mdns_packets_have_files_of_their_own(tmp_path: Path) -> None:
    capture = Capture(tmp_path)
    capture.mdns(b"one")
    capture.mdns(b"two")
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*-mdns.bin"))] == [b"one", b"two"]
