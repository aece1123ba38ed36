"""The chunked coding: whatever the pieces, the same body; whatever is not chunked, refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.rest.chunked import Chunked
from services.gateway.rest.head import MAX_HEAD_BYTES, BadRequest


def decode(*pieces: bytes) -> tuple[bytes, bytes]:
    """The body, and what follows it."""
    decoder, body = Chunked(), bytearray()
    for number, piece in enumerate(pieces):
        used = decoder.feed(piece, 0, body)
        if decoder.ended:
            return bytes(body), piece[used:] + b"".join(pieces[number + 1 :])
        assert used == len(piece)
    raise AssertionError("the body did not end")


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=8), st.booleans()
)
def test_any_pieces(chunks: list[bytes], places: list[int], decorated: bool) -> None:
    extension, trailer = (b";a=b", b"T: v\r\n") if decorated else (b"", b"")
    text = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    text += b"0%s\r\n%s\r\n" % (extension, trailer)
    assert decode(*cut(text + b"GET /next", places)) == (b"".join(chunks), b"GET /next")


class Judge:
    """What httptools says of a body."""

    def __init__(self, text: bytes) -> None:
        self.body, self.ended = b"", False
        parser: Any = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
            parser.feed_data(text)
        except httptools.HttpParserError:
            self.ended = False

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.ended = True


@given(st.text("0123aAfFxX;=+-_ \t\r\n:\0", max_size=40))
def test_what_we_take_others_take_too(text: str) -> None:
    """Stricter than another parser is safe; laxer is not."""
    data = text.encode()
    decoder, body = Chunked(), bytearray()
    try:
        used = decoder.feed(data, 0, body)
    except BadRequest:
        return
    if decoder.ended:
        judge = Judge(data[:used])
        assert (judge.ended, judge.body) == (True, bytes(body))


@pytest.mark.parametrize(
    "text",
    [
        b"x\r\n", b"\r\n", b"-1\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\n", b" 1\r\nx\r\n", b"1 \r\nx\r\n",
        b"1\nx\n0\n\n", b"1\r\nxy\r\n", b"1\r\nx0\r\n\r\n", b"1\r\n\r\n\r\n\r\n", b"1" * 16 + b"\r\n",
        b"1;a\rb\r\nx\r\n", b"0\r\nno colon\r\n\r\n", b"0\r\n: v\r\n\r\n", b"0\r\na: \0\r\n\r\n", b"0\r\na: b\n\n",
    ],
)  # fmt: skip
def test_what_is_not_chunked(text: bytes) -> None:
    for pieces in ([text], [bytes([byte]) for byte in text]):
        with pytest.raises(BadRequest) as caught:
            decode(*pieces)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("opening", "piece"),
    [
        (b"5;", b"a" * 4096),
        (b"1\r\nx\r\n0\r\n", b"t: a\r\n" * 500),
        (b"", b"1;" + b"a" * 1000 + b"\r\nx\r\n"),
        (b"0" * 8, b"0"),
    ],
)
def test_what_means_nothing_is_bounded(opening: bytes, piece: bytes) -> None:
    decoder, body = Chunked(), bytearray()
    decoder.feed(opening, 0, body)
    with pytest.raises(BadRequest):
        for _ in range(2 + 2 * MAX_HEAD_BYTES // len(piece)):
            decoder.feed(piece, 0, body)


def test_tiny_chunks_cost_nothing_but_their_bytes() -> None:
    decoder, body = Chunked(), bytearray()
    for _ in range(1000):
        decoder.feed(b"1\r\nx\r\n" * 1000, 0, body)
    assert len(body) == 1_000_000
    assert not decoder._line
