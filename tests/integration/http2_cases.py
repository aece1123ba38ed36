"""What RFC 9113 and RFC 7541 ask of a server, as bytes to send and words to hear: the table of test_http2_conformance.

A name begins with the section. Where the RFC leaves a choice (a stream error may be treated as one of the connection,
5.4.1) the table holds ours.
"""

from __future__ import annotations

from penstock.wire.http2 import Limits
from penstock.wire.http2 import frames as f
from penstock.wire.http2.hpack import literal
from tests.harness.http2 import BLOCK, FIELDS, block_with, message, plain_block, request

HOLD, DEAF = "/test.Echo/Hold", "/test.Echo/Deaf"
LIMITS = Limits(max_streams=8, max_frame=1 << 15, stream_window=1 << 16, connection_window=1 << 18, max_message=1 << 20)
Case = tuple[bytes, str]
"""What is sent after the preface and SETTINGS, and what comes back, joined by `, `."""

RAW: dict[str, Case] = {
    "3.4 HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GOAWAY PROTOCOL_ERROR"),
    "3.4 preface with a wrong end": (f.PREFACE[:-4] + b"\n\n\n\n", "GOAWAY PROTOCOL_ERROR"),
    "3.4 first frame is PING": (f.PREFACE + f.frame(f.PING, 0, 0, b"12345678"), "GOAWAY PROTOCOL_ERROR"),
    "3.4 first frame is a request": (f.PREFACE + request(1), "GOAWAY PROTOCOL_ERROR"),
    "3.4 first frame is unknown": (f.PREFACE + f.frame(0x77, 0, 0), "GOAWAY PROTOCOL_ERROR"),
    "3.4 SETTINGS with values, then a request in the same bytes": (
        f.PREFACE + f.settings({f.INITIAL_WINDOW_SIZE: 100, f.MAX_FRAME_SIZE: 1 << 20}) + request(1),
        "1: hello 0",
    ),
}
"""These are the first bytes of their connection."""


def head(stream: int, block: bytes = BLOCK, *, ends: bool = False) -> bytes:
    """HEADERS."""
    return f.headers(stream, block, f.END_STREAM if ends else 0, f.DEFAULT_FRAME)


def data(stream: int, payload: bytes = b"", *, ends: bool = False, flags: int = 0) -> bytes:
    """DATA."""
    return f.frame(f.DATA, (f.END_STREAM if ends else 0) | flags, stream, payload)


def to(path: str) -> bytes:
    """A header block for another method."""
    return plain_block((*FIELDS[:2], (":path", path), *FIELDS[3:]))


HELD = request(1, block=to(HOLD))
"""Stream 1 is half-closed: the request is whole, its answer never comes."""
OPEN = head(1, to(HOLD))
"""Stream 1 is open."""
GIVEN_UP = head(1, block_with(("UP", "x")))
"""Stream 1 was reset by the server."""
LEFT = OPEN + f.reset(1, f.CANCEL)
"""Stream 1 was reset by us."""
HELLO_MESSAGE = message(b"hello")
PRIORITY = b"\0\0\0\0\x10"
SETTINGS_ACK = f.frame(f.SETTINGS, f.ACK, 0)

