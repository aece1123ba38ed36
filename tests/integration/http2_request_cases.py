"""More of the table in http2_cases.py: requests (RFC 9113, section 8; gRPC) and header blocks (RFC 7541)."""

from __future__ import annotations

from penstock.wire.http2.hpack import integer, literal
from tests.harness.http2 import BLOCK, block_with, message, request
from tests.integration.http2_cases import DEAF, HELLO_MESSAGE, Case, data, head, to


def several(*fields: tuple[str, str], without: str = "") -> bytes:
    """A whole request with more fields, on stream 1."""
    return request(1, block=block_with(*fields, without=without))


MALFORMED = "RST 1 PROTOCOL_ERROR"
REST_UNWANTED = "RST 1 NO_ERROR"
"""The answer came before the end of the request."""
REQUESTS: dict[str, Case] = {
    "8.1 trailers": (head(1) + data(1, HELLO_MESSAGE) + head(1, literal("x", "y"), ends=True), "1: hello 0"),
    "8.1 HEADERS in the midst": (head(1) + data(1, HELLO_MESSAGE) + head(1, literal("x", "y")), MALFORMED),
    "8.1 trailers with a pseudo-header": (
        head(1) + data(1, HELLO_MESSAGE) + head(1, literal(":method", "POST"), ends=True),
        MALFORMED,
    ),
    "8.1 trailers in upper case": (head(1) + data(1, HELLO_MESSAGE) + head(1, literal("X", "y"), ends=True), MALFORMED),
    "8.1 trailers with a field of the connection": (
        head(1) + data(1, HELLO_MESSAGE) + head(1, literal("connection", "close"), ends=True),
        MALFORMED,
    ),
    "8.1 no message at all": (head(1, ends=True), "1: 12"),
    "8.1 the rest of a request that is answered already is passed over": (
        head(1) + data(1, message(b"x", flag=1)) + data(1, b"more") + data(1, ends=True),
        f"1: 12, {REST_UNWANTED}",
    ),
    "8.1.1 content-length": (several(("content-length", "10")), "1: hello 0"),
    "8.1.1 content-length, in two frames": (
        head(1, block_with(("content-length", "10")))
        + data(1, HELLO_MESSAGE[:3])
        + data(1, HELLO_MESSAGE[3:], ends=True),
        "1: hello 0",
    ),
    "8.1.1 content-length, and trailers": (
        head(1, block_with(("content-length", "10"))) + data(1, HELLO_MESSAGE) + head(1, literal("x", "y"), ends=True),
        "1: hello 0",
    ),
    "8.1.1 content-length too small": (several(("content-length", "9")), MALFORMED),
    "8.1.1 content-length too large": (several(("content-length", "11")), MALFORMED),
    "8.1.1 content-length too large, in two frames": (
        head(1, block_with(("content-length", "11")))
        + data(1, HELLO_MESSAGE[:3])
        + data(1, HELLO_MESSAGE[3:], ends=True),
        MALFORMED,
    ),
    "8.1.1 content-length without DATA": (head(1, block_with(("content-length", "9")), ends=True), MALFORMED),
    "8.1.1 content-length of a stream": (
        head(1, to(DEAF) + literal("content-length", "3")) + data(1, message(b"abc")),
        MALFORMED,
    ),
    "8.1.1 content-length that is no number": (several(("content-length", "+10")), MALFORMED),
    "8.1.1 content-length twice": (several(("content-length", "10"), ("content-length", "11")), MALFORMED),
    "8.2 upper case": (several(("X-Up", "1")), MALFORMED),
    "8.2.1 an empty name": (several(("", "x")), MALFORMED),
    "8.2.1 a space in a name": (several(("a b", "x")), MALFORMED),
    "8.2.1 a colon in a name": (several(("a:b", "x")), MALFORMED),
    "8.2.1 DEL in a name": (several(("a\x7f", "x")), MALFORMED),
    "8.2.1 a letter beyond ASCII in a name": (several(("caf\xe9", "x")), MALFORMED),
    "8.2.1 NUL in a value": (several(("x", "a\0b")), MALFORMED),
    "8.2.1 LF in a value": (several(("x", "a\nb")), MALFORMED),
    "8.2.1 CR in a value": (several(("x", "a\rb")), MALFORMED),
    "8.2.1 LF in a path": (request(1, block=to("/test.Echo/\nEcho")), MALFORMED),
    "8.2.1 NUL in an authority": (several((":authority", "a\0"), without=":authority"), MALFORMED),
    "8.2.1 space around a value is taken off": (several(("x", " y ")), "1: hello 0"),
    "8.2.1 a value that is no UTF-8": (several(("x", "\xff\xfe")), f"1: 3, {REST_UNWANTED}"),
    "8.2.1 a path that is no UTF-8": (request(1, block=to("/test.Echo/\xff\xfe")), f"1: 12, {REST_UNWANTED}"),
    "8.2.2 connection": (several(("connection", "keep-alive")), MALFORMED),
    "8.2.2 keep-alive": (several(("keep-alive", "timeout=5")), MALFORMED),
    "8.2.2 proxy-connection": (several(("proxy-connection", "keep-alive")), MALFORMED),
    "8.2.2 transfer-encoding": (several(("transfer-encoding", "chunked")), MALFORMED),
    "8.2.2 upgrade": (several(("upgrade", "h2c")), MALFORMED),
    "8.2.2 te that is not trailers": (several(("te", "trailers, deflate"), without="te"), MALFORMED),
    "8.3 a pseudo-header after a field": (several((":authority", "x"), without=":authority"), MALFORMED),
    "8.3 an unknown pseudo-header": (request(1, block=literal(":protocol", "x") + BLOCK), MALFORMED),
    "8.3 a pseudo-header of responses": (request(1, block=literal(":status", "200") + BLOCK), MALFORMED),
    "8.3 a pseudo-header twice": (request(1, block=literal(":path", "/") + BLOCK), MALFORMED),
    "8.3.1 no :method": (several(without=":method"), MALFORMED),
    "8.3.1 no :scheme": (several(without=":scheme"), MALFORMED),
    "8.3.1 no :path": (several(without=":path"), MALFORMED),
    "8.3.1 an empty :path": (request(1, block=to("")), MALFORMED),
    "8.3.1 no :authority": (several(without=":authority"), "1: hello 0"),
    "8.3.1 a method that is not POST": (
        head(1, literal(":method", "GET") + block_with(without=":method"), ends=True),
        "1: HTTP 405",
    ),
    "8.5 CONNECT": (head(1, literal(":method", "CONNECT") + literal(":authority", "x:1"), ends=True), MALFORMED),
    "gRPC: another content-type": (
        several(("content-type", "text/plain"), without="content-type"),
        f"1: HTTP 415, {REST_UNWANTED}",
    ),
    "gRPC: no content-type": (several(without="content-type"), f"1: HTTP 415, {REST_UNWANTED}"),
    "gRPC: an unknown path": (request(1, block=to("/no/thing")), f"1: 12, {REST_UNWANTED}"),
    "gRPC: a bad grpc-timeout": (several(("grpc-timeout", "5x")), f"1: 3, {REST_UNWANTED}"),
    "gRPC: a compressed message": (head(1) + data(1, message(b"x", flag=1), ends=True), "1: 12"),
    "gRPC: an unknown flag": (head(1) + data(1, message(b"x", flag=2), ends=True), "1: 3"),
    "gRPC: a message that is too large": (head(1) + data(1, b"\0\x7f\xff\xff\xff"), f"1: 8, {REST_UNWANTED}"),
    "gRPC: two messages": (head(1) + data(1, HELLO_MESSAGE * 2, ends=True), "1: 3"),
    "gRPC: half a message": (head(1) + data(1, HELLO_MESSAGE[:-1], ends=True), "1: 3"),
    "gRPC: half a prefix": (head(1) + data(1, b"\0\0", ends=True), "1: 3"),
}

