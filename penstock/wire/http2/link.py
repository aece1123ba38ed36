"""A connection on a socket: bytes in without an allocation per read, one write per turn of the loop, both ends alike.

All connections of a thread read into one scratch buffer: what is kept is copied out of it before the next read. The
rest of a large frame is read to its place in its message.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from typing import Any, Final

from . import unix
from .answering import Answering
from .connection import Connection
from .frames import INTERNAL_ERROR

_SCRATCH_BYTES: Final = 256 << 10
_SMALL_READ: Final = 16 << 10
_SMALL_WRITE: Final = 64 << 10
_HIGH_WATER: Final = 1 << 20
_CLOSING_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)
_thread = threading.local()


class Link(asyncio.BufferedProtocol):
    """Carries one connection. heard: when bytes last arrived; stalled: since when the peer takes nothing, else 0."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.connection: Any = None
        self.transport: Any = None
        self.heard = self.began = loop.time()
        self.stalled = 0.0
        self.closing = 0.0
        self.lost = False
        self._scheduled = False
        scratch = getattr(_thread, "scratch", None)
        if scratch is None:
            scratch = _thread.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._scratch: memoryview = scratch
        self._place = scratch

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        """The socket is there."""
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        unix.prepare(transport.get_extra_info("socket"))
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        self.connection.begin()
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        self._place = place = self.connection.landing() or self._scratch
        return place

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have arrived."""
        self.heard = self._loop.time()
        self._scheduled = True
        place, self._place = self._place, self._scratch
        view = place[:nbytes]
        try:
            self.take(bytes(view) if nbytes <= _SMALL_READ and place is self._scratch else view)
        except Exception:
            self.broke()
        self.flush()

    def broke(self) -> None:
        """A fault of ours costs this connection, and nobody else's. Called where it is caught."""
        _log.exception("a connection broke")
        self.connection.end(INTERNAL_ERROR)

    def take(self, data: bytes | memoryview) -> None:
        """Hands bytes on."""
        self.connection.receive(data)

    def eof_received(self) -> bool:
        """The peer says no more; neither do we."""
        return False

    def pause_writing(self) -> None:
        """The peer is slow: nothing more is put out, and nothing more is asked of us."""
        self.stalled = self._loop.time()
        self.connection.writable = False
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.stalled = 0.0
        self.read_again()
        if isinstance(self.connection, Answering):
            self.connection.writable_again()
        else:
            self.connection.writable = True
            self.connection.pump()
        self.flush()

    def read_again(self) -> None:
        """Nothing speaks against more from this peer."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.lost = True
        if not self.connection.ended:
            self.connection.ended = True
            self.connection.connection_ended(0, "the connection was lost")

    # What the owner and the connection call.

    def flush_soon(self) -> None:
        """Sends before the next turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what there is."""
        self._scheduled = False
        connection, transport = self.connection, self.transport
        if transport is None or self.lost:
            connection.taken()
            return
        while connection.out:
            size = connection.out_bytes
            out = connection.taken()
            if size > _SMALL_WRITE:
                transport.writelines(out)
            else:
                transport.write(b"".join(out))
            if connection.writable and not connection.ended:
                connection.pump()
        if connection.ended and not self.closing:
            self.close()

    def close(self) -> None:
        """Closes once everything is sent."""
        self.closing = self._loop.time()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Closes now."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def unread(self) -> int:
        """Bytes that the socket has not taken yet."""
        return 0 if self.transport is None else int(self.transport.get_write_buffer_size()) + self.connection.out_bytes

    def overdue(self, now: float, *, handshake: float, stall: float) -> bool:
        """Nothing good is to be expected of this peer any more."""
        if self.closing:
            return now - self.closing > _CLOSING_SECONDS
        if self.stalled:
            return now - self.stalled > stall
        connection: Connection = self.connection
        return not connection.greeted and now - self.began > handshake


def with_alpn(tls: ssl.SSLContext) -> ssl.SSLContext:
    """The context, for HTTP/2 and nothing else (RFC 9113, 3.2)."""
    tls.set_alpn_protocols(["h2"])
    return tls
