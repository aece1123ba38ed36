"""Taking a request apart without parsing it agrees with the parser, whatever the bytes."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from penstock.oip import inference_pb2 as oip
from services.worker.head import MAX_FIELDS, MAX_HEAD_BYTES, Parts, split

texts = st.text(max_size=6)
tensors = st.builds(
    oip.ModelInferRequest.InferInputTensor,
    name=texts,
    datatype=st.sampled_from(["FP32", "BYTES", ""]),
    shape=st.lists(st.integers(-1, 300), max_size=3),
)
requests = st.builds(
    oip.ModelInferRequest,
    model_name=texts,
    model_version=texts,
    id=texts,
    inputs=st.lists(tensors, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
)


def rebuilt(parts: Parts) -> oip.ModelInferRequest:
    """The message that the parts stand for, by the parser."""
    message = oip.ModelInferRequest.FromString(parts.head)
    assert not message.id and not message.raw_input_contents, "they are not in the head"
    message.id = parts.id
    message.raw_input_contents.extend(bytes(raw) for raw in parts.raws)
    return message


@given(requests)
def test_the_parts_are_the_whole(message: oip.ModelInferRequest) -> None:
    parts = split(message.SerializeToString())
    assert parts is not None and rebuilt(parts) == message


@given(requests, requests)
def test_fields_may_come_in_any_order_and_more_than_once(
    one: oip.ModelInferRequest, two: oip.ModelInferRequest
) -> None:
    """Two messages one after the other are their merge: a later id wins, contents add up."""
    payload = one.SerializeToString() + two.SerializeToString()
    parts = split(payload)
    assert parts is not None and rebuilt(parts) == oip.ModelInferRequest.FromString(payload)


@given(requests, st.data())
def test_mutated_bytes_are_never_understood_otherwise_than_by_the_parser(
    message: oip.ModelInferRequest, data: st.DataObject
) -> None:
    payload = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    parts = split(bytes(payload))
    if parts is None:
        return
    try:
        whole = oip.ModelInferRequest.FromString(bytes(payload))
    except DecodeError:
        # The head cannot be among the known ones then: it does not parse either.
        try:
            oip.ModelInferRequest.FromString(parts.head)
        except DecodeError:
            return
        raise AssertionError("the head parses, the whole does not") from None
    assert rebuilt(parts) == whole


@given(st.binary(max_size=60))
def test_no_bytes_raise(payload: bytes) -> None:
    split(payload)


def test_views_and_bounds() -> None:
    message = oip.ModelInferRequest(model_name="m", raw_input_contents=[b"abc"] * (MAX_FIELDS - 1))
    payload = message.SerializeToString()
    parts = split(payload)
    assert parts is not None
    assert all(raw.obj is payload for raw in parts.raws), "contents are views on the message"
    message.raw_input_contents.append(b"one too many")
    assert split(message.SerializeToString()) is None
    assert split(oip.ModelInferRequest(model_name="m" * (MAX_HEAD_BYTES + 1)).SerializeToString()) is None
    assert split(memoryview(payload)) == parts
