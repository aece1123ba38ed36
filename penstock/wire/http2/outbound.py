"""The sending half of a connection: what goes out, how much of it may (windows), and the streams that wait their turn.

`out` collects; whoever owns the socket takes it once per turn of the loop. DATA that has no window, or for which the
socket has no room, stays with its stream, so what a slow reader costs is bounded by what was handed in for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from . import frames as f
from .limits import Limits

if TYPE_CHECKING:
    from .messages import Assembler
    from .server_stream import Inbox

Bytes = bytes | bytearray | memoryview

_BURST: Final = 1 << 20
"""Bytes put out at a time; beyond it the socket has its turn first."""
_TURN: Final = 64 << 10
"""Bytes of one stream while others wait."""
_RECENT: Final = 512


class Stream:
    """One stream. credit: bytes that the peer may still send; window: bytes that we may; unsent: waits for window.

    assembler: makes messages of what arrives, where more than one piece is needed; inbox: where a streaming call takes
    them; last: frames that follow the unsent bytes and end our side.
    """

    __slots__ = ("assembler", "credit", "id", "inbox", "last", "remote_ended", "unsent", "unsent_bytes", "window")

    def __init__(self, number: int, credit: int, window: int) -> None:
        self.id, self.credit, self.window = number, credit, window
        self.assembler: Assembler | None = None
        self.inbox: Inbox | None = None
        self.remote_ended = False
        self.unsent: deque[memoryview] | None = None
        self.unsent_bytes = 0
        self.last: bytes | None = None


class Outbound:
    """Everything that a connection says."""

    def __init__(self, limits: Limits, *, client: bool) -> None:
        self.limits, self.client = limits, client
        self.out: list[Bytes] = []
        self.out_bytes = 0
        self.streams: dict[int, Stream] = {}
        self.last_seen = 0
        self.ended = False
        self.writable = True
        self.peer_window, self.peer_frame, self.peer_streams = f.DEFAULT_WINDOW, f.DEFAULT_FRAME, 2**31
        self.window = f.DEFAULT_WINDOW
        self.credit = limits.connection_window
        self._waiting: OrderedDict[int, Stream] = OrderedDict()
        self._given_up: OrderedDict[int, None] = OrderedDict()

    def begin(self) -> None:
        """Puts out what an end says first."""
        limits = self.limits
        values = {
            f.INITIAL_WINDOW_SIZE: limits.stream_window,
            f.MAX_FRAME_SIZE: limits.max_frame,
            f.MAX_HEADER_LIST_SIZE: limits.max_header_list,
        }
        if self.client:
            self.put(f.PREFACE)
            self.put(f.settings({f.ENABLE_PUSH: 0, **values}))
        else:
            self.put(f.settings({f.MAX_CONCURRENT_STREAMS: limits.max_streams, **values}))
        self.put(f.window_update(0, limits.connection_window - f.DEFAULT_WINDOW))

    def put(self, data: Bytes) -> None:
        """Adds bytes to what is sent next."""
        self.out.append(data)
        self.out_bytes += len(data)

    def taken(self) -> list[Bytes]:
        """What is to be sent now; it is no longer here."""
        out, self.out, self.out_bytes = self.out, [], 0
        return out

    def fits(self, stream: Stream, size: int) -> bool:
        """A DATA frame of that size could go out at once, with nothing of the stream's before it."""
        return (
            size <= self.window
            and size <= stream.window
            and size <= self.peer_frame
            and self.writable
            and not stream.unsent
        )

    def send(self, stream: Stream, *parts: Bytes, last: bytes | None = None) -> None:
        """DATA, cut to frames, as windows allow. last: frames that end our side, after everything else; the stream is
        forgotten then if the peer has ended its own."""
        unsent = stream.unsent
        if unsent is None:
            unsent = stream.unsent = deque()
        for part in parts:
            if len(part):
                unsent.append(memoryview(part))
                stream.unsent_bytes += len(part)
        self._waiting[stream.id] = stream
        if last is not None:
            stream.last = last
            if not unsent:
                # An end alone needs no window, so it stands before those who wait for one.
                self._waiting.move_to_end(stream.id, last=False)
        self.pump()

    def pump(self) -> None:
        """Puts out what may go now, the streams in turn. A stream without a window of its own does not wait here: else
        every word of a peer about any window would cost a look at all that it stalls."""
        waiting = self._waiting
        while waiting and self.writable and not self.ended and self.out_bytes < _BURST:
            number, stream = next(iter(waiting.items()))
            if not self._advance(stream):
                if self.window <= 0:
                    return
                del waiting[number]
            elif stream.unsent:
                waiting.move_to_end(number)
            else:
                waiting.pop(number, None)
                if stream.last is not None:
                    self.put(stream.last)
                    self.local_end(stream)

    def _advance(self, stream: Stream) -> bool:
        """Frames of the stream's DATA, fewer where others wait; False when no window is left for it."""
        unsent = stream.unsent
        if not unsent:
            return True
        allowed = min(stream.unsent_bytes, self.window, stream.window)
        if allowed <= 0:
            return False
        most = _TURN if len(self._waiting) > 1 else _BURST - self.out_bytes
        out, frame, total = self.out, 0, 0
        head, part, at = b"", unsent[0], 0
        while total < most and allowed > total:
            size = min(allowed - total, self.peer_frame)
            if size != frame:
                head, frame = f.pack_head(size >> 16, size & 0xFFFF, f.DATA, 0, stream.id), size
            out.append(head)
            total += size
            self.out_bytes += 9 + size
            while size:
                there = len(part) - at
                if there > size:
                    out.append(part[at : at + size])
                    at += size
                    break
                out.append(part[at:] if at else part)
                size -= there
                unsent.popleft()
                at = 0
                if unsent:
                    part = unsent[0]
        if at:
            unsent[0] = part[at:]
        self.window -= total
        stream.window -= total
        stream.unsent_bytes -= total
        self.data_sent(stream)
        return True

    def local_end(self, stream: Stream) -> None:
        """Our side has ended."""
        if stream.remote_ended:
            self.forget(stream.id)

    def forget(self, number: int) -> Stream | None:
        """The stream is over, without a word to the peer."""
        stream = self.streams.pop(number, None)
        if stream is not None and stream.unsent is not None:
            self._waiting.pop(number, None)
            stream.unsent.clear()
            stream.unsent_bytes = 0
        return stream

    def give_up(self, number: int, code: int) -> None:
        """Resets a stream from our side. What the peer has sent of it meanwhile is passed over."""
        self.forget(number)
        self.remember(number)
        self.put(f.reset(number, code))

    def remember(self, number: int) -> None:
        """What still comes for the stream is no fault of the peer's."""
        self._given_up[number] = None
        if len(self._given_up) > _RECENT:
            self._given_up.popitem(last=False)

    def was_given_up(self, number: int) -> bool:
        """The stream was reset a short while ago, so frames for it are no fault."""
        return number in self._given_up

    def end(self, code: int, text: str = "") -> None:
        """The last word: GOAWAY. Nothing is read or sent afterwards."""
        if self.ended:
            return
        self.ended = True
        self.put(f.goaway(0 if self.client else self.last_seen, code, text))
        self.connection_ended(code, text)

    # What windows do.

    def widen(self, number: int, increment: int) -> None:
        """A WINDOW_UPDATE; the stream is known, or it is 0."""
        if not number:
            awaited = self.window <= 0
            self.window += increment
            if not increment or self.window > f.MAX_WINDOW:
                raise f.ConnectionFault(
                    f.FLOW_CONTROL_ERROR if increment else f.PROTOCOL_ERROR, "an increment of 0, or past 2**31 - 1"
                )
        else:
            stream = self.streams[number]
            stream.window += increment
            if not increment or stream.window > f.MAX_WINDOW:
                raise f.StreamFault(
                    number, f.FLOW_CONTROL_ERROR if increment else f.PROTOCOL_ERROR, "an increment of 0, or too large"
                )
            awaited = bool(stream.unsent) and self.window > 0
            if stream.unsent:
                self._waiting[number] = stream
        if awaited:
            self.pump()

    def window_changed(self, value: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE: every stream's window moves, below zero if need be."""
        if value > f.MAX_WINDOW:
            raise f.ConnectionFault(f.FLOW_CONTROL_ERROR, "an initial window of more than 2**31 - 1")
        change, self.peer_window = value - self.peer_window, value
        for stream in self.streams.values():
            stream.window += change
            if stream.window > f.MAX_WINDOW:
                raise f.ConnectionFault(f.FLOW_CONTROL_ERROR, "a window of more than 2**31 - 1")
            if change > 0 and stream.unsent:
                self._waiting[stream.id] = stream
        if change > 0:
            self.pump()

    def regrant(self, stream: Stream) -> None:
        """Fills the peer's window of the stream again, when half of it is gone and the peer may send more."""
        full = self.limits.stream_window
        if stream.credit <= full >> 1 and not stream.remote_ended:
            self.put(f.window_update(stream.id, full - stream.credit))
            stream.credit = full

    # What a derived class may want to know.

    def data_sent(self, stream: Stream) -> None:
        """Some of the stream's DATA has gone."""

    def connection_ended(self, code: int, text: str) -> None:
        """GOAWAY has been put out."""
