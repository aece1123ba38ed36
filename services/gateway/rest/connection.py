"""One connection of HTTP/1.1: bytes become exchanges, answers become bytes, in the order of the requests.

Requests that are there together are answered together and written at once, at the end of the turn of the loop. What
a peer may have under way is bounded (requests, bytes, time), and while it is at the bound nothing more is read from it.
A head that was seen before is not parsed again (head.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import orjson

from penstock.errors import ResourceExhausted, TooLarge
from penstock.wire.origin import ELSEWHERE, Origin

from .chunked import Chunked
from .exchange import Exchange
from .head import MAX_HEAD_BYTES, BadRequest, Head
from .replies import CONTINUE, Reply

if TYPE_CHECKING:
    from .server import Server

HEAD_SECONDS: Final = 20.0
"""For a head to be complete, from its first byte, and for the first one to begin."""
KEEP_ALIVE_SECONDS: Final = 75.0
"""Idle connections stay this long: longer than the pools of common clients, so that these close first."""
STALL_SECONDS: Final = 60.0
"""For a peer to take something of an answer, or to send something of a body that we wait for."""
LEAVE_SECONDS: Final = 1.0
"""How long a peer may take to notice that we leave, before what it sends is refused."""
LINGER_SECONDS: Final = 5.0
"""After an answer that came before the end of its request."""
MAX_PIPELINED: Final = 64
MAX_HELD: Final = 8 << 20
"""Bytes of requests of one connection beyond which it gets no further request."""

_HIGH_WATER: Final = 1 << 20
_SMALL_WRITE: Final = 64 << 10
_END: Final = b"\r\n\r\n"
_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """held: bytes of requests kept. closing: since when it should be gone, else 0. origin: who is at the other end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.held = 0
        self.closing = 0.0
        self.origin = ELSEWHERE
        self._transport: Any = None
        self._queue: deque[Exchange] = deque()  # requests whose answers are not put out, in order
        self._reading: Exchange | None = None  # the last of them, while its body arrives
        self._chunked: Chunked | None = None
        self._missing = 0
        self._out: list[bytes] = []
        self._rest = b""  # of the input: a head that is not complete, or what has to wait
        self._searched = 0
        self._waits = False  # the rest could be taken, but for the bounds
        self._alone = False  # and begins with a request that waits for all before it
        self._last = False  # no request is taken any more
        self._leaving = False  # the next request is the last
        self._discards = 0  # bytes of an unwanted body that are let through yet
        self._scheduled = False
        self._heard = self._began = server.now()
        self._used = False
        self._stalled = 0.0
        self._half_closed = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, unless there are too many."""
        self._transport, self.origin = transport, Origin(transport)
        if not self.server.joined(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived and answers what can be answered at once."""
        self._heard = self.server.now()
        if self.closing and not self._discards:
            return
        if self._rest:
            data, self._rest = self._rest + data, b""
        self._scheduled = True
        self._consume(data)
        self._flush()

    def eof_received(self) -> bool:
        """The peer says no more. It may have left, which nobody can tell from here, so it has (docs/rest.md)."""
        return False

    def pause_writing(self) -> None:
        """The peer is slow: nothing more is taken from it."""
        self._stalled = self.server.now()
        self._pace()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stalled = 0.0
        for exchange in self._queue:
            if exchange.streams:
                exchange.wake()
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, with everything it asked for."""
        self.closing = self.closing or self.server.now()
        self._out.clear()
        self._rest = b""
        self._reading = None
        queue, self._queue = self._queue, deque()
        for exchange in queue:
            exchange.lose()
        self.server.left(self)

    # Input.

    def _consume(self, data: bytes) -> None:
        try:
            self._take(data)
        except Exception:
            # A fault of ours costs this connection, and nobody else's.
            _log.exception("a connection broke")
            self._transport.abort()

    def _take(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._reading is not None:
                position = self._take_body(self._reading, data, position)
            elif self._last:
                return  # whoever said that this was its last request says no more
            elif (self._queue or self._stalled) and self._bound():
                self._put_back(data, position)
                return
            else:
                position = self._take_head(data, position)

    def _bound(self) -> bool:
        """No further request now."""
        queue = self._queue
        if self._stalled:
            return True
        return bool(queue) and (
            self._alone or len(queue) >= MAX_PIPELINED or self.held > MAX_HELD or not _overlaps(queue[-1].head)
        )

    def _put_back(self, data: bytes, position: int) -> None:
        self._rest = data[position:]
        self._searched, self._waits = 0, True
        self._pace()

    def _take_head(self, data: bytes, position: int) -> int:
        """Begins the request whose head is there; returns where its part of the data ends."""
        found = data.find(_END, position + self._searched)
        if found < 0:
            self._keep_head(data[position:])
            return len(data)
        self._searched = 0
        block = data[position : found + 4]
        server = self.server
        try:
            head = server.heads.get(block)
            if head is None:
                if block.startswith(b"\r\n"):
                    return position + 2  # an empty line before a request (RFC 9112, 2.2)
                head = server.heads.read(block)
        except BadRequest as bad:
            self._refuse(bad)
            return len(data)
        if self._queue and not _overlaps(head):
            self._alone = True
            self._put_back(data, position)
            return len(data)
        self._alone = False
        self._used = True
        return self._begin(head, data, found + 4)

    def _begin(self, head: Head, data: bytes, position: int) -> int:
        exchange = Exchange(head, self, self.server.bridge)
        self._queue.append(exchange)
        self._last = self._last or self._leaving or not head.keep_alive
        size = head.length
        if head.chunked:
            self._reading, self._chunked = exchange, Chunked()
        elif size:
            if size <= len(data) - position:
                exchange.received = data[position : position + size]
                exchange.body_ended = True
                position += size
                self._charge(exchange, size)
            else:
                self._reading, self._missing = exchange, size
        self.server.bridge.begin(exchange, self._heard)
        return position

    def _keep_head(self, rest: bytes) -> None:
        while rest.startswith(b"\r\n"):
            rest = rest[2:]
        if len(rest) > MAX_HEAD_BYTES:
            self._refuse(BadRequest(431, f"a head may be {MAX_HEAD_BYTES} bytes"))
            return
        if not self._searched:
            self._began = self._heard
        self._rest, self._searched = rest, max(0, len(rest) - 3)

    def _take_body(self, exchange: Exchange, data: bytes, position: int) -> int:
        """Takes what belongs to the body that is arriving."""
        if self._chunked is None:
            taken = min(self._missing, len(data) - position)
            piece: bytes | bytearray = data if taken == len(data) else data[position : position + taken]
            position += taken
            self._missing -= taken
            ended = not self._missing
        else:
            piece = bytearray()
            try:
                position = self._chunked.feed(data, position, piece)
            except BadRequest as bad:
                self._refuse(bad)
                return len(data)
            ended = self._chunked.ended
        if exchange.out is not None:
            self._discard(position, ended)
        elif piece:
            self._feed(exchange, piece)
        if ended:
            self._reading = self._chunked = None
            if exchange.out is None:
                exchange.end()
        elif exchange.full:
            self._pace()
        return position

    def _feed(self, exchange: Exchange, piece: bytes | bytearray) -> None:
        self._charge(exchange, len(piece))
        if exchange.out is None:
            try:
                exchange.feed(piece)
            except TooLarge as refusal:
                exchange.fail(refusal)

    def _discard(self, size: int, ended: bool) -> None:
        """More of a body that nobody wants any more."""
        self._discards -= size
        if ended or self._discards <= 0:
            self._discards = 0
            self._flush_soon()

    def _charge(self, exchange: Exchange, size: int) -> None:
        """Counts bytes that are kept; refuses the request where all connections together keep too many."""
        exchange.held += size
        self.held += size
        server = self.server
        server.held += size
        if server.held > server.max_held:
            exchange.fail(ResourceExhausted("too many unanswered requests are held already", retry_after=1.0))

    def discharge(self, exchange: Exchange) -> None:
        """They are no longer kept."""
        size, exchange.held = exchange.held, 0
        self.held -= size
        self.server.held -= size

    def wants_body(self, exchange: Exchange) -> None:
        """A handler waits for more of the body."""
        if exchange is self._reading:
            self._continue()
            self._pace()

    def _continue(self) -> None:
        """Tells a caller that asked first to go on, when it is its turn to hear something (RFC 9110, 10.1.1)."""
        exchange = self._reading
        if exchange is None or exchange.out is not None or exchange.continued or not exchange.head.continues:
            return
        if exchange is self._queue[0] and (exchange.collecting or exchange.waiter is not None):
            exchange.continued = True
            if self._missing == exchange.head.length and not exchange.received:
                self._out.append(CONTINUE)
                self._flush_soon()

    # Output.

    def answered(self) -> None:
        """Some exchange has its answer: puts out those whose turn it is."""
        queue = self._queue
        if self._reading is not None and self._reading.out is not None and not self._last:
            self._last = True
            waits = self._reading.head.continues and not self._reading.continued
            self._discards = 0 if waits else 2 * self.server.bridge.max_body_bytes
        while queue and (out := queue[0].out) is not None:
            self._out += out
            queue.popleft()
        if self._reading is not None:
            self._continue()
        self._flush_soon()

    def put(self, piece: bytes) -> bool:
        """More of an answer that is not whole, which is the only one under way; whether the peer keeps up."""
        self._out.append(piece)
        self._flush_soon()
        return not self._stalled

    def closing_word(self, exchange: Exchange) -> str:
        """What the Connection header of this answer says, empty for nothing."""
        if exchange is self._reading or (self._last and exchange is self._queue[-1]):
            return "close"
        return "keep-alive" if exchange.head.old else ""

    def _refuse(self, bad: BadRequest) -> None:
        """What arrives is no HTTP: says so, after the answers before it, and ends the connection."""
        exchange = self._reading
        self._last = True
        self._rest, self._waits = b"", False
        self._discards = 2 * MAX_HEAD_BYTES
        self._chunked, self._missing = None, 1 << 62  # whatever comes is let through
        if exchange is None or exchange.out is not None:
            if exchange is not None:
                return
            exchange = Exchange(_NOTHING, self, self.server.bridge)
            exchange.body_ended = False
            self._queue.append(exchange)
            self._reading = exchange
        pending = exchange.pending
        exchange.answer(Reply(bad.status, orjson.dumps({"error": bad.message})))
        if pending is not None:
            pending.cancel()

    def _flush_soon(self) -> None:
        """Sends before the next turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self.server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what there is, and goes on with what had to wait for that."""
        while True:
            self._scheduled = True
            self._send()
            if not self._waits or self._bound() or self._transport.is_closing():
                break
            self._waits = False
            data, self._rest = self._rest, b""
            self._consume(data)
        self._scheduled = False
        if self._last and not self._queue:
            self._close()
        else:
            self._pace()

    def _send(self) -> None:
        out = self._out
        if not out:
            return
        self._out = []
        transport = self._transport
        if transport.is_closing():
            return
        if sum(map(len, out)) <= _SMALL_WRITE:
            transport.write(b"".join(out))
        else:
            for piece in out:
                transport.write(piece)

    def _pace(self) -> None:
        """Reads from the socket, or not."""
        transport = self._transport
        if transport.is_closing():
            return
        reading = self._reading
        if self._waits or self._stalled or (reading is not None and reading.out is None and reading.full):
            transport.pause_reading()
        else:
            transport.resume_reading()

    # The end.

    def _close(self) -> None:
        """Everything is said. Where the peer may be sending still, what it sends is read for a while, so that it sees
        the answer instead of a broken connection (RFC 9112, 9.6)."""
        transport = self._transport
        if not self.closing:
            self.closing = self.server.now()
        if not self._discards or transport.is_closing():
            transport.close()
        elif not self._half_closed:
            self._half_closed = True
            transport.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()

    def leave(self) -> None:
        """Closes after the last answer. Where nothing is under way one more request is taken for a moment: the peer may
        have sent it before it could know."""
        if self._queue:
            self._last = True
            self._rest, self._waits = b"", False
            self._queue[0].stop()
        elif not self._leaving:
            self._leaving = True
            self.server.loop.call_later(LEAVE_SECONDS, self._leave_idle)

    def _leave_idle(self) -> None:
        if not self._queue and not self._rest:
            self._last = True
            self._close()

    def abort(self) -> None:
        """Ends it now."""
        if self._transport is not None:
            self._transport.abort()

    def inspect(self, now: float) -> None:
        """Once in a while: whether anything good is to be expected of this peer."""
        if self.closing:
            if now - self.closing > LINGER_SECONDS:
                self.abort()
        elif self._stalled:
            if now - self._stalled > STALL_SECONDS:
                self.abort()
        elif self._reading is not None:
            waited = self._reading.collecting or self._reading.waiter is not None
            if waited and now - self._heard > STALL_SECONDS:
                self._refuse(BadRequest(408, "the body did not arrive in time"))
        elif self._rest and not self._waits:
            if now - self._began > HEAD_SECONDS:
                self._refuse(BadRequest(408, f"the request head was not complete after {HEAD_SECONDS:g} seconds"))
        elif not self._queue and now - self._heard > (KEEP_ALIVE_SECONDS if self._used else HEAD_SECONDS):
            self._leave_idle()


def _overlaps(head: Head) -> bool:
    """Whether the request may be under way together with others."""
    return head.operation is None or head.operation.overlaps


_NOTHING: Final = Head("GET", "", {}, old=False, keep_alive=False)
"""Stands for a head that could not be read."""
