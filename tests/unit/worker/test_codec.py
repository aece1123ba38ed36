"""Requests as the protocol lets them be written: every datatype, typed and raw, and everything that is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from penstock.errors import InvalidArgument, PenstockError, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES, pack_bytes
from penstock.v1 import manifest_pb2 as pb
from services.worker.codec import Schema, Tensor, parse

Input = oip.ModelInferRequest.InferInputTensor
Contents = oip.InferTensorContents

# Two elements of each datatype: typed values (None where only raw goes) and raw bytes.
VALUES: dict[str, tuple[list[Any] | None, bytes]] = {
    "BOOL": ([True, False], b"\x01\x00"),
    "UINT8": ([0, 255], b"\x00\xff"),
    "UINT16": ([1, 65535], struct.pack("<2H", 1, 65535)),
    "UINT32": ([1, 2**32 - 1], struct.pack("<2I", 1, 2**32 - 1)),
    "UINT64": ([1, 2**64 - 1], struct.pack("<2Q", 1, 2**64 - 1)),
    "INT8": ([-128, 127], struct.pack("<2b", -128, 127)),
    "INT16": ([-32768, 7], struct.pack("<2h", -32768, 7)),
    "INT32": ([-(2**31), 7], struct.pack("<2i", -(2**31), 7)),
    "INT64": ([-(2**63), 7], struct.pack("<2q", -(2**63), 7)),
    "FP16": (None, struct.pack("<2e", 1.5, -2.0)),
    "BF16": (None, b"\x80\x3f\x00\xc0"),
    "FP32": ([1.5, -2.0], struct.pack("<2f", 1.5, -2.0)),
    "FP64": ([1.5, -2.0], struct.pack("<2d", 1.5, -2.0)),
    "BYTES": ([b"", b"abc"], pack_bytes([b"", b"abc"])),
}
TYPED = [name for name, (values, _) in VALUES.items() if values is not None]


def schema(*specs: tuple[str, str, list[int]], max_batch_size: int = 0, outputs: tuple[str, ...] = ("y",)) -> Schema:
    manifest = pb.Manifest(
        name="m",
        batching=pb.Batching(max_batch_size=max_batch_size),
        inputs=[pb.TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in specs],
        outputs=[pb.TensorSpec(name=name, datatype="FP32", shape=[1]) for name in outputs],
    )
    return Schema("m", 3, manifest)


def typed(name: str, datatype: str, shape: list[int], values: list[Any] | None = None) -> Input:
    contents = Contents()
    getattr(contents, DATATYPES[datatype].field).extend(VALUES[datatype][0] if values is None else values)
    return Input(name=name, datatype=datatype, shape=shape, contents=contents)


def message(*inputs: Input, raw: list[bytes] | None = None, **fields: Any) -> oip.ModelInferRequest:
    return oip.ModelInferRequest(model_name="m", id="7", inputs=inputs, raw_input_contents=raw or [], **fields)


def refused(under_test: Schema, request: oip.ModelInferRequest, kind: type[PenstockError] = InvalidArgument) -> str:
    with pytest.raises(kind) as caught:
        under_test.decode(request)
    assert type(caught.value) is kind
    return caught.value.message


def test_the_table_covers_every_datatype() -> None:
    assert VALUES.keys() == DATATYPES.keys()


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_contents_pass_as_they_are(datatype: str) -> None:
    raw = VALUES[datatype][1]
    request = schema(("x", datatype, [2])).decode(message(Input(name="x", datatype=datatype, shape=[2]), raw=[raw]))
    assert request.inputs == (Tensor("x", datatype, (2,), raw),)
    assert (request.id, request.rows, request.outputs) == ("7", 1, ("y",))


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_raw(datatype: str) -> None:
    request = schema(("x", datatype, [2])).decode(message(typed("x", datatype, [2])))
    assert request.inputs[0].data == VALUES[datatype][1]


@pytest.mark.parametrize("datatype", [name for name in VALUES if name not in TYPED])
def test_half_floats_go_raw_only(datatype: str) -> None:
    wrong = Input(name="x", datatype=datatype, shape=[2], contents=Contents(fp32_contents=[1, 2]))
    assert "raw_input_contents" in refused(schema(("x", datatype, [2])), message(wrong))


@pytest.mark.parametrize("datatype", VALUES)
def test_raw_contents_of_another_size_are_refused(datatype: str) -> None:
    under_test = schema(("x", datatype, [2]))
    for raw in (VALUES[datatype][1][:-1], VALUES[datatype][1] + b"\x00", b""):
        refused(under_test, message(Input(name="x", datatype=datatype, shape=[2]), raw=[raw]))


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_of_another_count_are_refused(datatype: str) -> None:
    values = VALUES[datatype][0]
    assert values is not None
    assert "3 elements" in refused(
        schema(("x", datatype, [2])), message(typed("x", datatype, [2], [*values, values[0]]))
    )


FIELDS = sorted({row.field for row in DATATYPES.values() if row.field})


@pytest.mark.parametrize(
    ("datatype", "field"), [(each, field) for each in TYPED for field in FIELDS if field != DATATYPES[each].field]
)
def test_a_typed_list_that_does_not_fit_the_datatype_is_refused(datatype: str, field: str) -> None:
    contents = Contents()
    getattr(contents, field).extend([b"a", b"b"] if field == "bytes_contents" else [1, 0])
    wrong = Input(name="x", datatype=datatype, shape=[2], contents=contents)
    assert DATATYPES[datatype].field in refused(schema(("x", datatype, [2])), message(wrong))


def test_two_typed_lists_are_refused() -> None:
    wrong = Input(name="x", datatype="INT32", shape=[2], contents=Contents(int_contents=[1, 2], fp32_contents=[1, 2]))
    assert "int_contents alone" in refused(schema(("x", "INT32", [2])), message(wrong))


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT8", -129), ("INT16", 40000), ("UINT8", 256), ("UINT16", 65536)]
)
def test_a_typed_number_that_does_not_fit_is_refused(datatype: str, value: int) -> None:
    assert f"does not fit {datatype}" in refused(
        schema(("x", datatype, [1])), message(typed("x", datatype, [1], [value]))
    )


def test_typed_and_raw_together_are_refused() -> None:
    request = message(typed("x", "INT32", [2]), raw=[VALUES["INT32"][1]])
    assert "must not come together" in refused(schema(("x", "INT32", [2])), request)


def test_raw_for_one_input_and_typed_for_another_are_refused() -> None:
    request = message(Input(name="a", datatype="INT32", shape=[2]), typed("b", "INT32", [2]), raw=[VALUES["INT32"][1]])
    assert "inputs[1]" in refused(schema(("a", "INT32", [2]), ("b", "INT32", [2])), request)


def test_missing_data_has_tritons_words() -> None:
    under_test = schema(("a", "INT32", [2]), ("b", "INT32", [2]))
    a, b = (Input(name=name, datatype="INT32", shape=[2]) for name in "ab")
    assert "unable to find data for input tensor 'b'" in refused(under_test, message(a, b, raw=[bytes(8)]))
    assert "unable to find data for input tensor 'a'" in refused(under_test, message(a, b))


def test_more_raw_buffers_than_inputs_are_refused() -> None:
    request = message(Input(name="x", datatype="INT32", shape=[2]), raw=[bytes(8), bytes(8)])
    assert "2 buffers for 1 inputs" in refused(schema(("x", "INT32", [2])), request)


def test_raw_buffers_follow_the_order_of_the_request_and_inputs_come_out_in_the_models() -> None:
    request = message(
        Input(name="b", datatype="UINT8", shape=[1]), Input(name="a", datatype="UINT8", shape=[1]), raw=[b"B", b"A"]
    )
    decoded = schema(("a", "UINT8", [1]), ("b", "UINT8", [1])).decode(request)
    assert [(tensor.name, tensor.data) for tensor in decoded.inputs] == [("a", b"A"), ("b", b"B")]


def test_an_empty_tensor_needs_no_data() -> None:
    request = message(Input(name="x", datatype="FP32", shape=[0]))
    assert schema(("x", "FP32", [-1])).decode(request).inputs[0].data == b""


def test_a_bool_is_zero_or_one() -> None:
    assert "0 or 1" in refused(
        schema(("x", "BOOL", [2])), message(Input(name="x", datatype="BOOL", shape=[2]), raw=[b"\x01\x02"])
    )


def test_a_wrong_name_is_told_what_the_model_takes() -> None:
    text = refused(schema(("image", "BYTES", [1]), max_batch_size=8), message(typed("x", "BYTES", [1, 1], [b""])))
    assert text == "model 'm' has no input 'x'; it takes 'image': BYTES [-1, 1]"


def test_a_missing_and_a_double_input_are_refused() -> None:
    under_test = schema(("a", "UINT8", [2]), ("b", "UINT8", [2]))
    assert "needs input 'b' (UINT8 [2])" in refused(under_test, message(typed("a", "UINT8", [2])))
    assert "comes twice" in refused(under_test, message(typed("a", "UINT8", [2]), typed("a", "UINT8", [2])))


def test_a_wrong_datatype_is_told_the_right_one() -> None:
    assert "takes FP32, got FP64" in refused(schema(("x", "FP32", [2])), message(typed("x", "FP64", [2])))
    unknown = Input(name="x", datatype="FP128", shape=[2])
    assert "is not a datatype" in refused(schema(("x", "FP32", [2])), message(unknown))


@pytest.mark.parametrize(
    ("wanted", "batch", "given"),
    [
        ([2], 0, [3]),
        ([2], 0, [2, 1]),
        ([2], 0, []),
        ([2], 8, [2]),
        ([-1, 3], 0, [5, 4]),
        ([-1], 0, [-1]),
        ([-1, -1, -1], 0, [1 << 31, 1 << 31, 1 << 31]),
    ],
    ids=["size", "rank", "scalar", "no batch", "one free", "negative", "huge"],
)
def test_a_wrong_shape_is_refused(wanted: list[int], batch: int, given: list[int]) -> None:
    wrong = Input(name="x", datatype="UINT8", shape=given)
    refused(schema(("x", "UINT8", wanted), max_batch_size=batch), message(wrong, raw=[b"\x00\x00"]))


def test_a_shape_error_shows_both_shapes() -> None:
    text = refused(schema(("x", "UINT8", [784]), max_batch_size=8), message(typed("x", "UINT8", [1, 2])))
    assert "takes shape [-1, 784] (batch first), got [1, 2]" in text


def test_a_huge_shape_costs_nothing_but_the_answer() -> None:
    """The product is taken in Python's integers and compared with what came, never allocated."""
    wrong = Input(name="x", datatype="FP64", shape=[1 << 39])
    assert "takes 4398046511104" in refused(schema(("x", "FP64", [-1])), message(wrong, raw=[bytes(8)]))
    bytes_tensor = Input(name="x", datatype="BYTES", shape=[1 << 39])
    refused(schema(("x", "BYTES", [-1])), message(bytes_tensor, raw=[pack_bytes([b"a"])]))


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00ab", b"\xff\xff\xff\xffab", b"\x01\x00"])
def test_bytes_elements_that_run_over_the_end_are_refused(raw: bytes) -> None:
    refused(schema(("x", "BYTES", [1])), message(Input(name="x", datatype="BYTES", shape=[1]), raw=[raw]))


