"""Where a large message is put together: one buffer that each byte is written to once, by the kernel where it can be.

Nothing is allocated for what a prefix only promises: a buffer grows with the bytes that have arrived, to at most twice
as many (64 KiB at first). Buffers are used again once nobody looks at what lay in them, which spares the growing and
the system's page faults; how many are kept is bounded for each thread, so that a peer which promises much and sends
little gains nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from .outbound import Bytes

_STEP: Final = 64 << 10
"""Buffers are multiples of it, so that messages of nearly one size share them."""
_KEPT_BYTES: Final = 32 << 20
"""Of all buffers that are kept in a thread."""
_KEPT_SIZE: Final = 8 << 20
"""Larger buffers are not kept."""


class Kept(threading.local):
    """Buffers of messages that were complete not long ago, oldest first."""

    def __init__(self) -> None:
        self._buffers: deque[bytearray] = deque()
        self.size = 0

    def give(self, buffer: bytearray) -> None:
        """Keeps a buffer for later, though its message may still be read."""
        size = len(buffer)
        if size > _KEPT_SIZE:
            return
        self._buffers.append(buffer)
        self.size += size
        while self.size > _KEPT_BYTES:
            self.size -= len(self._buffers.popleft())

    def take(self, size: int) -> bytearray | None:
        """A buffer of at least that size, not much more, in which nobody looks at anything."""
        if size > _KEPT_SIZE:
            return None
        for index, buffer in enumerate(self._buffers):
            if size <= len(buffer) <= 2 * size + _STEP and _forgotten(buffer):
                del self._buffers[index]
                self.size -= len(buffer)
                return buffer
        return None


kept: Final = Kept()


class Gathering:
    """One message of `size` bytes under way; `have` of them are there."""

    __slots__ = ("_buffer", "_view", "have", "size")

    def __init__(self, size: int) -> None:
        self.size, self.have = size, 0
        self._buffer = kept.take(size)
        self._view = memoryview(self._buffer) if self._buffer is not None else memoryview(b"")

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return self.size - self.have

    def room(self, most: int) -> memoryview:
        """Where the next bytes may be written before they are given to `add`: one at least, `most` or less."""
        have = self.have
        if have >= len(self._view):
            self._grow(have + 1)
        return self._view[have : min(have + most, self.size)]

    def add(self, piece: Bytes) -> None:
        """Takes bytes of this message. Those that lie in its own room already are only counted."""
        have = self.have
        end = have + len(piece)
        if type(piece) is not memoryview or piece.obj is not self._buffer:
            if end > len(self._view):
                self._grow(end)
            self._view[have:end] = piece
        self.have = end

    def message(self) -> memoryview:
        """The whole of it, to be read only. It stays as it is for as long as somebody holds it or a part of it."""
        assert self._buffer is not None and self.have == self.size
        kept.give(self._buffer)
        return self._view[: self.size].toreadonly()

    def _grow(self, least: int) -> None:
        """Twice the room, and again, until it is `least` or more. Halves of the message's size, so that the last step
        fits: the system only has to put pages behind those that are there."""
        buffer = self._buffer
        if buffer is None:
            size = -(-self.size // _STEP) * _STEP
            while size >= 2 * least and size > _STEP:
                size = -(-size // 2)
            buffer = bytearray(size)
        else:
            self._view.release()
            try:
                while len(buffer) < least:
                    buffer *= 2
            except BufferError:
                # Somebody still holds a part of it, such as whoever received into it last.
                fresh = bytearray(-(-least // len(buffer)) * len(buffer))
                fresh[: self.have] = buffer[: self.have]
                buffer = fresh
        self._buffer, self._view = buffer, memoryview(buffer)


def _forgotten(buffer: bytearray) -> bool:
    """Nobody has a view of the buffer: Python refuses to resize one that is looked at."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True
