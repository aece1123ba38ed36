"""A streaming call from the caller's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from . import frames as f
from .client_side import ClientConnection, Sent
from .lost import ConnectionLost
from .replies import PREFIX
from .server_stream import Inbox

_AHEAD: Final = 1 << 20


class ClientInbox(Inbox):
    """The messages of an answer; the window is filled again as they are taken."""

    def __init__(self, connection: ClientConnection, sent: Sent) -> None:
        super().__init__(connection.limits.max_message)
        self._connection, self._sent = connection, sent

    def grant(self) -> None:
        """Lets the peer go on, unless enough waits here."""
        connection, assembler = self._connection, self.assembler
        if self._sent.id in connection.streams and (assembler.held <= 1 << 20 or not assembler.ready):
            connection.regrant(self._sent)
            if connection.out:
                connection.flush_soon()


class ClientStream:
    """Messages both ways. As a context manager it cancels the call when left before its end.

    `async for message in call` reads; it raises the peer's PenstockError, ConnectionLost, DeadlineExceeded.
    """

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._connection: ClientConnection = sent.connection
        self._inbox = sent.inbox = ClientInbox(self._connection, sent)
        sent.assembler = sent.inbox.assembler
        self._ended = False
        self._connection.flush_soon()

    async def send(self, message: bytes) -> None:
        """Sends a message; waits while too much of what was sent has not gone. Raises ConnectionLost when the call is
        over: reading says why."""
        sent, connection = self._sent, self._connection
        if connection.streams.get(sent.id) is not sent:
            raise ConnectionLost("the call is over")
        if self._ended:
            raise ValueError("nothing can be sent after `end`")
        connection.send(sent, PREFIX.pack(0, len(message)), message)
        connection.flush_soon()
        while sent.unsent_bytes > _AHEAD and connection.streams.get(sent.id) is sent:
            sent.room = asyncio.get_running_loop().create_future()
            await sent.room

    def end(self) -> None:
        """No more messages from us."""
        if not self._ended and self._connection.streams.get(self._sent.id) is self._sent:
            self._connection.send(self._sent, last=f.frame(f.DATA, f.END_STREAM, self._sent.id))
            self._connection.flush_soon()
        self._ended = True

    def cancel(self) -> None:
        """Ends the call, here and at the peer."""
        self._connection.abandon(self._sent, None)

    @property
    def open(self) -> bool:
        """The peer has not ended the call."""
        return self._connection.streams.get(self._sent.id) is self._sent

    @property
    def trailers(self) -> dict[str, str]:
        """After the end: what the peer said last."""
        return {name: value for name, value in self._sent.trailers if name[:1] != ":"}

    async def receive(self) -> bytes | None:
        """The next message; None after the last."""
        message = await self._inbox.take()
        self._inbox.grant()
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
