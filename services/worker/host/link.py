"""The worker's end of the socket pair, on the event loop.

Sending queues and never waits, and a received frame is kept until somebody takes it, so a caller who is cancelled
between the two never leaves half a frame behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import suppress

from .frames import BrokenFrame, FrameBuffer

_PIECE = 1 << 16


class LinkClosed(Exception):
    """The child's end is gone, or what came from it is broken (then the cause says how)."""


class Link:
    """A stream socket that carries frames, and descriptors with them. Owned by one host, on one loop."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._loop = asyncio.get_running_loop()
        self._buffer = FrameBuffer()
        self._frames: deque[bytes] = deque()
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()
        self._taker: asyncio.Future[None] | None = None
        self._writing = False
        self.closed = False
        self.problem: BrokenFrame | None = None
        self._loop.add_reader(end.fileno(), self._readable)

    def send(self, frame: bytes, descriptors: list[int] | None = None) -> None:
        """Queues a frame, and descriptors that go with its first byte; they are closed once sent."""
        if self.closed:
            for descriptor in descriptors or ():
                os.close(descriptor)
            return
        self._outgoing.append((frame, descriptors or []))
        if not self._writing:
            self._flush()

    async def receive(self) -> bytes:
        """The next frame; raises LinkClosed when there will be none. One taker at a time."""
        while not self._frames:
            if self.closed:
                raise LinkClosed from self.problem
            self._taker = self._loop.create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        return self._frames.popleft()

    def half_close(self) -> None:
        """Tells the child that nothing more will come: it ends when it has answered."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes for good; whoever waits for a frame gets LinkClosed. May be called again."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._writing:
            self._loop.remove_writer(self._socket.fileno())
        for _, descriptors in self._outgoing:
            for descriptor in descriptors:
                os.close(descriptor)
        self._outgoing.clear()
        self._socket.close()
        self._wake()

    def _readable(self) -> None:
        try:
            data = self._received()
            if not data:
                self.close()
                return
            self._frames.extend(self._buffer.feed(data))
            if len(self._frames) > 1:
                raise BrokenFrame("more answers than questions")
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        except BrokenFrame as problem:
            self.problem = problem
            self._frames.clear()  # what came before it is not believed either
            self.close()
            return
        self._wake()

    def _received(self) -> bytes:
        """What has arrived. A child that ends with something unread resets the connection, which is told once, before
        its last words; they can be read after that."""
        try:
            return self._socket.recv(_PIECE)
        except ConnectionResetError:
            return self._socket.recv(_PIECE)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                frame, descriptors = self._outgoing[0]
                sent = socket.send_fds(self._socket, [frame], descriptors) if descriptors else self._socket.send(frame)
                for descriptor in descriptors:
                    os.close(descriptor)
                self._outgoing.popleft()
                if sent < len(frame):
                    self._outgoing.appendleft((frame[sent:], []))
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket.fileno(), self._flush)
            return
        except OSError:
            self.close()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
