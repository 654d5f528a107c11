"""The giver's side of the bulk channel (`bulk.py`): one port, opened when it is asked for first.

A connection is taken only from an address that has a token, within a few seconds of its making, and shows that token;
all others are closed before a byte is read. Turns, paces and quotas are those of `upload.py`.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import os
import secrets
import socket
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from libp2p.peer.id import ID

from orchd.errors import OrchdError, PeerMisbehaved
from orchd.net import messages
from orchd.net.bulk import Line, wrap
from orchd.net.exchange import QUESTIONS_BURST, QUESTIONS_RATE
from orchd.net.messages import BulkAt, Failed, GetRange, OpenBulk, Range, Reply
from orchd.net.policy.rates import Bucket
from orchd.net.upload import HELD_S, PORTION, Uploads

log = logging.getLogger(__name__)

TOKEN_SIZE = 32
#: A token is good for so many seconds; so many wait at once, and so many of one peer.
TOKEN_S, TOKENS, TOKENS_EACH = 10.0, 64, 4
#: Channels at once, a thread each; so many of one peer, and of one address (others may be behind it).
CHANNELS, CHANNELS_EACH, CHANNELS_AT = 16, 4, 8
REQUEST_LIMIT = 4096

K = TypeVar("K")


@dataclass(frozen=True)
class Ticket:
    """Who may come in, from where, until when, and for what."""

    token: bytes
    peer: ID
    host: str
    adapter: bytes
    until: float


class BulkServer:
    """`hosts`: addresses to listen on, as texts; `port` 0 is any free one."""

    def __init__(self, uploads: Uploads, hosts: Sequence[str], port: int, spawn: Callable[..., None]) -> None:
        self._uploads, self._hosts, self._port, self._spawn = uploads, hosts, port, spawn
        self._tickets: list[Ticket] = []
        self._listeners: dict[socket.AddressFamily, trio.SocketListener] = {}
        self._channels = trio.CapacityLimiter(CHANNELS)
        #: Channels that are open, by address and by peer.
        self._hosts_in: Counter[str] = Counter()
        self._peers_in: Counter[ID] = Counter()
        self._token = trio.lowlevel.current_trio_token()
        self._context: ssl.SSLContext | None = None
        self._certificate = b""

    def check_port(self) -> None:
        """Warn when the port of the settings can't be had: nothing is listened on before somebody asks."""
        for host in self._hosts if self._port else ():
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind((host, self._port))
                except OSError as error:
                    log.warning(
                        "net.bulk_port = %s can't be listened on at %s (%s): adapters are given over libp2p, slower",
                        self._port, host, error.strerror,
                    )  # fmt: skip

    async def answer(self, peer: ID, host: str, request: OpenBulk) -> Reply:
        """A way in for `peer`, whose address is `host`."""
        now = trio.current_time()
        self._tickets = [ticket for ticket in self._tickets if ticket.until > now]
        mine = sum(ticket.peer == peer for ticket in self._tickets)
        if len(self._tickets) >= TOKENS or mine >= TOKENS_EACH or not self._has_room(peer, host):
            return Failed(reason=messages.BUSY)
        port = await self._listen(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if port is None:
            return Failed(reason=messages.UNKNOWN)
        token = secrets.token_bytes(TOKEN_SIZE)
        self._tickets.append(Ticket(token, peer, host, request.adapter, now + TOKEN_S))
        return BulkAt(port=port, token=token, certificate=self._certificate)

    def _has_room(self, peer: ID, host: str) -> bool:
        return (
            self._channels.available_tokens > 0
            and self._peers_in[peer] < CHANNELS_EACH
            and self._hosts_in[host] < CHANNELS_AT
        )

    async def _listen(self, family: socket.AddressFamily) -> int | None:
        """The port, None when nothing can be listened on."""
        if self._context is None:
            self._context, self._certificate = await trio.to_thread.run_sync(make_context)
        if family not in self._listeners:
            hosts = [host for host in self._hosts if (":" in host) == (family == socket.AF_INET6)]
            if not hosts:
                return None
            try:
                (listener,) = await trio.open_tcp_listeners(self._port, host=hosts[0])
            except (OSError, ValueError) as error:
                log.info("no bulk channel: %s", error)
                return None
            self._listeners[family] = listener
            self._spawn(self._run, listener)
        port: int = self._listeners[family].socket.getsockname()[1]
        return port

    async def _run(self, listener: trio.SocketListener) -> None:
        async with listener, trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept()
                try:
                    host = stream.socket.getpeername()[0].removeprefix("::ffff:")
                except OSError:  # reset before it was taken
                    stream.socket.close()
                    continue
                now = trio.current_time()
                is_expected = any(ticket.host == host and ticket.until > now for ticket in self._tickets)
                if is_expected and self._channels.available_tokens and self._hosts_in[host] < CHANNELS_AT:
                    self._hosts_in[host] += 1
                    nursery.start_soon(self._serve, stream.socket, host)
                else:
                    stream.socket.close()

    async def _serve(self, taken: trio.socket.SocketType, host: str) -> None:
        """One connection, in a thread."""
        assert self._context is not None
        line = Line(wrap(self._context, taken, server=True), ID(b""))
        try:
            await line.run(partial(self._talk, line, host), self._channels)
        except (OrchdError, OSError) as error:
            log.info("bulk channel from %s: %s", host, error)
        finally:
            self._uploads.count("bytes_in", line.received)
            self._uploads.count("bytes_out", line.sent)
            _one_less(self._hosts_in, host)
            _one_less(self._peers_in, line.peer)

    def _talk(self, line: Line, host: str) -> None:
        with line.within(TOKEN_S):
            line.shake_hands()
            token = line.read_exactly(TOKEN_SIZE)
        ticket = trio.from_thread.run_sync(self._use, token, line, host)
        line.go_on()
        questions = Bucket(QUESTIONS_RATE, QUESTIONS_BURST, time.monotonic())
        while True:
            request = messages.decode_request(line.frame(REQUEST_LIMIT))
            if not isinstance(request, GetRange) or request.adapter != ticket.adapter:
                raise PeerMisbehaved(f"{ticket.peer} asks on the bulk channel for what it was not opened for")
            if questions.take(time.monotonic()):
                self._give(line, request)
            else:
                line.send(Failed(reason=messages.BUSY))

    def _use(self, token: bytes, line: Line, host: str) -> Ticket:
        """The ticket with this token; it is good for once, and its peer's line this is. Raises `PeerMisbehaved`."""
        for ticket in self._tickets:
            if hmac.compare_digest(ticket.token, token):
                self._tickets.remove(ticket)
                if ticket.host == host and ticket.until > trio.current_time():
                    self._uploads.count("bulk_channels", 1)
                    line.peer = ticket.peer
                    self._peers_in[ticket.peer] += 1
                    return ticket
        raise PeerMisbehaved(f"{host} shows a token that is none")

    def _give(self, line: Line, request: GetRange) -> None:
        """One answer: a slot, the quota, the bytes at the pace of all.

        The thread waits for the other one for its turn alone: on a busy machine each time takes long.
        """
        uploads = self._uploads
        slot, refusal = trio.from_thread.run(uploads.begin, line.peer, request.length)
        try:
            data = None if refusal else uploads.read(request)
            if data is None:
                line.send(refusal or Failed(reason=messages.UNKNOWN))
                return
            self._soon(uploads.count, "bytes_served", len(data))
            line.send(Range(length=len(data)))
            view, begun = memoryview(data), time.monotonic()
            while view:
                count = trio.from_thread.run(uploads.paced, len(view)) if uploads.is_limited else PORTION
                line.write(view[:count])
                view = view[count:]
                if time.monotonic() - begun > HELD_S:
                    trio.from_thread.run(slot.share)
        finally:
            self._soon(slot.give_back)

    def _soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it in the other thread, without waiting, in the order of the calls."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)


def _one_less(counted: Counter[K], key: K) -> None:
    """Keys that are at nothing are forgotten."""
    counted[key] -= 1
    if counted[key] <= 0:
        del counted[key]


def make_context() -> tuple[ssl.SSLContext, bytes]:
    """A context for TLS 1.3 with a certificate of its own, and the certificate's SHA-256. The key is never kept."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orchd")])
    begin = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    with tempfile.TemporaryDirectory() as folder:  # the ssl module reads files only
        path = Path(folder) / "key.pem"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)
    return context, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
