"""Heads that are read only where they differ say what a full reading says, and know when they may not be reused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.http2 import Limits, Method
from penstock.wire.http2.head import Head, Malformed, read_head
from penstock.wire.http2.heads import Heads
from penstock.wire.http2.hpack import Decoder, Encoder, Field, _plain, literal, portable
from tests.harness.http2 import BLOCK, FIELDS, PATH, echo

METHODS = {PATH: Method("Echo", echo)}
VERSION: Field = ("penstock-version", "3")

# Values of a kind that the quick reading has to tell from those that only look like it.
varying = st.lists(
    st.one_of(
        st.tuples(st.just("grpc-timeout"), st.sampled_from(["5S", "1200m", "99999999u", "5", "x", "", "123456789S"])),
        st.tuples(st.just("x-request-id"), st.sampled_from(["a-1", "", "spa ce", "x" * 126, "x" * 127, "x" * 129])),
        st.tuples(st.just("traceparent"), st.sampled_from(["00-ab-cd-01", " padded ", "ü", "\x01"])),
        st.tuples(st.just("x-other"), st.sampled_from(["1", "two"])),
    ),
    max_size=4,
)


def heads() -> Heads:
    return Heads(METHODS, Limits())


def said(head: Head) -> tuple[object, ...]:
    """What of a head is used of a unary call: its deadline and id apart, the headers that others read."""
    headers = {name: value for name, value in head.headers.items() if name not in ("grpc-timeout", "x-request-id")}
    refusal = (type(head.refusal), str(head.refusal)) if head.refusal is not None else None
    return head.method, head.path, head.timeout, headers, head.request_id, head.http, refusal


def outcome(read: object, block: bytes) -> object:
    try:
        return said(read(block))  # type: ignore[operator]
    except Malformed as malformed:
        return str(malformed)


@given(st.lists(varying, min_size=1, max_size=6), st.sampled_from(["literals", "indexed", "growing"]))
def test_it_says_what_a_full_reading_says(calls: list[list[Field]], table: str) -> None:
    """indexed: constant fields are in the dynamic table, as our own client's are; growing: and the varying ones are put
    there too, as grpcio's deadlines are."""
    it, plain, encoder = heads(), Decoder(max_list=1 << 16, max_fields=128), Encoder()
    if table == "literals":
        encoder.allow(0)
        it.read(encoder.block((*FIELDS, VERSION), []))
        plain.decode(b"\x20")
    for fields in calls:
        latin = [(name, value) for name, value in fields if name]
        block = encoder.block((*FIELDS, VERSION), [] if table == "growing" else latin)
        if table == "growing":
            block += b"".join(b"\x40" + _plain(name) + _plain(value) for name, value in latin)
            encoder = Encoder()
        expected = outcome(lambda block: read_head(plain.decode(block), METHODS), block)
        assert outcome(it.read, block) == expected
        if table != "growing":
            assert outcome(it.read, block) == expected, "and once more from what is kept"
        if table == "indexed":
            plain.decode(block)


@pytest.mark.interpreted
def test_only_what_varies_is_read_again() -> None:
    it, encoder = heads(), Encoder()
    blocks = [
        encoder.block((*FIELDS, VERSION), [("grpc-timeout", f"{n}m"), ("x-request-id", f"r{n}")]) for n in range(5)
    ]
    it.read(blocks[0])  # fills the table
    it.read(blocks[1])  # is learnt from
    decoded = []
    decode = it.decoder.decode
    it.decoder.decode = lambda *arguments: decoded.append(1) or decode(*arguments)  # type: ignore[method-assign,func-returns-value]
    read = [it.read(block) for block in blocks[2:]]
    assert [head.request_id for head in read] == ["r2", "r3", "r4"]
    assert [head.timeout for head in read] == [0.002, 0.003, 0.004]
    assert all(head.headers["penstock-version"] == "3" for head in read)
    assert not decoded


def test_a_changed_table_changes_what_blocks_mean() -> None:
    it, encoder = heads(), Encoder()
    constant = (*FIELDS, VERSION)
    for n in range(3):
        block = encoder.block(constant, [("x-request-id", f"r{n}")])
        assert it.read(block).headers["penstock-version"] == "3"
    # Every index moves by one: the block's constant part points to other fields now.
    it.decoder.decode(b"\x40\x07x-thing\x01y")
    before, after = said(it_before(constant)), outcome(it.read, block)
    assert after == outcome(lambda block: read_head(it.decoder.decode(block), METHODS), block) != before


def it_before(constant: tuple[Field, ...]) -> Head:
    """The head that the last block of the test above meant before the table changed."""
    return heads().read(Encoder().block(constant, [("x-request-id", "r2")]))


def test_a_call_that_is_passed_on_keeps_all_its_headers() -> None:
    async def serve(*_: object) -> None:
        return None

    it = Heads({PATH: Method("Echo", stream=serve)}, Limits())
    for n in range(3):
        block = BLOCK + literal("grpc-timeout", f"{n + 1}S") + literal("x-request-id", f"r{n}")
        headers = it.read(block).headers
        assert (headers["grpc-timeout"], headers["x-request-id"]) == (f"{n + 1}S", f"r{n}")


@given(st.lists(st.tuples(st.text("abc-", min_size=1, max_size=8), st.text("xyz 1", max_size=140)), max_size=5))
def test_what_is_portable_needs_no_table(fields: list[Field]) -> None:
    block = b"".join(literal(name, value) for name, value in [("grpc-status", "0"), *fields])
    short = all(len(name) < 127 and len(value) < 127 for name, value in fields)
    assert portable(block) is short
    if short:
        it = Decoder(max_list=1 << 16, max_fields=128)
        before = it.version
        assert it.decode(block) == [("grpc-status", "0"), *fields] and it.version == before


@given(st.binary(max_size=40))
def test_whatever_is_portable_leaves_the_table_alone(block: bytes) -> None:
    if portable(block):
        empty, full = (Decoder(max_list=1 << 16, max_fields=128) for _ in range(2))
        full.decode(b"\x40\x01n\x01v")
        version = full.version
        assert empty.decode(block) == full.decode(block) and full.version == version
