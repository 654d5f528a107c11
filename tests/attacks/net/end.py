"""A node of its own process, at one end of a wire: `python -m tests.attacks.net.end NAME FOLDER ADDRESS`.

It does what comes on standard input, a list of words in JSON a line, and tells its events and what was done the same
way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trio

from orchd.errors import OrchdError
from orchd.net import pulse
from tests.net.support import TOPIC, Peer, Recorder, cluster

#: Of a base of this width, an adapter of rank r has 8 · WIDTH · r bytes.
WIDTH = 512


class Telling(Recorder):
    """Events go to standard output, too."""

    def emit(self, kind: str, data: dict[str, Any], /) -> None:
        super().emit(kind, data)
        tell({"event": kind, **data})


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def main(name: str, folder: Path, address: str, settings: dict[str, Any]) -> None:
    async with cluster(folder, width=WIDTH) as made:
        peer = made.make(name, bootstrap=(), listen=(f"/ip4/{address}/tcp/0",), **settings)
        telling = Telling()
        peer.events = telling
        peer.network._context.events.__class__ = Telling  # what was handed out before
        await made.run(peer)
        await peer.network.join(TOPIC)
        tell({"up": peer.network.addresses()[0], "peer": peer.network.peer_id})
        async with trio.open_nursery() as nursery:
            async for line in trio.wrap_file(sys.stdin):
                nursery.start_soon(obey, peer, *json.loads(line))
            nursery.cancel_scope.cancel()


async def obey(peer: Peer, verb: str, *words: Any) -> None:
    try:
        match verb, words:
            case "connect", [address]:
                done: Any = await peer.network.connect(address)
            case "publish", [seed, rank]:
                done = (await peer.publish(seed=seed, rank=rank)).id
            case "fetch", [id]:
                done = (await peer.network.fetch(id)).verdict
            case "pulse", [name, seconds]:
                setattr(pulse, name, seconds)
                done = name
            case "status", []:
                status = peer.network.status()
                done = {
                    "peers": status.peers,
                    "restarts": status.restarts,
                    "bans": len(status.bans),
                    "members": status.members,
                }
            case _:
                raise AssertionError(f"{verb} {words} is none")
        tell({"did": verb, "is": done})
    except OrchdError as error:
        tell({"did": verb, "error": str(error)})


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
