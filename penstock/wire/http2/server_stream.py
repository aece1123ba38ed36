"""Streaming calls at the server: an iterator of request messages, a `write` for answers, both with back-pressure.

The peer's window is filled again only as messages are taken, and `write` waits while more than a little of what was
written has not gone: so neither a slow handler nor a slow caller costs more than a window.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from penstock import errors
from penstock.wire.call import Payload

from . import replies
from .messages import Assembler

if TYPE_CHECKING:
    from .answering import Answering, Exchange
    from .head import StreamHandler

_AHEAD: Final = 1 << 20
"""Bytes of messages not yet taken, or not yet sent, beyond which the other side has to wait."""


class Inbox:
    """Messages of one direction of a stream, taken by one reader; `settle(size)` is told of bytes that were taken."""

    def __init__(self, limit: int) -> None:
        self.assembler = Assembler(limit)
        self.ended = False
        self.failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, piece: bytes | memoryview, ends: bool) -> None:
        """More bytes."""
        self.assembler.feed(piece)
        self.ended = self.ended or ends
        self._wake()

    def grant(self) -> None:
        """Lets the peer go on, unless enough waits here."""
        raise NotImplementedError

    def close(self, failure: BaseException | None = None) -> None:
        """No more bytes will come; the reader ends, or fails."""
        self.ended = True
        self.failure = self.failure or failure
        self._wake()

    async def take(self) -> Payload | None:
        """The next message; None after the last. Raises what is wrong with it, or why the stream broke."""
        while True:
            message = self.assembler.take()
            if message is not None:
                return message
            if self.failure is not None:
                raise self.failure
            if self.ended:
                if not self.assembler.between:
                    raise errors.InvalidArgument("the stream ends inside a message")
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ServerInbox(Inbox):
    """The requests of a call."""

    def __init__(self, connection: Answering, exchange: Exchange) -> None:
        super().__init__(connection.limits.max_message)
        self._connection, self._exchange = connection, exchange

    def feed(self, piece: bytes | memoryview, ends: bool) -> None:
        """Raises ResourceExhausted when the connection holds too much; a message too large is refused at its prefix."""
        self._connection.charge(self._exchange, len(piece))
        super().feed(piece, ends)
        self.grant()

    def grant(self) -> None:
        """Lets the peer go on, unless enough waits here."""
        assembler = self.assembler
        # A message that is larger than the window must still get through; its size is limited by itself.
        if assembler.held <= _AHEAD or not assembler.ready:
            self._connection.regrant(self._exchange)

    async def messages(self) -> AsyncIterator[bytes]:
        """Every request message."""
        while (message := await self.take()) is not None:
            size = min(len(message) + 5, self._exchange.held)
            if size and self._exchange.id in self._connection.streams:
                self._connection.discharge(self._exchange, size)
                self.grant()
                if self._connection.out:
                    self._connection.flush_soon()
            yield message


def serve_stream(connection: Answering, exchange: Exchange, handler: StreamHandler, ends: bool) -> None:
    """Starts the handler of a streaming call."""
    method = exchange.head.method
    assert method is not None
    inbox = ServerInbox(connection, exchange)
    inbox.ended = ends
    exchange.inbox = inbox
    exchange.assembler = inbox.assembler
    call = connection.call_of(exchange, method, b"")

    async def write(message: bytes) -> None:
        if connection.streams.get(exchange.id) is not exchange or exchange.last is not None:
            raise asyncio.CancelledError("the caller has left")
        connection.open_answer(exchange)
        connection.send(exchange, replies.PREFIX.pack(0, len(message)), message)
        if exchange.unsent_bytes:
            connection.keep(exchange)
        connection.flush_soon()
        while exchange.unsent_bytes > _AHEAD or not connection.writable:
            if connection.streams.get(exchange.id) is not exchange:
                raise asyncio.CancelledError("the caller has left")
            exchange.room = asyncio.get_running_loop().create_future()
            await exchange.room

    async def serve() -> Mapping[str, str] | None:
        return await handler(call, inbox.messages(), write)

    connection.start(exchange, serve(), call, partial(_served, connection, exchange))


def _served(connection: Answering, exchange: Exchange, trailers: Any, problem: BaseException | None) -> None:
    exchange.pending = None
    if connection.streams.get(exchange.id) is not exchange:
        return
    if problem is not None:
        connection.fail(exchange, connection.public(problem, exchange))
    else:
        connection.finish(exchange, trailers or {})