def test_the_batch_dimension_is_the_same_for_all_inputs_and_at_least_one() -> None:
    under_test = schema(("a", "UINT8", [1]), ("b", "UINT8", [1]), max_batch_size=8)
    request = message(typed("a", "UINT8", [2, 1]), typed("b", "UINT8", [1, 1], [1]))
    assert "same batch dimension, got 'a': 2, 'b': 1" in refused(under_test, request)
    empty = message(*(Input(name=name, datatype="UINT8", shape=[0, 1]) for name in "ab"))
    assert "at least 1" in refused(under_test, empty)


def test_the_kind_is_the_shape_of_an_item() -> None:
    under_test = schema(("x", "UINT8", [-1]), max_batch_size=8)

    def kind(shape: list[int]) -> object:
        return under_test.decode(message(typed("x", "UINT8", shape, [0] * (shape[0] * shape[1])))).kind

    assert kind([1, 3]) == kind([4, 3]) != kind([1, 4])
    text = schema(("t", "BYTES", [1]), max_batch_size=8)
    kinds = {text.decode(message(typed("t", "BYTES", [1, 1], [value]))).kind for value in (b"a", b"long" * 100)}
    assert len(kinds) == 1


def test_rows_are_the_batch_dimension() -> None:
    assert schema(("x", "UINT8", [1]), max_batch_size=8).decode(message(typed("x", "UINT8", [2, 1]))).rows == 2


