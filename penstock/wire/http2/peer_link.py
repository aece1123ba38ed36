"""The socket of a connection that we made, and what is asked of it once a second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from . import frames as f
from .link import Link

if TYPE_CHECKING:
    from .client import Peer

_PING: Final = f.frame(f.PING, 0, 0, b"are you?")


class PeerLink(Link):
    """A connection that we made. over: done when it is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: Peer) -> None:
        super().__init__(loop)
        self._peer = peer
        self._pinged = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.over: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._peer.joined(self)
        super().connection_made(transport)
        self._timer = self._loop.call_later(1.0, self._inspect)

    def flush(self) -> None:
        """Sends; a connection that the peer leaves is closed with its last call."""
        connection = self.connection
        if connection.leaving and not connection.streams:
            connection.end(f.NO_ERROR)
        super().flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits for an answer gets ConnectionLost."""
        if self._timer is not None:
            self._timer.cancel()
        self._peer.left(self)
        if not self.over.done():
            self.over.set_result(None)
        super().connection_lost(exc)

    def _inspect(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(1.0, self._inspect)
        limits = self.connection.limits
        if self.overdue(now, handshake=limits.handshake_seconds, stall=limits.stall_seconds):
            self.abort()
        elif self.closing:
            return
        elif self._pinged > self.heard:
            if now - self._pinged > limits.keepalive_timeout:
                self.abort()
        elif now - self.heard > limits.keepalive_seconds:
            self._pinged = now
            self.connection.put(_PING)
            self.flush()
