"""Frames of HTTP/2 (RFC 9113, sections 4 and 6): numbers, packing, and the two ways in which a peer can be wrong."""

from __future__ import annotations

from struct import Struct
from typing import Final

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME: Final = 16_384
MAX_WINDOW: Final = 2**31 - 1

HEAD: Final = Struct(">BHBBL")
"""Length in 8 + 16 bits, type, flags, stream."""
_LONG: Final = Struct(">L")
_GOAWAY: Final = Struct(">LL")
_SETTING: Final = Struct(">HL")

pack_head = HEAD.pack


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection, with GOAWAY."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class StreamFault(Exception):
    """The peer broke the protocol in a way that ends one stream, with RST_STREAM."""

    def __init__(self, stream: int, code: int, text: str) -> None:
        super().__init__(text)
        self.stream, self.code, self.text = stream, code, text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return pack_head(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Keys and values; the length is a multiple of six."""
    return list(_SETTING.iter_unpack(payload))


def reset(stream: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, _LONG.pack(code))


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, _LONG.pack(increment))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """GOAWAY; `text` is for whoever reads the peer's log."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last, code) + text.encode())


def read_long(payload: bytes) -> int:
    """The first four bytes."""
    number: int = _LONG.unpack_from(payload)[0]
    return number


def headers(stream: int, block: bytes, flags: int, max_frame: int) -> bytes:
    """HEADERS, and CONTINUATION where the block is larger than a frame may be. flags: END_STREAM or 0."""
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    parts = [frame(HEADERS, flags, stream, block[:max_frame])]
    for start in range(max_frame, len(block), max_frame):
        last = END_HEADERS if start + max_frame >= len(block) else 0
        parts.append(frame(CONTINUATION, last, stream, block[start : start + max_frame]))
    return b"".join(parts)
