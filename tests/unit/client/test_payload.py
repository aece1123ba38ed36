"""What callers give becomes tensors, as penstock/client/payload.py promises."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from penstock.client import payload
from penstock.client.payload import InferRequest, Tensor
from penstock.client.result import InferResult, StreamReply, Trailers, nested
from penstock.errors import Internal, InvalidArgument, PenstockError
from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES


def spec(datatype: str, *shape: int) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name="x", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("value", "shape", "data"),
    [
        ("é", (1, 1), b"\x02\x00\x00\x00\xc3\xa9"),
        (b"\x00", (1, 1), b"\x01\x00\x00\x00\x00"),
        (["a", b"bc"], (2, 1), b"\x01\x00\x00\x00a\x02\x00\x00\x00bc"),
        (("a",), (1, 1), b"\x01\x00\x00\x00a"),
        (np.array(["a", "b"]), (2,), b"\x01\x00\x00\x00a\x01\x00\x00\x00b"),
    ],
)
def test_texts_and_bytes(value: Any, shape: tuple[int, ...], data: bytes) -> None:
    assert payload.to_tensor("x", value) == Tensor("BYTES", shape, data)
    assert not payload.needs_metadata({"x": value})


def test_arrays_keep_dtype_shape_and_order_whatever_their_memory_is() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = payload.to_tensor("x", array)
    assert (tensor.datatype, tensor.shape) == ("INT32", (3, 2))
    assert tensor.data == struct.pack("<6i", 0, 3, 1, 4, 2, 5)


@pytest.mark.parametrize(
    ("given", "wanted", "shape"),
    [
        ([1, 2, 3], spec("FP32", -1, 3), (1, 3)),
        ([[1, 2, 3]], spec("FP32", -1, 3), (1, 3)),
        ([1, 2, 3], spec("FP32", 3), (3,)),
        ([1, 2, 3], spec("FP32", 1, 3), (3,)),
        ([[[1]]], spec("FP32", -1, 3), (1, 1, 1)),
        ([], spec("FP32", -1), (0,)),
    ],
)
def test_lists_take_the_models_datatype_and_at_most_a_batch_dimension(
    given: list[Any], wanted: oip.ModelMetadataResponse.TensorMetadata, shape: tuple[int, ...]
) -> None:
    assert payload.needs_metadata({"x": given})
    tensor = payload.to_tensor("x", given, {"x": wanted})
    assert (tensor.datatype, tensor.shape) == ("FP32", shape)


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        ([[1], [2, 3]], spec("FP32", -1, 2), "ragged"),
        ([1.5], spec("INT32", -1), "does not fit INT32"),
        ([300], spec("UINT8", -1), "does not fit UINT8"),
        ([2], spec("BOOL", -1), "does not fit BOOL"),
        ([None], spec("FP64", -1), "does not fit FP64"),
        ([1e39], spec("FP32", -1), "does not fit FP32"),
        ([1], spec("BYTES", -1, 1), "neither text nor bytes"),
        ({"a": 1}, spec("FP32", -1), "not a tensor"),
        (3.5, spec("FP32", -1), "not a tensor"),
    ],
)
def test_what_does_not_fit_is_told_with_its_field(value: Any, wanted: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        payload.to_tensor("x", value, {"x": wanted})
    assert caught.value.field == "inputs.x"


def test_an_unknown_input_names_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="it has: x"):
        payload.to_tensor("y", [1], {"x": spec("FP32", -1)})


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BYTES", "BOOL")])
def test_lists_and_arrays_of_the_same_numbers_are_the_same_bytes(datatype: str) -> None:
    numbers = [[0, 1], [2, 100]]
    tensor = Tensor.of(datatype, numbers)
    assert Tensor.of(datatype, np.array(numbers)) == tensor
    if datatype != "BF16":
        assert tensor.data == np.array(numbers, DATATYPES[datatype].numpy).tobytes()
    assert nested(datatype, tensor.shape, tensor.data) == numbers


@pytest.mark.parametrize("value", [1.0, -2.5, 3.14159, 1e38, float("inf"), 1.00390625, 1.01171875])
def test_bf16_rounds_as_numpy_does(value: float) -> None:
    from penstock.tensors import from_numpy

    assert Tensor.of("BF16", [value]).data == from_numpy(np.array([value], np.float32), "BF16")[2]


def test_bf16_keeps_nan() -> None:
    value = nested("BF16", (1,), Tensor.of("BF16", [float("nan")]).data)[0]
    assert value != value


def test_a_tensor_must_be_filled() -> None:
    with pytest.raises(InvalidArgument, match="3 values do not fill the shape"):
        Tensor.of("FP32", [1, 2, 3], [2, 2])
    assert Tensor.of("FP32", [1, 2, 3, 4], [2, 2]).shape == (2, 2)
    assert Tensor.of("FP32", 5).shape == ()
    with pytest.raises(InvalidArgument, match="not a datatype"):
        Tensor.of("FLOAT", [1])


@pytest.mark.parametrize(("given", "text"), [(None, ""), ("", ""), (3, "3"), ("3", "3"), ("prod", "prod")])
def test_versions(given: Any, text: str) -> None:
    assert payload.version_text(given) == text


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "a b", "../x"])
def test_what_cannot_be_a_version(given: Any) -> None:
    with pytest.raises(InvalidArgument):
        payload.version_text(given)


def test_a_wrong_name_or_parameter_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgument, match="cannot name a model"):
        payload.build(InferRequest("../etc", {"x": "t"}))
    with pytest.raises(InvalidArgument, match="use a bool, int, float or str"):
        payload.build(InferRequest("m", {"x": "t"}, parameters={"p": [1]}))  # type: ignore[dict-item]


# results


def response(**outputs: Tensor) -> oip.ModelInferResponse:
    message = oip.ModelInferResponse(model_name="m", model_version="1")
    for name, tensor in outputs.items():
        message.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.data)
    return message


def test_a_result_is_a_mapping_of_arrays() -> None:
    result = InferResult(response(a=Tensor.of("INT64", [[1, 2]]), b=Tensor.of("BYTES", [b"x"])))
    assert dict(result).keys() == {"a", "b"}
    assert result["a"].tolist() == [[1, 2]]
    assert result["a"] is result["a"]
    assert result["b"].tolist() == [b"x"]
    assert len(result) == 2
    assert repr(result) == "<InferResult m@1 a: INT64 [1, 2], b: BYTES [1]>"
    with pytest.raises(KeyError):
        result["c"]


def test_an_answer_that_lacks_buffers_is_our_fault() -> None:
    message = response(a=Tensor.of("INT64", [1]), b=Tensor.of("INT64", [1]))
    del message.raw_output_contents[1]
    with pytest.raises(Internal):
        InferResult(message)


def test_nested_makes_lists_of_every_shape() -> None:
    assert nested("INT8", (), b"\x05") == 5
    assert nested("INT8", (2, 0, 3), b"") == [[], []]
    assert nested("INT8", (2, 2), b"\x01\x02\x03\x04") == [[1, 2], [3, 4]]
    assert nested("BOOL", (2,), b"\x01\x00") == [True, False]
    with pytest.raises(PenstockError):
        nested("INT16", (2,), b"\x01\x00")


def test_trailers_survive_nonsense() -> None:
    assert Trailers.read({"penstock-batch-size": "-3", "penstock-queue-us": "x"}) == Trailers()


def test_stream_replies() -> None:
    failed = oip.ModelStreamInferResponse(error_message="no")
    failed.infer_response.id = "7"
    reply = StreamReply.read(failed)
    assert (reply.id, reply.result, reply.final) == ("7", None, True)
    with pytest.raises(PenstockError, match="no"):
        reply.get()
    more = oip.ModelStreamInferResponse(infer_response=response(a=Tensor.of("INT8", [1])))
    more.infer_response.parameters["triton_final_response"].bool_param = False
    assert not StreamReply.read(more).final
    assert StreamReply.read(more).get()["a"].tolist() == [1]
