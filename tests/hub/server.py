"""A hub for tests, as strict as the real one: two hosts, redirects, ranges, gates, and a log of who asked what.

Source: what huggingface.co answered in 2025 (`curl -i`), and huggingface_hub `file_download.py`, `utils/_http.py`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "4f3a1c" + "0" * 34
TOKEN = "hf_a-token-that-nobody-may-see"


@dataclass
class FakeHub:
    """`files` by path; those in `large` are on another host. `cut` ends that many answers in their middle."""

    files: dict[str, bytes]
    large: frozenset[str] = frozenset()
    gated: Any = False
    accepted: bool = True
    private: bool = False
    licence: Any = "apache-2.0"
    cut: int = 0
    no_ranges: bool = False
    lie: str = ""
    busy: bool = False
    endpoint: str = ""
    store: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Host, path, and the Authorization that came with it."""

    ranges: list[str] = field(default_factory=list)

    def info(self) -> dict[str, object]:
        return {
            "_id": "1",
            "id": "org/tiny",
            "sha": COMMIT,
            "private": self.private,
            "gated": self.gated,
            "tags": [f"license:{self.licence}"],
            "cardData": {"license": self.licence},
            "safetensors": {"parameters": {"BF16": 1000}, "total": 1000},
            "siblings": [self.sibling(path, data) for path, data in self.files.items()],
        }

    def sibling(self, path: str, data: bytes) -> dict[str, object]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if path not in self.large:
            return {"rfilename": path, "blobId": git, "size": len(data)}
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"rfilename": path, "blobId": git, "size": len(data), "lfs": lfs}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Run it on two ports of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(hub, self)

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    hub.endpoint, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def answer(hub: FakeHub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(urlsplit(request.path).path)
    host = f"http://{request.headers['Host']}"
    hub.asked.append((host, path, request.headers.get("Authorization", "")))
    if host == hub.store:
        send_file(hub, request, path.removeprefix("/store/"))
    elif hub.busy:
        refuse(request, 429, "", {"Retry-After": "30"})
    elif hub.private and not allowed(request):
        refuse(request, 401, "RepoNotFound")
    elif path.startswith("/api/models/org/tiny/revision/"):
        if urlsplit(request.path).query != "blobs=true":
            refuse(request, 400, "")
        elif path.rpartition("/")[2] not in ("main", COMMIT):
            refuse(request, 404, "RevisionNotFound")
        else:
            send(request, 200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"})
    elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
        resolve(hub, request, path.removeprefix(f"/org/tiny/resolve/{COMMIT}/"))
    else:
        refuse(request, 401 if not allowed(request) else 404, "RepoNotFound")


def resolve(hub: FakeHub, request: BaseHTTPRequestHandler, name: str) -> None:
    if hub.gated and not allowed(request):
        refuse(request, 401, "GatedRepo")
    elif hub.gated and not hub.accepted:
        refuse(request, 403, "GatedRepo")
    elif name not in hub.files:
        refuse(request, 404, "EntryNotFound")
    elif name in hub.large:
        send(request, 302, b"", {"Location": f"{hub.store}/store/{name}", "X-Linked-Size": str(len(hub.files[name]))})
    else:
        send_file(hub, request, name)


def allowed(request: BaseHTTPRequestHandler) -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"


def send_file(hub: FakeHub, request: BaseHTTPRequestHandler, name: str) -> None:
    data = hub.files[name]
    if name == hub.lie:
        data = data[:-1] + b"?"
    wanted, start = request.headers.get("Range", ""), 0
    hub.ranges.append(wanted)
    headers = {"Accept-Ranges": "bytes"}
    if wanted and not hub.no_ranges:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    rest = data[start:]
    status = 206 if "Content-Range" in headers else 200
    if hub.cut > 0 and name in hub.large:
        hub.cut -= 1
        send(request, status, rest, headers, only=len(rest) // 2)
        request.close_connection = True
    else:
        send(request, status, rest, headers)


def refuse(request: BaseHTTPRequestHandler, status: int, code: str, more: dict[str, str] | None = None) -> None:
    headers = {"X-Error-Code": code} if code else {}
    send(request, status, b'{"error":"no"}', headers | (more or {}))


def send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], only: int | None = None
) -> None:
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(body))}).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body if only is None else body[:only])
    request.wfile.flush()
