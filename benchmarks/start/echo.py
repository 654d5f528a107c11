"""The peer of `rpc-p50`: asyncio on a Unix socket, sends each line back. usage: python -m benchmarks.start.echo PATH"""

from __future__ import annotations

import asyncio
import sys


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(_serve, path)
    print("ready", flush=True)
    await server.serve_forever()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
