"""A gRPC server over HTTP/2 of our own: TCP and unix sockets, TLS by `ssl`, with everything that a public port needs.

What it serves is a mapping from full path to Method. It knows nothing of inference.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from typing import Final

from penstock.wire.origin import Origin

from . import frames as f
from . import unix
from .answering import Common
from .head import Method
from .limits import Limits
from .link import Link, with_alpn
from .server_side import Authenticate, ServerConnection

KINDS: Final = ("tcp", "tls", "unix")
"""Of connections."""
_SWEEP: Final = 1.0
_HEARD_SECONDS: Final = 1.0
"""How long a peer may take to notice that we leave, before requests of its are refused."""
_TURNS_TO_CONNECT: Final = 3
_PING: Final = f.frame(f.PING, 0, 0, b"are you?")
_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""As SO_LINGER: closing sends a reset, and nothing that is still to be sent (socket(7))."""


class Server:
    """One server on any number of sockets.

    Args:
        methods: by full path, such as `/inference.GRPCInferenceService/ModelInfer`.
        authenticate: name of the caller by headers; raises PenstockError. None: every caller is "".
        max_held: bytes of requests, and of answers that wait for a window, of all connections together; beyond it only
            connections that hold less than 64 KiB are served. As much again may wait for peers that do not read.
        max_connections: beyond it, new ones are closed at once.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        authenticate: Authenticate | None = None,
        limits: Limits | None = None,
        max_held: int = 1 << 30,
        max_connections: int = 10_000,
    ) -> None:
        self._methods = methods
        self._authenticate = authenticate or _anybody
        self._limits = limits or Limits()
        self._max_held, self._max_connections = max_held, max_connections
        self._common: Common | None = None
        self._listeners: list[asyncio.Server] = []
        self._links: set[ServerLink] = set()
        self.connected: dict[str, int] = dict.fromkeys(KINDS, 0)
        """How many connections of each kind there are now; read from any thread."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, reuse_port: bool = False, backlog: int = 1024
    ) -> int:
        """Listens on host:port and returns the port. tls: its ALPN is set to h2. Raises OSError."""
        listener = await asyncio.get_running_loop().create_server(
            self._factory(),
            host,
            port,
            ssl=with_alpn(tls) if tls is not None else None,
            ssl_handshake_timeout=self._limits.handshake_seconds if tls is not None else None,
            reuse_port=reuse_port or None,
            backlog=backlog,
        )
        self._listeners.append(listener)
        number: int = listener.sockets[0].getsockname()[1]
        return number

    async def start_on(self, bound: socket.socket, *, tls: ssl.SSLContext | None = None, backlog: int = 1024) -> None:
        """Listens on a socket that is bound already; a unix socket is for processes of our user and root alone, whose
        connections no network carries, so that it has no TLS."""
        loop, factory = asyncio.get_running_loop(), self._factory()
        if bound.family == socket.AF_UNIX:
            listener = await loop.create_unix_server(factory, sock=bound, backlog=backlog)
        else:
            listener = await loop.create_server(
                factory,
                sock=bound,
                ssl=with_alpn(tls) if tls is not None else None,
                ssl_handshake_timeout=self._limits.handshake_seconds if tls is not None else None,
                backlog=backlog,
            )
        self._listeners.append(listener)

    async def start_unix(self, path: str, *, backlog: int = 1024) -> None:
        """Listens on a unix socket at a path, for processes of our user and root."""
        listener = await asyncio.get_running_loop().create_unix_server(self._factory(), path, backlog=backlog)
        self._listeners.append(listener)

    async def drain(self, seconds: float) -> None:
        """Stops accepting, lets every peer know, and waits for what is in flight; what is left after `seconds` is
        cancelled, and its callers get UNAVAILABLE."""
        for listener in self._listeners:
            listener.close()
        # What was accepted just before becomes a connection within the next turns of the loop; its caller cannot know.
        for _ in range(_TURNS_TO_CONNECT):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        for link in list(self._links):
            link.leave()
        while self._links and loop.time() < end:
            waiting = [link.over for link in self._links]
            await asyncio.wait(waiting, timeout=max(0.0, end - loop.time()), return_when=asyncio.ALL_COMPLETED)
        await self.close()

    async def close(self) -> None:
        """Ends everything now. May be called more than once."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for link in list(self._links):
            link.connection.end(f.NO_ERROR)
            link.flush()
        if self._links:
            await asyncio.wait([link.over for link in self._links], timeout=1.0)
        for link in list(self._links):
            link.abort()
        if self._common is not None:
            tasks = self._common.tasks - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=5.0)
            self._common.deadlines.close()
        await asyncio.sleep(0)

    def ask(self) -> None:
        """Pings everybody at the other end of a network, for `unanswered` a while later."""
        now = asyncio.get_running_loop().time()
        for link in list(self._links):
            link.ask(now)

    @property
    def unanswered(self) -> int:
        """Connections whose peers have given no sign of life since they were asked."""
        return sum(link.unanswered for link in self._links)

    def reset_unanswered(self) -> int:
        """Ends these connections and cancels what was asked over them; no byte is sent over them any more, whenever the
        network is whole again. Returns how many there were."""
        silent = [link for link in self._links if link.unanswered]
        for link in silent:
            link.reset()
        return len(silent)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    @property
    def in_flight(self) -> int:
        """Calls that are not answered yet."""
        return sum(len(link.connection.streams) for link in self._links)

    def _factory(self) -> Callable[[], ServerLink]:
        loop = asyncio.get_running_loop()
        if self._common is None:
            self._common = Common(loop, self._max_held)
            self._sweeper = loop.call_later(_SWEEP, self._sweep)
        common = self._common

        def accept() -> ServerLink:
            link = ServerLink(loop, self._links, self._limits, self.connected, self._max_connections)
            link.connection = ServerConnection(common, self._methods, self._authenticate, self._limits, link.flush_soon)
            return link

        return accept

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for link in list(self._links):
            link.inspect(now)
        self._relieve()
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)

    def _relieve(self) -> None:
        """When peers that do not read keep too much here all together, those with the most are let go."""
        unread = {link: link.unread for link in self._links}
        excess = sum(unread.values()) - self._max_held
        for link in sorted(unread, key=unread.__getitem__, reverse=True) if excess > 0 else ():
            if excess <= 0:
                break
            excess -= unread[link]
            link.abort()


class ServerLink(Link):
    """A connection that somebody made to us. over: done when it is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        links: set[ServerLink],
        limits: Limits,
        connected: dict[str, int],
        most: int,
    ) -> None:
        super().__init__(loop)
        self._links, self._limits, self._connected, self._most = links, limits, connected, most
        self._kind = "tcp"
        self.over: asyncio.Future[None] = loop.create_future()
        self._pinged = 0.0
        self._left = 0.0
        self._asked = 0.0
        self._unread_then = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, unless there are too many or its other end is a stranger on this host."""
        # Not when it was accepted: a burst of them is accepted before the first of it is here.
        full = len(self._links) >= self._most
        self._links.add(self)
        self._kind = _kind(transport)
        self._connected[self._kind] += 1
        if full or (self._kind == "unix" and not unix.trusted(transport.get_extra_info("socket"))):
            self.transport = transport
            self.abort()
            return
        self.connection.origin = Origin(transport)
        super().connection_made(transport)

    def take(self, data: bytes | memoryview) -> None:
        """Requests."""
        waiting = self.connection.backlog is not None
        self.connection.arrived(data)
        if self.connection.backlog is not None and not self.transport.is_closing():
            if waiting:
                # More comes while what came waits for its turn: the rest may wait at the peer.
                self.transport.pause_reading()
            else:
                self.connection.common.turns.add(self._go_on)

    def _go_on(self) -> bool:
        """More requests of those that came at once, after what came from others meanwhile; whether there are more."""
        if self.lost or self.stalled:
            return False
        try:
            self.connection.go_on()
        except Exception:
            self.broke()
        self.flush()
        if self._has_more and not self.stalled:
            return True
        if not self.stalled:
            super().read_again()
        return False

    def read_again(self) -> None:
        """Once what has been read is served."""
        if self._has_more:
            self.connection.common.turns.add(self._go_on)
        else:
            super().read_again()

    @property
    def _has_more(self) -> bool:
        return self.connection.backlog is not None and not self.connection.ended

    def flush(self) -> None:
        """Sends; a connection that leaves ends with its last call."""
        connection = self.connection
        if connection.leaving and connection.refusing and not connection.streams:
            connection.end(f.NO_ERROR)
        super().flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, with everything it asked for."""
        self._links.discard(self)
        self._connected[self._kind] -= 1
        if not self.over.done():
            self.over.set_result(None)
        super().connection_lost(exc)

    def leave(self) -> None:
        """Begins the graceful end (RFC 9113, 6.8)."""
        if not self._left:
            self._left = self._loop.time()
            self.connection.announce_end()
            self.flush()
            self._loop.call_later(_HEARD_SECONDS, self._refuse_more)

    def _refuse_more(self) -> None:
        self.connection.stop_accepting()
        self.flush()

    def inspect(self, now: float) -> None:
        """Once in a while: handshake, stall, keepalive, age."""
        limits = self._limits
        if self.overdue(now, handshake=limits.handshake_seconds, stall=limits.stall_seconds):
            self.abort()
            return
        if self.closing:
            return
        if self._pinged > self.heard:
            if now - self._pinged > limits.keepalive_timeout:
                self.abort()
                return
        elif now - self.heard > limits.keepalive_seconds:
            self._pinged = now
            self.connection.put(_PING)
            self.flush()
        if now - self.began > limits.max_age:
            self.leave()
            if now - self.began > limits.max_age + limits.max_age_grace:
                self.connection.end(f.NO_ERROR)
                self.flush()

    def ask(self, now: float) -> None:
        """Pings the peer, unless no network is between it and us."""
        if self.transport is None or self.closing or self._kind == "unix":
            return
        self._asked = now
        # The loop's clock counts milliseconds, so that what came just before and the answer may bear the same time.
        self.heard = min(self.heard, math.nextafter(now, 0.0))
        self.connection.put(_PING)
        self.flush()
        self._unread_then = self.unread if self.stalled else 0

    @property
    def unanswered(self) -> bool:
        """Whether the peer has given no sign of life since it was asked. One that is slow is not read from, and what it
        takes is its sign."""
        if self.closing or self.heard >= self._asked:
            return False
        if self.stalled or self._unread_then:
            return self.unread >= (self._unread_then or math.inf)
        return True

    def reset(self) -> None:
        """Closes now; what the kernel still holds for the peer is not sent either."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()


def _kind(transport: asyncio.BaseTransport) -> str:
    if transport.get_extra_info("ssl_object") is not None:
        return "tls"
    return "unix" if transport.get_extra_info("socket").family == socket.AF_UNIX else "tcp"


def _anybody(_: Mapping[str, str]) -> str:
    return ""
