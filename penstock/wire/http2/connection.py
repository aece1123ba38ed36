"""One HTTP/2 connection without sockets (RFC 9113): bytes come in, bytes collect in `out`, hooks tell what happens.

Both ends are made of it. It keeps frames, settings, windows, the life of streams and the budgets that make a hostile
peer lose; header blocks and messages belong to who derives from it. A fault of the peer's either resets one stream or
ends the connection with GOAWAY, after which nothing is read. Large DATA frames are handed on as they arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import frames as f
from .frames import ConnectionFault, StreamFault
from .intake import CRUMB, PIECES_FROM, Intake
from .limits import Limits

_MAX_SETTINGS: Final = 64
_SMALL_INCREMENT: Final = 1024
_ANY_NUMBER: Final = 1 << 62


class Connection(Intake):
    """What both ends share. Derived classes answer the hooks at the end of this class, of Intake and of Outbound."""

    def __init__(self, limits: Limits, clock: Callable[[], float], *, client: bool) -> None:
        super().__init__(limits, clock, client=client)
        self._rest = bytearray()
        self._need = 0 if client else len(f.PREFACE)
        self._preface = not client
        self._first = True
        self._block: list[bytes] | None = None
        self._block_stream = self._block_bytes = 0
        self._block_ends = False
        self.calls_left = _ANY_NUMBER
        self.backlog: memoryview | None = None
        self._kinds: dict[int, Callable[[int, int, bytes], None]] = {
            f.HEADERS: self._headers,
            f.CONTINUATION: self._continuation,
            f.RST_STREAM: self._rst_stream,
            f.SETTINGS: self._settings,
            f.PING: self._ping,
            f.GOAWAY: self._goaway,
            f.WINDOW_UPDATE: self._window_update,
            f.PRIORITY: self._priority,
            f.PUSH_PROMISE: self._push_promise,
            f.DATA: self._whole_data,
        }

    @property
    def greeted(self) -> bool:
        """The peer has said hello: its preface and SETTINGS have arrived."""
        return not self._first

    def receive(self, data: bytes | memoryview) -> None:
        """Takes what has arrived, in pieces of any size. Never raises for what a peer does.

        After `calls_left` HEADERS the rest is kept as `backlog`, for whoever owns the connection to give it again.
        """
        try:
            while not self.ended:
                if self.backlog is not None:
                    self.backlog = memoryview(b"".join((self.backlog, data)))
                    return
                if self._data_left:
                    at = self._go_on_with_data(data)
                elif self._need:
                    at = self._fill(data)
                else:
                    self._frames(data)
                    return
                if at >= len(data):
                    return
                data = memoryview(data)[at:]
        except ConnectionFault as fault:
            self.end(fault.code, fault.text)

    def _fill(self, data: bytes | memoryview) -> int:
        """Completes what came in parts, and only that; how much it took. The cost is in proportion to the bytes,
        however small the parts are."""
        rest = self._rest
        taken = min(self._need - len(rest), len(data))
        rest += data[:taken]
        if self._preface:
            size = min(len(rest), len(f.PREFACE))
            if rest[:size] != f.PREFACE[:size]:
                raise ConnectionFault(f.PROTOCOL_ERROR, "not HTTP/2")
        if len(rest) < self._need:
            return taken
        whole = bytes(rest)
        rest.clear()
        self._need = 0
        if self._preface:
            self._preface = False
        else:
            self._frames(whole)
        return taken

    def _frames(self, data: bytes | memoryview) -> None:
        at, end = 0, len(data)
        unpack, max_frame = f.HEAD.unpack_from, self.limits.max_frame
        while end - at >= 9:
            high, low, kind, flags, stream = unpack(data, at)
            size = high << 16 | low
            start = at + 9
            stop = start + size
            if size > max_frame:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, "a frame larger than our SETTINGS allow")
            stream &= 0x7FFFFFFF
            if self._first or self._block is not None:
                self._check_order(kind, stream)
            try:
                if kind == 0 and not flags & 8:
                    if stop > end and size >= PIECES_FROM:
                        # Let it pass through: no frame of this size is kept here.
                        self._data_left, self._data_stream, self._data_ends = size, stream, bool(flags & 1)
                        self._charge_data(stream, size)
                        self._go_on_with_data(data[start:end])
                        return
                    if stop > end:
                        break
                    self._charge_data(stream, size)
                    if size < CRUMB and not flags & 1:
                        self._take_crumb()
                    if size < PIECES_FROM:
                        self._data(stream, bytes(data[start:stop]), flags & 1 == 1)
                    else:
                        self._data(stream, data[start:stop], flags & 1 == 1)
                        if not flags & 1:
                            stop = self._row(data, stop, stream)
                else:
                    if kind != 0 and size > self.limits.max_header_block and kind in self._kinds:
                        raise ConnectionFault(f.FRAME_SIZE_ERROR, "a frame of this kind is never so large")
                    if stop > end:
                        break
                    if kind == 1:
                        if not self.calls_left:
                            self._keep(data[at:])
                            return
                        self.calls_left -= 1
                    if kind == 1 and flags & 0x2C == 4:
                        self._open(stream, bytes(data[start:stop]), flags & 1 == 1)
                    else:
                        act = self._kinds.get(kind)
                        if act is not None:
                            act(flags, stream, bytes(data[start:stop]))
                        elif self._block is None:
                            self._take_control()
            except StreamFault as fault:
                self.fault(fault.stream, fault.code, fault.text)
            if self.ended:
                return
            at = stop
        if at < end:
            self._rest += data[at:]
            have = end - at
            self._need = 9 if have < 9 else 9 + (high << 16 | low)

    def _keep(self, data: bytes | memoryview) -> None:
        """Keeps what comes after the calls of one turn."""
        rest = memoryview(data)
        # What lies in a buffer of the link's is overwritten by what comes next.
        self.backlog = rest if type(rest.obj) is bytes else memoryview(bytes(rest))

    def _check_order(self, kind: int, stream: int) -> None:
        if self._first:
            if kind != f.SETTINGS:
                raise ConnectionFault(f.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._first = False
        if self._block is not None and (kind != f.CONTINUATION or stream != self._block_stream):
            raise ConnectionFault(f.PROTOCOL_ERROR, "a frame in the midst of a header block")

    def _whole_data(self, flags: int, number: int, payload: bytes) -> None:
        """A padded DATA frame."""
        self._charge_data(number, len(payload))
        piece = _unpadded(flags, payload)
        if len(piece) < CRUMB and not flags & f.END_STREAM:
            self._take_crumb()
        self._data(number, piece, bool(flags & f.END_STREAM))

    # Header blocks.

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        fragment = _unpadded(flags, payload)
        if flags & f.PRIORITISED:
            if len(fragment) < 5:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, "HEADERS without its priority")
            if f.read_long(fragment) & 0x7FFFFFFF == number:
                raise ConnectionFault(f.PROTOCOL_ERROR, "a stream that depends on itself")
            fragment = fragment[5:]
        if flags & f.END_HEADERS:
            self._open(number, fragment, bool(flags & f.END_STREAM))
            return
        self._block, self._block_stream, self._block_bytes = [fragment], number, len(fragment)
        self._block_ends = bool(flags & f.END_STREAM)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(f.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > self.limits.max_header_block or len(block) > self.limits.max_continuations:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "a header block that is too long")
        if flags & f.END_HEADERS:
            self._block = None
            self._open(number, b"".join(block), self._block_ends)

    def _open(self, number: int, block: bytes, ends: bool) -> None:
        if not number:
            raise ConnectionFault(f.PROTOCOL_ERROR, "HEADERS on stream 0")
        self.block_received(number, block, ends)

    # Control frames.

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        if not number or self._idle(number):
            raise ConnectionFault(f.PROTOCOL_ERROR, "RST_STREAM on a stream that is not open")
        self._take_reset()
        if number in self.streams:
            self.forget(number)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(f.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & f.ACK and payload):
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._take_control()
        if flags & f.ACK:
            return
        if len(payload) > 6 * _MAX_SETTINGS:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "too many settings at once")
        # Before anything that only the new settings allow.
        self.put(f.frame(f.SETTINGS, f.ACK, 0))
        # A setting that comes twice counts once: to change every stream's window is work.
        for key, value in dict(f.read_settings(payload)).items():
            self._set(key, value)

    def _set(self, key: int, value: int) -> None:
        if key == f.INITIAL_WINDOW_SIZE:
            self.window_changed(value)
        elif key == f.MAX_FRAME_SIZE:
            if not f.DEFAULT_FRAME <= value <= 0xFFFFFF:
                raise ConnectionFault(f.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
            self.peer_frame = min(value, 1 << 20)
        elif key == f.MAX_CONCURRENT_STREAMS:
            self.peer_streams = value
            self.streams_allowed()
        elif key == f.ENABLE_PUSH and value > (0 if self.client else 1):
            raise ConnectionFault(f.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1, and 0 from a server")
        elif key == f.HEADER_TABLE_SIZE:
            self.table_allowed(value)

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(f.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "PING has eight bytes")
        if flags & f.ACK:
            self.ping_answered(payload)
        else:
            self.put(f.frame(f.PING, f.ACK, 0, payload))
        self._take_control()

    def _goaway(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(f.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "GOAWAY has eight bytes or more")
        self._take_control()
        text = payload[8:264].decode("ascii", "replace")
        self.peer_leaves(f.read_long(payload) & 0x7FFFFFFF, f.read_long(payload[4:]), text)

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        if number and number not in self.streams:
            if self._idle(number):
                raise ConnectionFault(f.PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is not open")
            # Late for a stream that is over: ordinary, but not without end.
            self._take_crumb()
            return
        increment = f.read_long(payload) & 0x7FFFFFFF
        if increment < _SMALL_INCREMENT:
            self._take_crumb()
        self.widen(number, increment)

    def _priority(self, flags: int, number: int, payload: bytes) -> None:
        if not number:
            raise ConnectionFault(f.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._take_control()
        if len(payload) == 5 and f.read_long(payload) & 0x7FFFFFFF != number:
            return
        code, text = f.PROTOCOL_ERROR, "a stream that depends on itself"
        if len(payload) != 5:
            code, text = f.FRAME_SIZE_ERROR, "PRIORITY has five bytes"
        if self._idle(number):
            # There is no stream to reset.
            raise ConnectionFault(code, text)
        raise StreamFault(number, code, text)

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(f.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody here may send")

    def fault(self, number: int, code: int, text: str) -> None:
        """One stream is at fault: it is reset. Whoever makes us reset pays as if it had reset the stream itself."""
        self._take_reset()
        self.give_up(number, code)

    # What a derived class must do.

    def block_received(self, number: int, block: bytes, ends: bool) -> None:
        """A header block, which has to be decoded whatever becomes of the stream."""
        raise NotImplementedError

    def table_allowed(self, size: int) -> None:
        """SETTINGS_HEADER_TABLE_SIZE of the peer's decoder."""

    def streams_allowed(self) -> None:
        """SETTINGS_MAX_CONCURRENT_STREAMS has changed."""

    def ping_answered(self, payload: bytes) -> None:
        """An ACK of a PING."""

    def peer_leaves(self, last: int, code: int, text: str) -> None:
        """GOAWAY from the peer."""


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & f.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(f.PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