FRAMES: dict[str, Case] = {
    "4.1 unknown type": (f.frame(0x77, 0xFF, 0, b"x" * 100), ""),
    "4.1 unknown type on an idle stream": (f.frame(0x0A, 0, 77, b""), ""),
    "4.1 unknown type as large as a frame may be": (f.frame(0x77, 0, 1, bytes(1 << 15)), ""),
    "4.1 unknown type, too large": (f.pack_head(0, (1 << 15) + 1, 0x77, 0, 0), "GOAWAY FRAME_SIZE_ERROR"),
    "4.1 unknown flags of PING": (f.frame(f.PING, 0xFE, 0, b"12345678"), "PING 12345678"),
    "4.1 unknown flags of HEADERS and DATA": (
        f.frame(f.HEADERS, 0xC2 | f.END_HEADERS, 1, BLOCK) + data(1, HELLO_MESSAGE, ends=True, flags=0xF6),
        "1: hello 0",
    ),
    "4.1 reserved bit of the stream": (request(1).replace(b"\0\0\0\1", b"\x80\0\0\1"), "1: hello 0"),
    "4.2 DATA as large as a frame may be": (
        f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20}) + head(1) + data(1, message(bytes((1 << 15) - 5)), ends=True),
        "1: 32763 bytes 0",
    ),
    "4.2 DATA too large": (head(1) + f.pack_head(0, (1 << 15) + 1, f.DATA, 0, 1), "GOAWAY FRAME_SIZE_ERROR"),
    "4.2 HEADERS too large": (f.pack_head(0, (1 << 15) + 1, f.HEADERS, 4, 1), "GOAWAY FRAME_SIZE_ERROR"),
    "4.2 SETTINGS too large": (f.pack_head(0, 36_000, f.SETTINGS, 0, 0), "GOAWAY FRAME_SIZE_ERROR"),
    "4.2 a length of 2**24 - 1": (f.pack_head(0xFF, 0xFFFF, f.DATA, 0, 1), "GOAWAY FRAME_SIZE_ERROR"),
    "4.3 a block in three frames": (
        f.frame(f.HEADERS, 0, 1, BLOCK[:5])
        + f.frame(f.CONTINUATION, 0, 1, BLOCK[5:9])
        + f.frame(f.CONTINUATION, f.END_HEADERS, 1, BLOCK[9:])
        + data(1, HELLO_MESSAGE, ends=True),
        "1: hello 0",
    ),
    "4.3 a block that begins with an empty frame": (
        f.frame(f.HEADERS, f.END_STREAM, 1) + f.frame(f.CONTINUATION, f.END_HEADERS, 1, block_with(without="te")),
        "1: 12",
    ),
    "4.3 PRIORITY inside a block": (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.PRIORITY, 0, 1, PRIORITY),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "4.3 PING inside a block": (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.PING, 0, 0, b"12345678"),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "4.3 an unknown type inside a block": (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(0x77, 0, 1),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "4.3 HEADERS inside a block": (f.frame(f.HEADERS, 0, 1, BLOCK) + head(3), "GOAWAY PROTOCOL_ERROR"),
    "4.3 the block of a refused request counts for the table": (
        head(1, b"\x40\x01x\x01y" + block_with(("UP", "x"))) + request(3, block=BLOCK + b"\xbe"),
        "RST 1 PROTOCOL_ERROR, 3: hello 0",
    ),
    "5.1 idle: DATA": (data(5, b"x"), "GOAWAY PROTOCOL_ERROR"),
    "5.1 idle: RST_STREAM": (f.reset(5, f.CANCEL), "GOAWAY PROTOCOL_ERROR"),
    "5.1 idle: WINDOW_UPDATE": (f.window_update(5, 1), "GOAWAY PROTOCOL_ERROR"),
    "5.1 idle: CONTINUATION": (f.frame(f.CONTINUATION, 4, 5, BLOCK), "GOAWAY PROTOCOL_ERROR"),
    "5.1 idle: PRIORITY": (f.frame(f.PRIORITY, 0, 5, PRIORITY) + request(5), "5: hello 0"),
    "5.1 half-closed: DATA": (HELD + data(1, b"x"), "RST 1 STREAM_CLOSED"),
    "5.1 half-closed: HEADERS": (HELD + head(1, ends=True), "GOAWAY STREAM_CLOSED"),
    "5.1 half-closed: CONTINUATION": (HELD + f.frame(f.CONTINUATION, 4, 1, BLOCK), "GOAWAY PROTOCOL_ERROR"),
    "5.1 half-closed: WINDOW_UPDATE, PRIORITY, RST_STREAM": (
        HELD + f.window_update(1, 5000) + f.frame(f.PRIORITY, 0, 1, PRIORITY) + f.reset(1, f.CANCEL),
        "",
    ),
    "5.1 closed: DATA": (request(1) + data(1, b"x"), "1: hello 0, RST 1 STREAM_CLOSED"),
    "5.1 closed: HEADERS": (request(1) + head(1, ends=True), "1: hello 0, GOAWAY STREAM_CLOSED"),
    "5.1 closed: CONTINUATION": (request(1) + f.frame(f.CONTINUATION, 4, 1), "1: hello 0, GOAWAY PROTOCOL_ERROR"),
    "5.1 closed: WINDOW_UPDATE, PRIORITY, RST_STREAM": (
        request(1) + f.window_update(1, 1) + f.frame(f.PRIORITY, 0, 1, PRIORITY) + f.reset(1, f.CANCEL),
        "1: hello 0",
    ),
    "5.1 reset by us: DATA": (LEFT + data(1, b"x"), "RST 1 STREAM_CLOSED"),
    "5.1 reset by us: HEADERS": (LEFT + head(1, ends=True), "GOAWAY STREAM_CLOSED"),
    "5.1 reset by the server: what was under way": (
        GIVEN_UP + f.window_update(1, 1) + data(1, bytes(20_000)) + data(1, b"x", ends=True) + f.reset(1, f.CANCEL),
        "RST 1 PROTOCOL_ERROR",
    ),
    "5.1 reset by the server: trailers": (GIVEN_UP + head(1, literal("x", "y"), ends=True), "RST 1 PROTOCOL_ERROR"),
    "5.1.1 even stream": (head(2), "GOAWAY PROTOCOL_ERROR"),
    "5.1.1 stream 0": (head(0), "GOAWAY PROTOCOL_ERROR"),
    "5.1.1 a number below one that was used": (request(5) + head(3), "5: hello 0, GOAWAY PROTOCOL_ERROR"),
    "5.1.1 numbers may be left out": (request(1) + request(999), "1: hello 0, 999: hello 0"),
    "5.1.2 one stream too many": (
        b"".join(head(number, to(HOLD)) for number in range(1, 19, 2)) + f.reset(1, f.CANCEL),
        "RST 17 REFUSED_STREAM",
    ),
    "5.1.2 a stream that was reset makes room": (
        b"".join(head(number, to(HOLD)) + f.reset(number, f.CANCEL) for number in range(1, 41, 2)),
        "",
    ),
    "5.3.2 a stream that depends on itself": (
        head(1, to(HOLD)) + f.frame(f.PRIORITY, 0, 1, b"\0\0\0\1\x10"),
        "RST 1 PROTOCOL_ERROR",
    ),
    "5.3.2 HEADERS that depend on themselves": (
        f.frame(f.HEADERS, f.PRIORITISED | 4, 1, b"\0\0\0\1\x10" + BLOCK),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "5.4.1 nothing is answered after GOAWAY": (data(0, b"x") + request(1), "GOAWAY PROTOCOL_ERROR"),
    "5.5 unknown settings": (f.frame(f.SETTINGS, 0, 0, b"\x12\x34\xff\xff\xff\xff"), ""),
    "6.1 DATA on stream 0": (data(0, b"x"), "GOAWAY PROTOCOL_ERROR"),
    "6.1 padded DATA": (
        head(1) + data(1, b"\x09" + HELLO_MESSAGE + bytes(9), ends=True, flags=f.PADDED),
        "1: hello 0",
    ),
    "6.1 padding as long as its frame": (head(1) + data(1, b"\x05abcd", flags=f.PADDED), "GOAWAY PROTOCOL_ERROR"),
    "6.1 padding longer than its frame": (head(1) + data(1, b"\xff", flags=f.PADDED), "GOAWAY PROTOCOL_ERROR"),
    "6.1 padding without its length": (head(1) + data(1, b"", flags=f.PADDED), "GOAWAY PROTOCOL_ERROR"),
    "6.1 padding and no data": (
        head(1) + data(1, b"\x02\0\0", flags=f.PADDED) + data(1, HELLO_MESSAGE, ends=True),
        "1: hello 0",
    ),
    "6.1 empty DATA that ends": (head(1) + data(1, HELLO_MESSAGE) + data(1, ends=True), "1: hello 0"),
    "6.2 HEADERS on stream 0": (f.frame(f.HEADERS, 4, 0, BLOCK), "GOAWAY PROTOCOL_ERROR"),
    "6.2 padding longer than HEADERS": (f.frame(f.HEADERS, f.PADDED | 4, 1, b"\xff" + BLOCK), "GOAWAY PROTOCOL_ERROR"),
    "6.2 HEADERS with padding and priority": (
        f.frame(f.HEADERS, f.PADDED | f.PRIORITISED | 4, 1, b"\x03" + PRIORITY + BLOCK + bytes(3))
        + data(1, HELLO_MESSAGE, ends=True),
        "1: hello 0",
    ),
    "6.2 HEADERS too short for their priority": (
        f.frame(f.HEADERS, f.PRIORITISED | 4, 1, b"abc"),
        "GOAWAY FRAME_SIZE_ERROR",
    ),
    "6.3 PRIORITY on stream 0": (f.frame(f.PRIORITY, 0, 0, PRIORITY), "GOAWAY PROTOCOL_ERROR"),
    "6.3 PRIORITY of four bytes": (OPEN + f.frame(f.PRIORITY, 0, 1, b"1234"), "RST 1 FRAME_SIZE_ERROR"),
    "6.3 PRIORITY of six bytes on an idle stream": (f.frame(f.PRIORITY, 0, 7, b"123456"), "GOAWAY FRAME_SIZE_ERROR"),
    "6.4 RST_STREAM on stream 0": (f.reset(0, f.CANCEL), "GOAWAY PROTOCOL_ERROR"),
    "6.4 RST_STREAM of three bytes": (OPEN + f.frame(f.RST_STREAM, 0, 1, b"123"), "GOAWAY FRAME_SIZE_ERROR"),
    "6.4 RST_STREAM of five bytes": (OPEN + f.frame(f.RST_STREAM, 0, 1, b"12345"), "GOAWAY FRAME_SIZE_ERROR"),
    "6.4 RST_STREAM with an unknown code": (OPEN + f.reset(1, 0xDEAD), ""),
    "6.5 ACK with a payload": (f.frame(f.SETTINGS, f.ACK, 0, bytes(6)), "GOAWAY FRAME_SIZE_ERROR"),
    "6.5 ACK that nothing was sent for": (SETTINGS_ACK * 3, ""),
    "6.5 SETTINGS on a stream": (f.frame(f.SETTINGS, 0, 1), "GOAWAY PROTOCOL_ERROR"),
    "6.5 SETTINGS of five bytes": (f.frame(f.SETTINGS, 0, 0, bytes(5)), "GOAWAY FRAME_SIZE_ERROR"),
    "6.5 more settings than anybody needs": (
        f.frame(f.SETTINGS, 0, 0, b"\0\x77\0\0\0\0" * 65),
        "GOAWAY ENHANCE_YOUR_CALM",
    ),
    "6.5.2 ENABLE_PUSH of 1": (f.settings({f.ENABLE_PUSH: 1}), ""),
    "6.5.2 ENABLE_PUSH of 2": (f.settings({f.ENABLE_PUSH: 2}), "GOAWAY PROTOCOL_ERROR"),
    "6.5.2 INITIAL_WINDOW_SIZE of 2**31": (f.settings({f.INITIAL_WINDOW_SIZE: 1 << 31}), "GOAWAY FLOW_CONTROL_ERROR"),
    "6.5.2 MAX_FRAME_SIZE of 16,383": (f.settings({f.MAX_FRAME_SIZE: 16_383}), "GOAWAY PROTOCOL_ERROR"),
    "6.5.2 MAX_FRAME_SIZE of 2**24": (f.settings({f.MAX_FRAME_SIZE: 1 << 24}), "GOAWAY PROTOCOL_ERROR"),
    "6.5.2 MAX_FRAME_SIZE of 2**24 - 1": (f.settings({f.MAX_FRAME_SIZE: (1 << 24) - 1}), ""),
    "6.5.2 MAX_HEADER_LIST_SIZE and MAX_CONCURRENT_STREAMS of 0": (
        f.settings({f.MAX_HEADER_LIST_SIZE: 0, f.MAX_CONCURRENT_STREAMS: 0}),
        "",
    ),
    "6.5.3 of two values of one setting the last counts": (
        f.frame(f.SETTINGS, 0, 0, b"\0\4\0\0\0\1" + b"\0\4\0\0\0\x64") + request(1),
        "1: hello 0",
    ),
    "6.6 PUSH_PROMISE": (OPEN + f.frame(f.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + BLOCK), "GOAWAY PROTOCOL_ERROR"),
    "6.7 PING": (f.frame(f.PING, 0, 0, b"\1abcdefg"), "PING \1abcdefg"),
    "6.7 PING that is an ACK": (f.frame(f.PING, f.ACK, 0, b"unasked!"), ""),
    "6.7 PING of seven bytes": (f.frame(f.PING, 0, 0, bytes(7)), "GOAWAY FRAME_SIZE_ERROR"),
    "6.7 PING of nine bytes": (f.frame(f.PING, 0, 0, bytes(9)), "GOAWAY FRAME_SIZE_ERROR"),
    "6.7 PING on a stream": (f.frame(f.PING, 0, 1, bytes(8)), "GOAWAY PROTOCOL_ERROR"),
    "6.8 GOAWAY on a stream": (f.frame(f.GOAWAY, 0, 1, bytes(8)), "GOAWAY PROTOCOL_ERROR"),
    "6.8 GOAWAY of seven bytes": (f.frame(f.GOAWAY, 0, 0, bytes(7)), "GOAWAY FRAME_SIZE_ERROR"),
    "6.8 what was asked before GOAWAY is answered": (
        head(1)
        + f.goaway(0, f.NO_ERROR, "bye \udcff".encode(errors="replace").decode())
        + data(1, HELLO_MESSAGE, ends=True),
        "1: hello 0",
    ),
    "6.10 CONTINUATION after the end of a block": (head(1) + f.frame(f.CONTINUATION, 4, 1), "GOAWAY PROTOCOL_ERROR"),
    "6.10 CONTINUATION on stream 0": (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.CONTINUATION, 4, 0),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "6.10 CONTINUATION of another stream": (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.CONTINUATION, 4, 3),
        "GOAWAY PROTOCOL_ERROR",
    ),
    "6.10 CONTINUATION after DATA": (head(1) + data(1, b"x") + f.frame(f.CONTINUATION, 4, 1), "GOAWAY PROTOCOL_ERROR"),
}

