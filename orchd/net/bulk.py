"""The bulk channel: the ranges of `/orchd/exchange/1` over TLS 1.3 sockets in worker threads, four times cheaper.

Noise and Yamux in Python reach half of what a plain client does. So whoever is about to fetch much asks on an
authenticated libp2p stream for a way in (`OpenBulk`): a port, a token for one use, and the digest of a certificate that
the giver made for itself. The taker connects to the address at which it has the peer already, knows it by that
certificate, and shows the token. From there on the stream's own frames go over the socket, ranges of that one adapter
alone. It is an addition: where the port can't be reached (behind a relay, behind a router) the stream is used.

Here is what both sides share, and the taker's side; `bulk_server.py` is the giver's.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import trio
from libp2p.peer.id import ID

from orchd.errors import PeerMisbehaved, PeerTimeout, PeerUnreachable
from orchd.net import messages
from orchd.net.messages import HEADER, BulkAt, Failed, Reply, Request

#: Seconds to connect and for each step of shaking hands, and without a byte in either direction.
CONNECT_S, SILENCE_S = 3.0, 30.0
#: Seconds until a portion has been taken, however steadily its bytes drip, and between two looks whether it has.
DRIP_S, LOOK_S = 60.0, 1.0

R = TypeVar("R")


class Line:
    """Frames over a blocking socket, for one thread."""

    def __init__(self, sock: ssl.SSLSocket, peer: ID) -> None:
        self.peer = peer
        #: Bytes of frames and files in both directions.
        self.sent = self.received = 0
        #: When what is under way has to be done, by `time.monotonic`.
        self.until = math.inf
        self._socket = sock
        self._is_late = False

    def send(self, message: Request | Reply) -> None:
        self.write(messages.encode(message))

    def write(self, data: bytes | memoryview) -> None:
        """Raises `PeerUnreachable` or `PeerTimeout`."""
        with self._told(), self.within(DRIP_S):
            self._socket.sendall(data)
        self.sent += len(data)

    def fill(self, view: memoryview, seconds: float) -> int:
        """As many bytes as fit, or as came in so many seconds; one at least. Raises `PeerUnreachable` or `PeerTimeout`.

        TLS gives 16 KiB at a time: what is done for each of them is kept small.
        """
        done, size, receive, until = 0, len(view), self._socket.recv_into, time.monotonic() + seconds
        try:
            with self._told():
                while done < size:
                    count = receive(view[done:])
                    if not count:
                        raise PeerUnreachable(f"{self.peer} has closed the bulk channel")
                    done += count
                    if time.monotonic() > until:
                        break
        finally:
            self.received += done
        return done

    def read_exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            view = view[self.fill(view, SILENCE_S) :]
        return bytes(data)

    def frame(self, limit: int) -> bytes:
        """The next frame's body, within `SILENCE_S` as a whole. Raises `PeerMisbehaved` too."""
        with self.within(SILENCE_S):
            (length,) = HEADER.unpack(self.read_exactly(HEADER.size))
            if length > limit:
                raise PeerMisbehaved(f"a frame of {length} bytes; at most {limit} are taken")
            return self.read_exactly(length)

    def reply(self, wanted: type[R]) -> R:
        """The next answer. Raises `PeerBusy`, `PeerRefused` or `PeerMisbehaved` too."""
        reply = messages.decode_reply(self.frame(messages.REPLY_LIMIT))
        if isinstance(reply, Failed):
            raise messages.refusal(self.peer, reply)
        if not isinstance(reply, wanted):
            raise PeerMisbehaved(f"{self.peer} answered with another kind of message")
        return reply

    def shake_hands(self) -> bytes:
        """The other's certificate in DER, nothing when it has none. Raises `PeerUnreachable` or `PeerTimeout`."""
        with self._told():
            self._socket.do_handshake()
        return self._socket.getpeercert(binary_form=True) or b""

    def go_on(self) -> None:
        """Plain blocking calls, which the kernel ends after `SILENCE_S`: a timeout of Python costs a poll for each."""
        limit = struct.pack("ll", int(SILENCE_S), 0)
        with self._told():
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def hang_up(self) -> None:
        """End both directions below TLS; a thread that waits on the line is told. Any thread may call it."""
        with suppress(OSError):  # it has ended
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """When no thread uses it any more."""
        self._socket.close()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """The line is hung up when this takes longer."""
        self.until = time.monotonic() + seconds
        try:
            yield
        finally:
            self.until = math.inf

    async def run(
        self,
        work: Callable[[], None],
        limiter: trio.CapacityLimiter | None = None,
        beside: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`work` in a thread, and `beside` as long; hung up when it is late or cancelled, and closed at the end."""
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                if beside is not None:
                    nursery.start_soon(beside)
                try:
                    await trio.to_thread.run_sync(work, limiter=limiter)
                except Exception as error:  # by itself, not in a group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self.close()
        if failure is not None:
            raise failure

    async def _watch(self) -> None:
        try:
            while time.monotonic() < self.until:  # noqa: ASYNC110 - a thread moves it
                await trio.sleep(LOOK_S)
            self._is_late = True
        finally:
            self.hang_up()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise PeerTimeout(f"{self.peer} is silent on the bulk channel") from None
        except (OSError, ValueError, PeerUnreachable) as error:
            if self._is_late:
                raise PeerTimeout(f"{self.peer} is too slow on the bulk channel") from None
            raise PeerUnreachable(f"the bulk channel to {self.peer} is gone: {error}") from None


async def reach(host: str, way: BulkAt, peer: ID) -> Line:
    """A line that has not shaken hands yet. Raises `PeerUnreachable` or `PeerTimeout`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the peer is known by the digest that it told over the authenticated stream
    context.verify_mode = ssl.CERT_NONE
    try:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(host, way.port)
    except trio.TooSlowError:
        raise PeerTimeout(f"{peer} can't be reached on its bulk port {way.port}") from None
    except OSError as error:
        raise PeerUnreachable(f"{peer} can't be reached on its bulk port {way.port}: {error}") from None
    return Line(wrap(context, stream.socket), peer)


def enter(line: Line, way: BulkAt) -> None:
    """Shake hands, see that it is the peer, show the token.

    Raises `PeerUnreachable` for another's certificate: somebody on the way is no fault of the peer's.
    """
    certificate = line.shake_hands()
    if not hmac.compare_digest(hashlib.sha256(certificate).digest(), way.certificate):
        raise PeerUnreachable(f"somebody else than {line.peer} answers at its bulk port")
    line.write(way.token)
    line.go_on()


def wrap(context: ssl.SSLContext, taken: trio.socket.SocketType, *, server: bool = False) -> ssl.SSLSocket:
    """A blocking socket that has not shaken hands, in the place of trio's."""
    plain = socket.socket(fileno=taken.detach())
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(CONNECT_S)
    return context.wrap_socket(plain, server_side=server, do_handshake_on_connect=False)


def host_of(address: str) -> str | None:
    """The IP address in a multiaddr, None when it leads over a relay or has none."""
    parts = address.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") and "p2p-circuit" not in parts else None
