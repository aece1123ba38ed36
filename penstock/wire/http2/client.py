"""A client of one server: a connection that is kept, opened again when it breaks, and shared by all calls.

Calls fail at once while the server cannot be reached; between attempts to reach it there is a growing pause.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from penstock.errors import DeadlineExceeded
from penstock.wire.call import Answer, Done, Payload, Pending

from . import frames as f
from . import unix
from .client_side import ClientConnection, Sent
from .client_stream import ClientStream
from .deadlines import deadlines_of
from .hpack import Field
from .limits import Limits
from .link import with_alpn
from .lost import ConnectionLost as ConnectionLost
from .lost import NotTaken
from .messages import sendable, write_timeout
from .peer_link import PeerLink

SERVICE: Final = "inference.GRPCInferenceService"
CLIENT_LIMITS: Final = Limits(keepalive_seconds=10.0, keepalive_timeout=3.0, crumbs=1 << 40)
"""Servers are trusted to send small messages."""
_CONNECT_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_ATTEMPTS: Final = 3
_MAX_HEADS: Final = 1024
_NEVER: Final = float("inf")
_AGENT: Final = ("user-agent", "penstock")
_log = logging.getLogger(__name__)


class Peer:
    """One server at `host:port` or `unix:/path`.

    Args:
        token: sent with every call as `authorization: Bearer <token>`.
        tls: asked for each connection to the address, for TLS; its ALPN is set to h2. server_name: whom the certificate
            must name, when not the host.
        unix_socket: asked for each connection: path of a unix socket of the same server (http2/unix.py), or empty;
            where it leads to nothing, the address is taken.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        tls: Callable[[], ssl.SSLContext] | None = None,
        server_name: str | None = None,
        unix_socket: Callable[[], str] | None = None,
        limits: Limits = CLIENT_LIMITS,
    ) -> None:
        self.address = address
        self._tls, self._server_name, self._unix_socket, self._limits = tls, server_name, unix_socket, limits
        authority = "localhost" if address.startswith("unix:") else address
        self._common: tuple[Field, ...] = (
            (":scheme", "https" if tls else "http"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            _AGENT,
            *((("authorization", f"Bearer {token}"),) if token else ()),
        )
        self._heads: dict[tuple[str, tuple[Field, ...]], tuple[Field, ...]] = {}
        self._link: PeerLink | None = None
        self._connecting: asyncio.Task[PeerLink] | None = None
        self._pause, self._not_before = _FIRST_PAUSE, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._links: set[PeerLink] = set()
        self._closed = False

    async def unary(self, method: str, payload: Payload, *, deadline: float, headers: Mapping[str, str]) -> Answer:
        """Calls `method` (bare name of the inference service, or a full path) with serialised bytes.

        deadline: absolute on the loop's clock; headers: those that gRPC could not send are left out. Raises the peer's
        PenstockError, ConnectionLost when the transport failed, DeadlineExceeded when time ran out. Cancelling the task
        cancels the call at the peer.
        """
        attempt = 1
        while True:
            sent = await self._open(method, deadline, headers)
            future = asyncio.get_running_loop().create_future()
            sent.connection.ask(sent, payload, partial(_settle, future))
            try:
                answer: Answer = await future
                return answer
            except NotTaken:
                if attempt == _ATTEMPTS:
                    raise
                attempt += 1
            except asyncio.CancelledError:
                sent.connection.abandon(sent, None)
                raise

    def begin(
        self, method: str, payload: Payload, *, constant: tuple[Field, ...], varying: list[Field], done: Done
    ) -> Pending | None:
        """Sends a unary call at once, without a task; None when there is no connection with room for it now.

        constant: headers that come again with other calls, the same tuple each time; varying: the others; both such as
        gRPC could send them, a grpc-timeout among them. The deadline is the caller's business: he cancels.
        """
        link = self._link
        if link is None:
            return None
        connection: ClientConnection = link.connection
        if connection.ended or connection.leaving or len(connection.streams) >= connection.peer_streams:
            return None
        key = (method, constant)
        sent = connection.open(self._heads.get(key) or self._head(method, constant), varying, _NEVER)
        connection.ask(sent, payload, done)
        return sent

    async def stream(self, method: str, *, deadline: float, headers: Mapping[str, str]) -> ClientStream:
        """Begins a call with any number of messages in both directions. deadline: infinity for none."""
        return ClientStream(await self._open(method, deadline, headers))

    async def close(self) -> None:
        """Closes the connection; calls in flight fail with ConnectionLost."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        links = list(self._links)
        for link in links:
            link.connection.end(f.NO_ERROR)
            link.flush()
        self._wake()
        if links:
            await asyncio.wait([link.over for link in links], timeout=1.0)
        for link in links:
            link.abort()

    async def _open(self, method: str, deadline: float, headers: Mapping[str, str]) -> Sent:
        link = self._link
        if link is None or not link.connection.usable or not link.connection.room:
            link = await self._ready(deadline)
        varying = [(name.lower(), value) for name, value in headers.items() if sendable(value)]
        if deadline != float("inf"):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the request was sent")
            varying.append(("grpc-timeout", write_timeout(left)))
        connection: ClientConnection = link.connection
        return connection.open(self._heads.get((method, ())) or self._head(method, ()), varying, deadline)

    def _head(self, method: str, constant: tuple[Field, ...]) -> tuple[Field, ...]:
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        head = self._heads[method, constant] = ((":method", "POST"), (":path", path), *self._common, *constant)
        return head

    # The connection.

    async def _ready(self, deadline: float) -> PeerLink:
        """A connection with room for a call; raises ConnectionLost, DeadlineExceeded."""
        attempts = _ATTEMPTS
        try:
            async with asyncio.timeout_at(None if deadline == float("inf") else deadline) as limit:
                while True:
                    if self._closed:
                        raise ConnectionLost("the connection to the peer was closed")
                    link = self._link
                    if link is None or not link.connection.usable:
                        link = self._link = await self._connected()
                    if not link.connection.usable:
                        # Accepted, and told to leave or closed before we came to use it. One that leaves has nothing
                        # against another connection, which somebody else may take.
                        attempts -= 1
                        if not link.connection.leaving or not attempts:
                            raise ConnectionLost("the connection to the peer was lost")
                        continue
                    if link.connection.room:
                        return link
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    try:
                        await waiter
                    except asyncio.CancelledError:
                        # The room may have been given to us: the next one has it.
                        self._wake()
                        raise
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the request was sent") from None

    async def _connected(self) -> PeerLink:
        """All callers wait for one attempt, which none of them can cancel."""
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            if loop.time() < self._not_before:
                raise ConnectionLost("the peer cannot be reached", detail=f"{self.address}: waiting to try again")
            self._connecting = loop.create_task(self._connect())
            self._connecting.add_done_callback(self._attempted)
        try:
            return await asyncio.shield(self._connecting)
        except OSError as problem:
            raise ConnectionLost("the peer cannot be reached", detail=f"{self.address}: {problem}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ConnectionLost("the connection to the peer was closed") from None
            raise

    async def _connect(self) -> PeerLink:
        loop = asyncio.get_running_loop()

        def make() -> PeerLink:
            link = PeerLink(loop, self)
            link.connection = ClientConnection(loop, self._limits, deadlines_of(loop), link.flush_soon, self._wake)
            return link

        # TimeoutError is an OSError.
        async with asyncio.timeout(_CONNECT_SECONDS):
            if (near := self._nearby()) is not None:
                _, link = await loop.create_unix_connection(make, sock=near)
            elif self.address.startswith("unix:"):
                _, link = await loop.create_unix_connection(make, self.address.removeprefix("unix:"))
            else:
                host, _, port = self.address.rpartition(":")
                tls = with_alpn(self._tls()) if self._tls is not None else None
                _, link = await loop.create_connection(
                    make,
                    host.strip("[]"),
                    int(port),
                    ssl=tls,
                    server_hostname=self._server_name if tls else None,
                )
        return link

    def _nearby(self) -> socket.socket | None:
        """A connection to the server's unix socket, when it has one and is on this host."""
        path = self._unix_socket() if self._unix_socket is not None else ""
        if not path:
            return None
        try:
            return unix.connected(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as problem:
            _log.warning("a worker's unix socket cannot be used (%s); TCP to %s instead", problem, self.address)
            return None

    def _attempted(self, task: asyncio.Task[PeerLink]) -> None:
        self._connecting = None
        if task.cancelled():
            return
        if task.exception() is not None:
            self._not_before = asyncio.get_running_loop().time() + self._pause * random.uniform(0.5, 1.0)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
        else:
            self._pause, self._not_before = _FIRST_PAUSE, 0.0

    def _wake(self) -> None:
        """There may be room."""
        waiting = self._waiting
        if not waiting:
            return
        link = self._link
        room = len(waiting)
        if link is not None and link.connection.usable:
            room = link.connection.peer_streams - len(link.connection.streams)
        while waiting and room > 0:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def joined(self, link: PeerLink) -> None:
        """A connection is there."""
        self._links.add(link)

    def left(self, link: PeerLink) -> None:
        """A connection is gone."""
        self._links.discard(link)
        if self._link is link:
            self._link = None


def _settle(future: asyncio.Future[Answer], answer: Answer | None, problem: BaseException | None) -> None:
    """The end of a call for somebody who awaits it."""
    if future.done():
        return
    if answer is not None:
        future.set_result(answer)
    elif problem is not None:
        future.set_exception(problem)