WINDOWS: dict[str, Case] = {
    "6.9 increment 0 of a stream": (HELD + f.window_update(1, 0), "RST 1 PROTOCOL_ERROR"),
    "6.9 increment 0 of the connection": (f.window_update(0, 0), "GOAWAY PROTOCOL_ERROR"),
    "6.9 WINDOW_UPDATE of three bytes": (f.frame(f.WINDOW_UPDATE, 0, 0, b"123"), "GOAWAY FRAME_SIZE_ERROR"),
    "6.9 WINDOW_UPDATE of five bytes": (OPEN + f.frame(f.WINDOW_UPDATE, 0, 1, b"12345"), "GOAWAY FRAME_SIZE_ERROR"),
    "6.9 reserved bit of the increment": (HELD + f.frame(f.WINDOW_UPDATE, 0, 1, b"\x80\0\0\1"), ""),
    "6.9.1 a stream's window of 2**31 - 1": (HELD + f.window_update(1, 2**31 - 65_536), ""),
    "6.9.1 a stream's window of 2**31": (HELD + f.window_update(1, 2**31 - 65_535), "RST 1 FLOW_CONTROL_ERROR"),
    "6.9.1 the connection's window of 2**31 - 1": (f.window_update(0, 2**31 - 65_536), ""),
    "6.9.1 the connection's window of 2**31": (f.window_update(0, 2**31 - 65_535), "GOAWAY FLOW_CONTROL_ERROR"),
    "6.9.1 a window of 0 holds an answer": (
        f.settings({f.INITIAL_WINDOW_SIZE: 0}) + request(1) + f.settings({f.INITIAL_WINDOW_SIZE: 10}),
        "1: hello 0",
    ),
    "6.9.1 as much as there is window for": (
        f.settings({f.INITIAL_WINDOW_SIZE: 3}) + request(1, b"x" * 50) + f.settings({f.INITIAL_WINDOW_SIZE: 20}),
        "1: 20 bytes so far",
    ),
    "6.9.1 an empty answer needs five bytes of window": (
        f.settings({f.INITIAL_WINDOW_SIZE: 4}) + request(1, b"") + f.window_update(1, 1) + f.settings({4: 100}),
        "1: 0",
    ),
    "6.9.1 the connection's window holds answers": (
        f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20})
        + request(1, bytes(30_000))
        + request(3, bytes(30_000))
        + request(5, bytes(30_000))
        + f.window_update(0, 30_000),
        "1: 30000 bytes 0, 3: 30000 bytes 0, 5: 30000 bytes 0",
    ),
    "6.9.2 a window below 0 must be filled first": (
        f.settings({f.INITIAL_WINDOW_SIZE: 10})
        + request(1, b"x" * 50)
        + f.settings({f.INITIAL_WINDOW_SIZE: 0})
        + f.window_update(1, 10)
        + f.window_update(1, 7)
        + f.settings({f.INITIAL_WINDOW_SIZE: 100})
        + f.settings({f.INITIAL_WINDOW_SIZE: 10}),
        "1: 50 bytes 0",
    ),
    "6.9.2 a window below 0 stays silent": (
        f.settings({f.INITIAL_WINDOW_SIZE: 10})
        + request(1, b"x" * 50)
        + f.settings({f.INITIAL_WINDOW_SIZE: 0})
        + f.window_update(1, 10)
        + f.settings({f.INITIAL_WINDOW_SIZE: 10})
        + f.settings({f.INITIAL_WINDOW_SIZE: 12}),
        "1: 22 bytes so far",
    ),
    "6.9.2 SETTINGS that push a window past 2**31 - 1": (
        HELD + f.window_update(1, 2**31 - 65_536) + f.settings({f.INITIAL_WINDOW_SIZE: 65_536}),
        "GOAWAY FLOW_CONTROL_ERROR",
    ),
    "6.9.2 SETTINGS do not change the connection's window": (
        f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20})
        + request(1, bytes(32_000))
        + request(3, bytes(32_000))
        + request(5, bytes(32_000))
        + f.settings({f.INITIAL_WINDOW_SIZE: 1 << 21})
        + f.window_update(0, 40_000),
        "1: 32000 bytes 0, 3: 32000 bytes 0, 5: 32000 bytes 0",
    ),
    "6.9.1 more than a stream's window": (
        head(1, to(DEAF)) + data(1, message(b"unread")) + data(1, message(bytes(1 << 19))[:30_000]) * 60,
        "RST 1 FLOW_CONTROL_ERROR",
    ),
}
