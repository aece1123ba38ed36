"""serve_rest: the bridge on a socket, inside of somebody else's event loop and task group."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Final

from .bridge import Bridge
from .connection import Connection
from .inference import Inference
from .management import Control

MAX_CONNECTIONS: Final = 10_000
MAX_HELD: Final = 1 << 30
"""Bytes of requests of all connections together, beyond which requests are refused."""

_BACKLOG: Final = 1024
_SWEEP: Final = 1.0
_HANDSHAKE_SECONDS: Final = 10.0
_CLOSING_SECONDS: Final = 5.0
_TURNS_TO_CONNECT: Final = 3


class Server:
    """The connections of one bridge, and what they share. date: for the header of that name, true to a second."""

    def __init__(self, bridge: Bridge, *, max_connections: int = MAX_CONNECTIONS, max_held: int = MAX_HELD) -> None:
        self.bridge, self.heads = bridge, bridge.heads
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.held, self.max_held = 0, max_held
        self.date = formatdate(usegmt=True)
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._sweeper = self.loop.call_later(_SWEEP, self._sweep)
        self._gone = asyncio.Event()

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Takes connections from a bound socket. tls: as it is, for HTTPS."""
        self._listener = await self.loop.create_server(
            lambda: Connection(self),
            sock=listener,
            backlog=_BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls is not None else None,
        )

    async def drain(self, seconds: float) -> None:
        """Takes no new connection, lets answers under way be finished, and cuts off what is left after `seconds`."""
        if self._listener is not None:
            self._listener.close()
        # What was accepted just before becomes a connection within the next turns of the loop; its caller cannot know.
        for _ in range(_TURNS_TO_CONNECT):
            await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.leave()
        await self._empty(seconds)
        await self.close()

    async def close(self) -> None:
        """Ends everything now. May be called more than once."""
        if self._listener is not None:
            self._listener.close()
        self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()
        for task in self.bridge.tasks:
            task.cancel()
        await self._empty(_CLOSING_SECONDS)
        if self.bridge.tasks:
            await asyncio.wait(self.bridge.tasks, timeout=_CLOSING_SECONDS)

    async def _empty(self, seconds: float) -> None:
        """Waits until there is no connection, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:
                    self._gone.clear()
                    await self._gone.wait()

    def joined(self, connection: Connection) -> bool:
        """A connection is made; False where there are too many."""
        if len(self._connections) >= self._max_connections:
            return False
        self._connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._gone.set()

    def _sweep(self) -> None:
        self.date = formatdate(usegmt=True)
        now = self.now()
        for connection in list(self._connections):
            connection.inspect(now)
        self._sweeper = self.loop.call_later(_SWEEP, self._sweep)


async def serve_rest(
    *,
    inference: Inference,
    control: Control,
    ready: Callable[[], str | None],
    max_body_bytes: int,
    default_timeout: float,
    authenticate: Callable[[Mapping[str, str]], str],
    sock: socket.socket,
    tls: ssl.SSLContext | None = None,
    drain_seconds: float = 30.0,
    listening: Callable[[int], None] | None = None,
    share: int = 1,
) -> None:
    """Serves HTTP/1.1 until cancelled; then takes no new connection and lets answers finish.

    ready: None while the server takes requests, else the public reason. max_body_bytes: of one body, also after
    decompression. default_timeout: seconds for a request that brings no deadline. authenticate: caller's name by the
    lower-case headers, raises Unauthenticated. sock: bound already, TCP or unix; it is closed at the end. tls: for
    HTTPS. drain_seconds: how long answers may take once cancelled. listening: told the port once connections are taken
    (0 for a unix socket). share: processes of the gateway, each of which takes its part of all connections and bytes.
    Raises OSError when somebody else listens there.
    """
    bridge = Bridge(
        inference=inference,
        control=control,
        ready=ready,
        max_body_bytes=max_body_bytes,
        default_timeout=default_timeout,
        authenticate=authenticate,
    )
    server = Server(bridge, max_connections=MAX_CONNECTIONS // share, max_held=MAX_HELD // share)
    try:
        await server.listen(sock, tls)
        if listening is not None:
            listening(0 if sock.family == socket.AF_UNIX else sock.getsockname()[1])
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await server.drain(drain_seconds)
        raise
    finally:
        await server.close()
        sock.close()
