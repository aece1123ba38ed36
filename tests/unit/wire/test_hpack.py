"""HPACK: the examples of RFC 7541, an independent implementation as the judge, and what hostile blocks cost."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.wire.http2 import huffman
from penstock.wire.http2.hpack import (
    BadBlock,
    Decoder,
    Encoder,
    Field,
    TooLong,
    integer,
    literal,
    portable,
    portable_fields,
)

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=20)


def decoder(**more: int) -> Decoder:
    return Decoder(**{"max_list": 1 << 16, "max_fields": 200, **more})


# RFC 7541, appendix C.3 and C.4: three requests on one connection, plain and with Huffman.
REQUESTS: list[list[Field]] = [
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
]
PLAIN = (
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)
CODED = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)


@pytest.mark.parametrize("blocks", [PLAIN, CODED], ids=["plain", "huffman"])
def test_the_requests_of_the_rfc(blocks: tuple[str, ...]) -> None:
    it = decoder()
    assert [it.decode(bytes.fromhex(block)) for block in blocks] == REQUESTS


def test_the_responses_of_the_rfc_with_eviction() -> None:
    # Appendix C.6: a table of 256 bytes.
    it = decoder(table_bytes=256)
    first = it.decode(
        bytes.fromhex(
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
        )
    )
    assert first == [
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ]
    assert it.decode(bytes.fromhex("4883640effc1c0bf"))[0] == (":status", "307")
    third = it.decode(
        bytes.fromhex(
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f"
            "3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
        )
    )
    assert third[4:] == [
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ]


@given(st.binary(max_size=300))
def test_huffman_there_and_back(plain: bytes) -> None:
    assert huffman.decode(huffman.encode(plain)) == plain


@given(st.lists(FIELDS, max_size=8))
@settings(max_examples=100)
def test_our_encoder_is_understood(blocks: list[list[Field]]) -> None:
    hpack = pytest.importorskip("hpack")
    judge, ours, encoder = hpack.Decoder(), decoder(), Encoder()
    for number, fields in enumerate(blocks):
        if number == 5:
            encoder.allow(0)
        for _ in range(2):
            block = encoder.block(tuple(fields), [("x-varying", str(number))])
            expected = [*fields, ("x-varying", str(number))]
            assert ours.decode(block) == expected
            assert [(str(n), str(v)) for n, v in judge.decode(block, raw=False)] == expected


@given(st.lists(FIELDS, max_size=8), st.booleans(), st.sampled_from([0, 100, 4096]))
@settings(max_examples=100)
def test_another_encoder_is_understood(blocks: list[list[Field]], coded: bool, table: int) -> None:
    hpack = pytest.importorskip("hpack")
    other, ours = hpack.Encoder(), decoder()
    other.header_table_size = table
    for fields in blocks:
        assert ours.decode(other.encode(fields, huffman=coded)) == fields


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_any_bytes_decode_or_are_refused(block: bytes) -> None:
    it = decoder()
    for _ in range(2):
        try:
            fields = it.decode(block)
        except (BadBlock, TooLong):
            return
        assert len(fields) <= 200


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xbe",
        b"\xff\xff\xff\xff\xff\x7f",
        b"\xff" + b"\x80" * 10_000 + b"\x01",
        b"\x3f\xe2\x1f",
        b"\x82\x20",
        b"\x00\x03ab",
        b"\x00\x7f\xff\xff\xff\xff\x0f",
        b"\x00\x81\xff\x00",
        b"\x00\x84\xff\xff\xff\xff\x00",
        b"\x00\x81\x00\x00",
        b"\x40",
    ],
    ids=["zero", "no entry", "overflow", "long integer", "table too large", "late update", "short", "long string",
         "short huffman", "end symbol", "zero padding", "nothing"],
)  # fmt: skip
def test_bad_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(BadBlock):
        decoder().decode(block)


def test_a_bomb_costs_no_more_than_its_bytes() -> None:
    # One entry of 4,000 bytes in the table, then 16,000 references to it: 64 MB of headers in 20 KB.
    it = decoder(max_list=16 << 10)
    began = time.process_time()
    with pytest.raises(TooLong):
        it.decode(b"\x40\x01a" + integer(4000, 0x7F, 0) + b"b" * 4000 + b"\xbe" * 16_000)
    assert time.process_time() - began < 0.5
    # The table is as it should be.
    assert it.decode(b"\xbe") == [("a", "b" * 4000)]


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(TooLong):
        decoder(max_fields=10).decode(b"\x82" * 11)


def test_a_miss_is_cheap() -> None:
    random.seed(1)
    encoder, it = Encoder(), decoder()
    fields = ((":method", "POST"), (":path", "/a/b"), (":scheme", "http"), ("te", "trailers"), ("user-agent", "x"))
    it.decode(encoder.block(fields, []))
    blocks = [
        encoder.block(fields, [("grpc-timeout", f"{random.randrange(10**7)}u"), ("traceparent", "a" * 55)])
        for _ in range(2000)
    ]
    for block in blocks[:2]:
        it.decode(block)
    began = time.process_time()
    for block in blocks:
        it.decode(block)
    # 5 µs is the aim, and 2 to 4 is what it takes; a busy machine under a test may double that and more.
    assert (time.process_time() - began) / len(blocks) < 20e-6


PORTABLE = st.tuples(
    st.sampled_from(["grpc-status", ":status", "x-request-id", "accept-charset", "via", "a" * 130]),
    st.text(st.characters(max_codepoint=255), max_size=130),
)


@given(st.lists(PORTABLE | st.just((":status", "200")), max_size=6), st.binary(max_size=3))
def test_portable_blocks_read_the_quick_way(fields: list[Field], more: bytes) -> None:
    block = b"".join(literal(*field) for field in fields) + more
    if portable(block):
        assert portable_fields(block) == Decoder(max_list=1 << 20, max_fields=1 << 10).decode(block)


def test_a_secret_is_never_indexed() -> None:
    assert literal("authorization", "Bearer x", secret=True)[0] & 0xF0 == 0x10
    encoder = Encoder()
    block = encoder.block((("authorization", "Bearer x"),), [])
    assert block[0] & 0xF0 == 0x10
    assert encoder.block((("authorization", "Bearer x"),), []) == block
