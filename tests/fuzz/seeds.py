"""Where the search begins: the tables of the conformance tests, and a few words of a server for the client."""

from __future__ import annotations

from penstock.wire.http2 import frames as f
from penstock.wire.http2 import replies
from penstock.wire.http2.hpack import literal
from penstock.wire.http2.huffman import encode
from tests.harness.http2 import BLOCK, message
from tests.integration.http2_cases import DEAF, FRAMES, WINDOWS, data, head, to
from tests.integration.http2_request_cases import HPACK, REQUESTS

_ANSWER = replies.opening(1) + f.frame(f.DATA, 0, 1, message(b"hello")) + replies.success(1, {"x": "y"})
_STREAM = head(1, to(DEAF)) + data(1, message(b"a") + message(b"b")[:4]) + data(1, message(b"b")[4:], ends=True)
_BLOCKS = [sent[9 : 9 + int.from_bytes(sent[:3], "big")] for sent, _ in HPACK.values()]

SEEDS: dict[str, list[bytes]] = {
    "server": [
        b"\x08\x03" + sent
        for sent, _ in (*FRAMES.values(), *WINDOWS.values(), *REQUESTS.values(), *HPACK.values(), (_STREAM, ""))
        if len(sent) < 3000
    ],
    "client": [
        b"\x20" + each
        for each in (
            _ANSWER,
            replies.success(1, {}) + f.reset(3, f.REFUSED_STREAM) + f.goaway(3, 0, "bye"),
            replies.opening(7) + f.frame(f.DATA, 0, 7, message(b"a") * 3) + replies.success(7, {}),
            f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20, f.HEADER_TABLE_SIZE: 0})
            + f.window_update(5, 100_000)
            + _ANSWER,
            replies.http_status(1, 503) + f.frame(f.PING, 0, 0, b"12345678"),
        )
    ],
    "header_blocks": [bytes((len(block) - 1,)) + block for block in (*_BLOCKS, BLOCK) if 0 < len(block) <= 256],
    "heads": [
        b"".join(bytes((len(BLOCK) + len(more) - 1,)) + BLOCK + more for more in blocks)
        for blocks in (
            [literal("grpc-timeout", "5S"), literal("grpc-timeout", "7m")],
            [literal("grpc-timeout", "5S") + literal("x-request-id", "a"), literal("x-request-id", "b")],
            [literal("traceparent", "00-" + "a" * 32), literal("traceparent", "01-" + "b" * 32)],
            [b"\x40\x01x\x01y" + literal("grpc-timeout", "5S"), b"\xbe" + literal("grpc-timeout", "6S")],
            [literal("content-length", "9") + literal("grpc-timeout", "5S")] * 2,
        )
    ]
    # A field that varies, before the pseudo-headers.
    + [b"".join(bytes((len(block) - 1,)) + block for block in (BLOCK, literal("grpc-timeout", "5S") + BLOCK))],
    "huffman_strings": [encode(b"www.example.com"), encode(bytes(range(256))), b"\xff\xff\xff\xff", b"\x1f\xff"],
    "messages": [
        b"\x05" + message(b"hello") * 3,
        b"\x01" + message(b"") * 3 + message(b"x", flag=1),
        b"\x03\0\0\0\1\x2d",
    ],
    "values": [b"100m", b"99999999H", b"1S", b"%C3%A9%25", b"AP8Q", b"AP8=,AA"],
}
"""By target."""
