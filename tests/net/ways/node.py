"""A node as a process of its own, for a network namespace of its own: one line of JSON is a command, one the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trio

from orchd.net import relayed
from tests.net.support import TOPIC, Peer, cluster

relayed.FIRST_S = 0.0


async def obey(peer: Peer, command: str, argument: str) -> Any:
    network = peer.network
    match command:
        case "addresses":
            return network.addresses()
        case "publish":
            return (await peer.publish(rank=int(argument))).id
        case "fetch":
            return (await network.fetch(argument)).verdict
        case "connect":
            return await network.connect(argument)
        case "peers":
            return {one.peer: one.address for one in network.peers()}
        case "counters":
            return network.stats().counters
        case "doctor":
            return {check.name: (str(check.finding), check.found, check.next) for check in await network.examine()}
    raise ValueError(command)


async def main(name: str, folder: str, settings: str) -> None:
    async with cluster(Path(folder)) as made:
        peer = await made.start(name, **{key: tuple(value) for key, value in json.loads(settings).items()})
        await peer.network.join(TOPIC)
        print(json.dumps(peer.network.peer_id), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            command, _, argument = line.strip().partition(" ")
            try:
                answer = {"is": await obey(peer, command, argument)}
            except Exception as error:
                answer = {"failed": repr(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