LOST = "GOAWAY COMPRESSION_ERROR"
ENTRY = b"\x40\x01x\x01y"
"""A literal that goes into the table."""
HPACK: dict[str, Case] = {
    "2.3.3 an index past both tables": (head(1, BLOCK + b"\xbe"), LOST),
    "2.3.3 a name past both tables": (head(1, BLOCK + b"\x7f\x20\x01y"), LOST),
    "2.3.3 an entry of the table": (request(1, block=BLOCK + ENTRY + b"\xbe"), "1: hello 0"),
    "4.2 an update that is larger than allowed": (head(1, b"\x3f\xe2\x1f" + BLOCK), LOST),
    "4.2 an update after a field": (head(1, BLOCK + b"\x20"), LOST),
    "4.2 two updates at the beginning": (request(1, block=b"\x20\x3f\xe1\x1f" + BLOCK), "1: hello 0"),
    "4.3 an update to 0 empties the table": (
        request(1, block=BLOCK + ENTRY) + head(3, b"\x20" + BLOCK + b"\xbe"),
        f"1: hello 0, {LOST}",
    ),
    "4.4 an entry larger than the table empties it": (
        request(1, block=BLOCK + ENTRY + b"\x40\x01z" + integer(4100, 0x7F, 0) + b"z" * 4100)
        + head(3, BLOCK + b"\xbe"),
        f"1: hello 0, {LOST}",
    ),
    "5.1 an integer that does not end": (head(1, BLOCK + b"\xff" + b"\x80" * 20), LOST),
    "5.1 an integer beyond the block": (head(1, BLOCK + b"\xff"), LOST),
    "5.1 a huge integer": (head(1, BLOCK + b"\xff\xff\xff\xff\xff\xff\x7f"), LOST),
    "5.2 a string beyond its block": (head(1, BLOCK + b"\x00\x05x"), LOST),
    "5.2 Huffman": (request(1, block=BLOCK + bytes.fromhex("408825a849e95ba97d7f8925a849e95bb8e8b4bf")), "1: hello 0"),
    "5.2 Huffman with the end symbol": (head(1, BLOCK + b"\x00\x01x\x84\xff\xff\xff\xff"), LOST),
    "5.2 Huffman padding of eight bits": (head(1, BLOCK + b"\x00\x01x\x82\x1f\xff"), LOST),
    "5.2 Huffman padding of zeros": (head(1, BLOCK + b"\x00\x01x\x81\x18"), LOST),
    "6.1 index 0": (head(1, BLOCK + b"\x80"), LOST),
    "6.2.2 without indexing": (request(1, block=BLOCK + b"\x00\x01x\x01y"), "1: hello 0"),
    "6.2.3 never indexed": (request(1, block=BLOCK + b"\x10\x01x\x01y" + b"\x1f\x08\x01z"), "1: hello 0"),
    "6.3 an update of a size that is cut off": (head(1, b"\x3f"), LOST),
    "a block inside trailers that is bad": (head(1) + data(1, HELLO_MESSAGE) + head(1, b"\x80", ends=True), LOST),
    "a list that is too large": (
        request(1, block=BLOCK + b"\x40\x01x" + integer(3000, 0x7F, 0) + b"y" * 3000 + b"\xbe" * 5),
        f"1: 8, {REST_UNWANTED}",
    ),
}
