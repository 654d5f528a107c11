"""Whether an Ollama answers on this machine. One that is elsewhere is never asked: nothing of the demo leaves."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

DEFAULT = ("127.0.0.1", 11434)
ANSWER_SECONDS = 1.0


def loopback_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Where `OLLAMA_HOST` says it listens if that is on loopback, else Ollama's usual place there."""
    written = environ.get("OLLAMA_HOST", "").strip()
    try:
        parts = urlsplit(written if "://" in written else f"//{written}")
        host, port = parts.hostname or DEFAULT[0], parts.port or DEFAULT[1]
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return DEFAULT
    return (host, port) if local else DEFAULT


def version(address: tuple[str, int]) -> str | None:
    """The version of the Ollama that answers there; None when nobody does, or somebody else."""
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        connection.request("GET", "/api/version")
        answer = json.loads(connection.getresponse().read(4096))
        return str(answer["version"]) if isinstance(answer, dict) and "version" in answer else None
    return None