def test_outputs_are_those_that_were_asked_for() -> None:
    under_test = schema(("x", "UINT8", [2]), outputs=("y", "z"))
    wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("z", "z")]
    assert under_test.decode(message(typed("x", "UINT8", [2]))).outputs == ("y", "z")
    assert under_test.decode(message(typed("x", "UINT8", [2]), outputs=wanted)).outputs == ("z",)
    unknown = [oip.ModelInferRequest.InferRequestedOutputTensor(name="w")]
    text = refused(under_test, message(typed("x", "UINT8", [2]), outputs=unknown))
    assert text == "model 'm' has no output 'w'; it gives y, z"


def parameter(value: int | str | bool) -> oip.InferParameter:
    if isinstance(value, bool):
        return oip.InferParameter(bool_param=value)
    return oip.InferParameter(string_param=value) if isinstance(value, str) else oip.InferParameter(int64_param=value)


def test_priority_and_timeout_are_read() -> None:
    request = message(
        typed("x", "UINT8", [2]),
        parameters={"priority": oip.InferParameter(uint64_param=2), "timeout": parameter(1500), "mine": parameter("x")},
    )
    decoded = schema(("x", "UINT8", [2])).decode(request)
    assert (decoded.priority, decoded.timeout) == (2, 0.0015)


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("value", [-1, "1", True])
def test_a_wrong_priority_or_timeout_is_refused(name: str, value: int | str | bool) -> None:
    request = message(typed("x", "UINT8", [2]), parameters={name: parameter(value)})
    assert f"parameters.{name}" in refused(schema(("x", "UINT8", [2])), request)


