"""The scan of the routing header says what the generated parser says, or refuses cleanly."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from services.gateway import header

texts = st.text(max_size=200)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """One field of any number and wire type, well-formed."""
    number = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 1000, (1 << 29) - 1]))
    wire_type = draw(st.sampled_from([0, 1, 2, 2, 2, 5]))
    tag = varint(number << 3 | wire_type)
    if wire_type == 0:
        return tag + varint(draw(st.integers(0, 2**64 - 1)))
    if wire_type == 1:
        return tag + draw(st.binary(min_size=8, max_size=8))
    if wire_type == 5:
        return tag + draw(st.binary(min_size=4, max_size=4))
    body = draw(texts).encode() if number <= 3 else draw(st.sampled_from([b"", b"\x0a\x01x"]))
    return tag + varint(len(body)) + body


def parse(payload: bytes) -> oip.ModelInferRequest | None:
    try:
        return oip.ModelInferRequest.FromString(payload)
    except DecodeError:
        return None


@given(texts, texts, texts, st.binary(max_size=5000))
def test_a_serialised_request(name: str, version: str, id_: str, raw: bytes) -> None:
    request = oip.ModelInferRequest(model_name=name, model_version=version, id=id_, raw_input_contents=[raw, raw])
    request.parameters["priority"].int64_param = 2
    request.inputs.add(name="x", datatype="UINT8", shape=[len(raw)])
    assert header.of_infer(request.SerializeToString()) == (name, version, id_)


@given(st.lists(pieces(), max_size=12))
def test_fields_in_any_order_repeated_and_unknown(fields: list[bytes]) -> None:
    """Whatever a parser accepts is read as the parser reads it: the last one wins."""
    payload = b"".join(fields)
    request = parse(payload)
    scanned = header.of_infer(payload)
    if request is not None:
        assert scanned == (request.model_name, request.model_version, request.id)


@settings(max_examples=500)
@given(st.binary(max_size=80))
def test_any_bytes(payload: bytes) -> None:
    request = parse(payload)
    try:
        scanned = header.of_infer(payload)
    except InvalidArgument:
        return
    if request is not None:
        assert scanned == (request.model_name, request.model_version, request.id)


@settings(max_examples=300)
@given(st.data())
def test_a_request_cut_or_damaged(data: st.DataObject) -> None:
    whole = oip.ModelInferRequest(model_name="digits", model_version="7", id="a", raw_input_contents=[b"abcdefgh"])
    damaged = bytearray(whole.SerializeToString())
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    payload = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    request = parse(payload)
    try:
        scanned = header.of_infer(payload)
    except InvalidArgument:
        return
    if request is not None:
        assert scanned == (request.model_name, request.model_version, request.id)


def test_a_name_after_the_tensors_wins() -> None:
    """Otherwise the gateway and the worker could be made to disagree about the model."""
    payload = field(1, b"allowed") + field(7, b"tensor") + field(1, b"other")
    assert header.of_infer(payload).model == "other"
    request = parse(payload)
    assert request is not None and request.model_name == "other"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # length beyond the end
        b"\x0a\xff\xff\xff\xff\x0fabc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # length of 2**64 - 1
        b"\x80\x80\x80\x80\x80\x80\x01",  # tag too long
        b"\x02\x01a",  # field number 0
        b"\x0b\x0c",  # group
        b"\x0e",  # wire type 6
        b"\x08",  # varint missing
        b"\x09\x00\x00",  # 64 bits cut
        b"\x0d\x00",  # 32 bits cut
        b"\x08\x80",
        field(1, b"\xff\xfe"),  # not UTF-8
        field(2, b"\xc0\x80"),
        field(3, b"\xed\xa0\x80"),  # a surrogate
    ],
)
def test_malformed(payload: bytes) -> None:
    with pytest.raises(InvalidArgument):
        header.of_infer(payload)


def test_a_flood_of_tiny_fields_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="top-level fields"):
        header.of_infer(b"\x78\x00" * (header.MAX_FIELDS + 1))
    assert header.of_infer(b"\x78\x00" * header.MAX_FIELDS).model == ""


@given(texts, texts)
def test_small_requests(name: str, version: str) -> None:
    request = oip.ModelMetadataRequest(name=name, version=version).SerializeToString()
    assert header.of_model_request(request) == (name, version, "")
    assert header.of_model_request(request + field(3, b"\xff")) == (name, version, "")  # unknown there, so not text
