"""A package index on this machine: wheels that are made here, served over HTTP, each request written down."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes], needs: tuple[str, ...] = ()) -> Path:
    """A pure wheel, not compressed."""
    info = f"{name}-{version}.dist-info"
    lines = "".join(f"Requires-Dist: {one}\n" for one in needs)
    members = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in members.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for member, data in (members | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}).items():
            file.writestr(member, data)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class Index:
    """`asked` are the wheels that were given out. While `held` is one's name, whoever asks for it waits, and `reached`
    is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.held = ""
        self.reached = threading.Event()
        self.release = threading.Event()
        self.url = ""

    def page(self, name: str) -> bytes:
        """One package's page of the simple index (PEP 503)."""
        rows = []
        for file in sorted(self.folder.glob(f"{name}-*.whl")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            link = f'href="/files/{file.name}#sha256={digest}" data-dist-info-metadata="true"'
            rows.append(f"<a {link}>{file.name}</a>")
        return "".join(rows).encode()


def _metadata(file: Path) -> bytes:
    with zipfile.ZipFile(file) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA")))


@contextmanager
def served(index: Index) -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            _, kind, name = self.path.strip("/").rjust(1, "/").partition("files/")
            if name.endswith(".whl") and body:
                index.asked.append(name)
                if index.held and name.startswith(index.held):
                    index.reached.set()
                    index.release.wait()
            if name.endswith(".metadata"):  # PEP 658
                data = _metadata(index.folder / name.removesuffix(".metadata"))
            else:
                data = (
                    (index.folder / name).read_bytes() if kind else index.page(self.path.strip("/").rpartition("/")[2])
                )
            self.send_response(200 if data else 404)
            self.send_header("content-type", "application/octet-stream" if kind else "text/html")
            self.send_header("cache-control", "max-age=600")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                return  # who asked was killed

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    try:
        yield index
    finally:
        index.release.set()
        server.shutdown()
        server.server_close()
