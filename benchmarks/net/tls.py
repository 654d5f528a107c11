"""Sends one file over plain TLS, as a process of its own. usage: python -m benchmarks.net.tls FILE

Prints a port; whoever connects gets the file. Leaves when its input ends.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

from orchd.net.bulk_server import make_context

READ_SIZE = 1 << 20


def serve(server: socket.socket, file: Path) -> None:
    context, _ = make_context()
    while True:
        accepted, _ = server.accept()
        with context.wrap_socket(accepted, server_side=True) as secured, file.open("rb", buffering=0) as source:
            while block := source.read(READ_SIZE):
                secured.sendall(block)


def main(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server, file), daemon=True).start()
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