def with_output_parameter(name: str) -> oip.ModelInferRequest:
    wanted = oip.ModelInferRequest.InferRequestedOutputTensor(name="y", parameters={name: parameter(3)})
    return message(typed("x", "UINT8", [2]), outputs=[wanted])


def with_input_parameter() -> oip.ModelInferRequest:
    region = {"shared_memory_region": parameter("r")}
    return message(Input(name="x", datatype="UINT8", shape=[2], parameters=region))


@pytest.mark.parametrize(
    "build",
    [
        lambda: with_output_parameter("classification"),
        lambda: with_output_parameter("shared_memory_region"),
        with_input_parameter,
        lambda: message(typed("x", "UINT8", [2]), parameters={"sequence_id": parameter(5)}),
    ],
    ids=["classification", "shared output", "shared input", "sequence"],
)
def test_extensions_that_are_not_offered_are_refused_and_not_ignored(
    build: Callable[[], oip.ModelInferRequest],
) -> None:
    refused(schema(("x", "UINT8", [2])), build(), Unsupported)


def test_tritons_own_names_are_reserved() -> None:
    under_test = schema(("x", "UINT8", [2]))
    reserved = message(typed("x", "UINT8", [2]), parameters={"triton_mine": parameter(1)})
    assert "reserved" in refused(under_test, reserved)
    known = {"triton_enable_empty_final_response": parameter(True), "sequence_id": parameter(0)}
    under_test.decode(message(typed("x", "UINT8", [2]), parameters=known))


def test_the_answer_is_raw_and_echoes_the_id() -> None:
    outputs = [Tensor("y", "FP32", (1, 2), b"12345678"), Tensor("z", "BYTES", (1,), memoryview(pack_bytes([b"a"])))]
    response = oip.ModelInferResponse.FromString(schema(("x", "UINT8", [2])).encode("7", outputs))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "7")
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("y", "FP32", [1, 2]),
        ("z", "BYTES", [1]),
    ]
    assert not any(each.HasField("contents") for each in response.outputs)
    assert list(response.raw_output_contents) == [b"12345678", pack_bytes([b"a"])]


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a ModelInferRequest"):
        parse(b"\xff\xff\xff")
