"""DATA that arrives at a connection: its windows, what a peer may be a nuisance with, and where the bytes go.

What belongs to a large message (gathering.py) is written to its place at once: by the kernel, where the next bytes can
be nothing else (`landing`), or frame after frame without further ado, where a peer sends many small ones (`_row`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import frames as f
from .frames import ConnectionFault, StreamFault
from .limits import Budget, Limits
from .outbound import Outbound, Stream

CRUMB: Final = 16
"""A DATA frame of fewer bytes that does not end its stream is a crumb."""
PIECES_FROM: Final = 4096
"""DATA frames of this size are not waited for, and not copied before they are handed on."""
_ROOM_FROM: Final = 32 << 10
"""So much of a frame must be left to receive it apart from what follows it."""


class Intake(Outbound):
    """What a connection does with DATA. Derived classes answer the hooks at the end."""

    def __init__(self, limits: Limits, clock: Callable[[], float], *, client: bool) -> None:
        super().__init__(limits, client=client)
        self.clock = clock
        self._data_left = self._data_stream = 0
        self._data_ends = False
        now = clock()
        self.resets = Budget(limits.resets, limits.resets_per_second, now)
        self._controls = Budget(limits.controls, limits.controls_per_second, now)
        self.crumbs = Budget(limits.crumbs, limits.crumbs_per_second, now)

    def _take_control(self) -> None:
        if not self._controls.take(self.clock()):
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "too many SETTINGS, PING or other control frames")

    def _take_crumb(self) -> None:
        if not self.crumbs.take(self.clock()):
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "too many DATA frames with next to nothing in them")

    def _take_reset(self) -> None:
        if not self.resets.take(self.clock()):
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "too many streams given up")

    def _idle(self, number: int) -> bool:
        """Never opened. Streams of ours are even at a server, and we open none there."""
        return number > self.last_seen or number & 1 == 0

    def _charge_data(self, number: int, size: int) -> None:
        """Flow control of what arrives; the whole frame is charged when its head is seen."""
        self.credit -= size
        if self.credit < 0:
            raise ConnectionFault(f.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        if self.credit < self.limits.connection_window >> 1:
            self.put(f.window_update(0, self.limits.connection_window - self.credit))
            self.credit = self.limits.connection_window
        stream = self.streams.get(number)
        if stream is not None:
            stream.credit -= size

    def landing(self) -> memoryview | None:
        """Where the bytes that come next may be received: the place of a message that they certainly belong to. What
        was written there is given to `receive`, as if it had come from elsewhere."""
        if self._data_left < _ROOM_FROM:
            return None
        stream = self.streams.get(self._data_stream)
        if stream is None or stream.assembler is None or stream.remote_ended:
            return None
        large = stream.assembler.large
        if large is None or large.missing < self._data_left or stream.credit < 0:
            return None
        return large.room(self._data_left)

    def _go_on_with_data(self, data: bytes | memoryview) -> int:
        """Hands on what there is of a large frame; how much that was."""
        take = min(len(data), self._data_left)
        if take:
            self._data_left -= take
            try:
                self._data(self._data_stream, data[:take], self._data_ends and not self._data_left)
            except StreamFault as fault:
                self.fault(fault.stream, fault.code, fault.text)
        return take

    def _row(self, data: bytes | memoryview, at: int, number: int) -> int:
        """Takes further whole frames from `at` on that do nothing but go on with the same large message, which small
        frames make many of; where the others begin. What ends the message is among the others."""
        stream = self.streams.get(number)
        if stream is None or stream.assembler is None or stream.assembler.large is None:
            return at
        large, end, begun = stream.assembler.large, len(data), at
        unpack, total, max_frame = f.HEAD.unpack_from, 0, self.limits.max_frame
        missing = min(large.missing, stream.credit + 1)
        while end - at >= 9:
            high, low, kind, flags, stream_id = unpack(data, at)
            size = high << 16 | low
            stop = at + 9 + size
            if kind | flags or stream_id != number or stop > end or not CRUMB <= size < missing or size > max_frame:
                break
            large.add(data[at + 9 : stop])
            missing -= size
            total += size
            at = stop
        if at > begun:
            stream.assembler.gathered(total)
            self._charge_data(number, total)
            self.data_gathered(stream, total)
        return at

    def _data(self, number: int, piece: bytes | memoryview, ends: bool) -> None:
        stream = self.streams.get(number)
        if stream is None or stream.remote_ended:
            if number == 0 or self._idle(number):
                raise ConnectionFault(f.PROTOCOL_ERROR, "DATA on a stream that is not open")
            if number in self._given_up:
                return
            raise StreamFault(number, f.STREAM_CLOSED, "DATA on a stream that has ended")
        if stream.credit < 0:
            raise StreamFault(number, f.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if ends:
            stream.remote_ended = True
        self.data_received(stream, piece, ends)

    # What a derived class must do.

    def data_received(self, stream: Stream, piece: bytes | memoryview, ends: bool) -> None:
        """DATA of an open stream; for a large frame in pieces, as they arrive. A view is valid during the call only."""
        raise NotImplementedError

    def data_gathered(self, stream: Stream, size: int) -> None:
        """So much DATA has been added to the large message of the stream's assembler."""
        if stream.inbox is not None:
            stream.inbox.grant()
        else:
            self.regrant(stream)

    def fault(self, number: int, code: int, text: str) -> None:
        """One stream is at fault."""
        raise NotImplementedError
