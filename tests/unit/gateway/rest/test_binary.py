"""Framing of the binary tensor extension."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.tensors import pack_bytes
from services.gateway.rest import binary


@given(st.binary(max_size=40), st.lists(st.binary(max_size=20), max_size=5))
def test_tensors_come_out_as_they_went_in(text: bytes, tensors: list[bytes]) -> None:
    header, tail = binary.split(bytearray(b"".join([text, *tensors])), len(text))
    assert header == text
    assert [tail.take(len(tensor), "size") for tensor in tensors] == tensors
    tail.finish()


@given(st.binary(max_size=40), st.integers(0, 100))
def test_a_header_beyond_the_body_is_refused(body: bytes, length: int) -> None:
    if length <= len(body):
        assert binary.split(body, length)[0] == body[:length]
    else:
        with pytest.raises(InvalidArgument, match="Inference-Header-Content-Length"):
            binary.split(body, length)


def test_without_the_header_everything_is_json() -> None:
    text, tail = binary.split(b"{}", None)
    assert text == b"{}"
    tail.finish()


@pytest.mark.parametrize("text", ["-1", "", "1.5", "0x10", "abc", " 1", "９", "9" * 19])
def test_the_header_is_a_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        binary.header_length(text)


def test_header_values() -> None:
    assert binary.header_length(None) is None
    assert binary.header_length("0") == 0
    assert binary.header_length("12") == 12


@pytest.mark.parametrize("size", [5, -1, True, None, "4", 1.0])
def test_a_tensor_takes_what_is_there(size: object) -> None:
    with pytest.raises(InvalidArgument):
        binary.Tail(memoryview(b"abcd")).take(size, "inputs[0].parameters.binary_data_size")


def test_nothing_may_be_left_over() -> None:
    tail = binary.Tail(memoryview(b"abcd"))
    tail.take(3, "size")
    with pytest.raises(InvalidArgument, match="1 bytes after"):
        tail.finish()


def config(kind: oip.DataType.ValueType, dims: list[int], batch: int = 0, inputs: int = 1) -> oip.ModelConfig:
    made = oip.ModelConfig(name="m", max_batch_size=batch)
    for index in range(inputs):
        made.input.add(name=f"x{index}", data_type=kind, dims=dims)
    return made


@pytest.mark.parametrize(
    ("described", "body", "datatype", "shape", "raw"),
    [
        (config(oip.TYPE_FP32, [2]), bytes(8), "FP32", [2], bytes(8)),
        (config(oip.TYPE_FP32, [2], batch=4), bytes(8), "FP32", [1, 2], bytes(8)),
        (config(oip.TYPE_INT16, [-1, 3]), bytes(12), "INT16", [2, 3], bytes(12)),
        (config(oip.TYPE_UINT8, [-1], batch=8), bytes(5), "UINT8", [1, 5], bytes(5)),
        (config(oip.TYPE_STRING, [1], batch=8), b"abc", "BYTES", [1, 1], pack_bytes([b"abc"])),
        (config(oip.TYPE_STRING, [-1]), b"", "BYTES", [1], pack_bytes([b""])),
        (config(oip.TYPE_BOOL, []), b"\1", "BOOL", [], b"\1"),
    ],
)
def test_a_raw_request(described: oip.ModelConfig, body: bytes, datatype: str, shape: list[int], raw: bytes) -> None:
    request = binary.raw_request(described, body)
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [("x0", datatype, shape)]
    assert list(request.raw_input_contents) == [raw]


@pytest.mark.parametrize(
    ("described", "body", "says"),
    [
        (config(oip.TYPE_FP32, [2], inputs=3), bytes(8), "one input"),
        (config(oip.TYPE_FP32, [2], inputs=0), bytes(8), "one input"),
        (config(oip.TYPE_FP32, [2]), bytes(9), "takes 8 bytes"),
        (config(oip.TYPE_FP32, [-1, -1]), bytes(8), "2 variable dimensions"),
        (config(oip.TYPE_FP32, [-1, 3]), bytes(8), "multiple of 12"),
        (config(oip.TYPE_FP32, [-1, 0]), bytes(8), "multiple of 0"),
        (config(oip.TYPE_STRING, [2]), b"abc", r"shape \[1\]"),
    ],
)
def test_a_raw_request_that_cannot_be(described: oip.ModelConfig, body: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        binary.raw_request(described, body)
