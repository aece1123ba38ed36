"""Whole inference bodies, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Internal, InvalidArgument, TooLarge
from penstock.oip import inference_pb2 as oip
from services.gateway.rest.infer_codec import ALL_BINARY, Wanted, Written, read_request, write_response

X: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}


def read(document: Any, tail: bytes = b"") -> tuple[oip.ModelInferRequest, Wanted]:
    text = orjson.dumps(document)
    return read_request(bytearray(text + tail), len(text) if tail else None)


def test_a_request_with_everything() -> None:
    binary_input = {"name": "b", "shape": [3], "datatype": "FP16", "parameters": {"binary_data_size": 6, "own": 1}}
    document = {
        "id": "seven",
        "parameters": {"priority": 2, "binary_data_output": True, "note": "n"},
        "inputs": [X, binary_input],
        "outputs": [{"name": "y", "parameters": {"binary_data": False, "classification": 3}}, {"name": "z"}],
        "unknown": [1],
    }
    request, wanted = read(document, b"abcdef")
    assert request.id == "seven"
    assert set(request.parameters) == {"priority", "note"}
    assert list(request.raw_input_contents) == [np.array([1, 2], "<i4").tobytes(), b"abcdef"]
    assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
        ("x", "INT32", [2]),
        ("b", "FP16", [3]),
    ]
    assert request.inputs[1].parameters["own"].int64_param == 1
    assert "binary_data_size" not in request.inputs[1].parameters
    assert request.outputs[0].parameters["classification"].int64_param == 3
    assert "binary_data" not in request.outputs[0].parameters
    assert (wanted.binary("y"), wanted.binary("z"), wanted.binary("other")) == (False, True, True)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "body"),
        ({}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [1]}, "inputs"),
        ({"inputs": [{**X, "name": 1}]}, "inputs[0].name"),
        ({"inputs": [{**X, "datatype": None}]}, "inputs[0].datatype"),
        ({"inputs": [{**X, "datatype": "FLOAT"}]}, "inputs[0].data"),
        ({"inputs": [X, {**X, "shape": [-1]}]}, "inputs[1].shape"),
        ({"inputs": [{**X, "shape": [True]}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "shape": ["2"]}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "shape": [2.0]}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "shape": [0, 2**63]}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "shape": [2**30, 2**30]}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "shape": [1] * 33}]}, "inputs[0].shape"),
        ({"inputs": [{**X, "data": [1, "2"]}]}, "inputs[0].data"),
        ({"inputs": [{"name": "x", "shape": [2], "datatype": "INT32"}]}, "inputs[0].data"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}, "inputs[0].data"),
        ({"inputs": [X], "id": 7}, "id"),
        ({"inputs": [X], "parameters": []}, "parameters"),
        ({"inputs": [X], "parameters": {"a": None}}, "parameters.a"),
        ({"inputs": [X], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ({"inputs": [X], "outputs": [{}]}, "outputs[0].name"),
        ({"inputs": [X], "outputs": {"name": "y"}}, "outputs"),
        (
            {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            "outputs[0].parameters.binary_data",
        ),
    ],
)
def test_a_wrong_request_names_its_field(document: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(document)
    assert caught.value.field == field


@pytest.mark.parametrize("size", [7, 9, -8, "8", True, 1.5])
def test_a_wrong_binary_size(size: Any) -> None:
    entry = {"name": "x", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": size}}
    with pytest.raises(InvalidArgument):
        read({"inputs": [entry]}, bytes(8))


def test_a_tensor_in_shared_memory_has_no_data_and_takes_no_buffer() -> None:
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    shared = {"name": "s", "shape": [2], "datatype": "INT32", "parameters": place}
    request, _ = read({"inputs": [X, shared, X], "outputs": [{"name": "y", "parameters": place}]})
    assert len(request.raw_input_contents) == 2
    for tensor in (request.inputs[1], request.outputs[0]):
        assert tensor.parameters["shared_memory_region"].string_param == "r"
        assert tensor.parameters["shared_memory_byte_size"].int64_param == 8


@pytest.mark.parametrize("extra", [{"data": [1, 2]}, {"parameters": {"binary_data_size": 8}}])
def test_shared_memory_and_data_do_not_come_together(extra: dict[str, Any]) -> None:
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8, **extra.pop("parameters", {})}
    with pytest.raises(InvalidArgument, match="one of them"):
        read({"inputs": [{"name": "s", "shape": [2], "datatype": "INT32", "parameters": place, **extra}]}, bytes(8))


@pytest.mark.parametrize("default", [False, True])
def test_an_output_in_shared_memory_comes_without_data(default: bool) -> None:
    response = oip.ModelInferResponse(model_name="m", raw_output_contents=[b"", bytes(4)])
    placed = response.outputs.add(name="y", datatype="INT32", shape=[2])
    placed.parameters["shared_memory_region"].string_param = "r"
    placed.parameters["shared_memory_byte_size"].int64_param = 8
    response.outputs.add(name="z", datatype="INT32", shape=[1])
    written = write_response(response, Wanted(default))
    document = orjson.loads(written.body[: written.json_size])
    assert document["outputs"][0] == {
        "name": "y",
        "datatype": "INT32",
        "shape": [2],
        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
    }
    assert ("data" in document["outputs"][1]) is not default


def test_counts_are_bounded() -> None:
    with pytest.raises(InvalidArgument, match="more than 1024"):
        read({"inputs": [X] * 1025})
    with pytest.raises(TooLarge):
        read_request(b"[" + b"[]," * (1 << 20) + b"[]]", None)


def response() -> oip.ModelInferResponse:
    made = oip.ModelInferResponse(model_name="m", model_version="3", id="seven")
    made.parameters["p"].bool_param = True
    made.outputs.add(name="y", datatype="INT32", shape=[2])
    made.outputs.add(name="t", datatype="BYTES", shape=[1]).parameters["q"].string_param = "v"
    made.raw_output_contents.extend([np.array([1, 2], "<i4").tobytes(), b"\2\0\0\0hi"])
    return made


def parts(written: Written) -> tuple[Any, bytes]:
    size = len(written.body) if written.json_size is None else written.json_size
    return orjson.loads(written.body[:size]), written.body[size:]


def test_an_answer_as_json() -> None:
    written = write_response(response(), Wanted())
    assert written.json_size is None
    assert orjson.loads(written.body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "seven",
        "parameters": {"p": True},
        "outputs": [
            {"name": "y", "datatype": "INT32", "shape": [2], "data": [1, 2]},
            {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["hi"], "parameters": {"q": "v"}},
        ],
    }


def test_an_answer_as_binary() -> None:
    document, tail = parts(write_response(response(), ALL_BINARY))
    assert [one["parameters"]["binary_data_size"] for one in document["outputs"]] == [8, 6]
    assert all("data" not in one for one in document["outputs"])
    assert tail == b"".join(response().raw_output_contents)


def test_an_answer_as_both() -> None:
    document, tail = parts(write_response(response(), Wanted(outputs={"t": True})))
    assert document["outputs"][0]["data"] == [1, 2]
    assert document["outputs"][1]["parameters"] == {"q": "v", "binary_data_size": 6}
    assert tail == b"\2\0\0\0hi"


def test_an_answer_with_typed_contents() -> None:
    made = oip.ModelInferResponse(model_name="m")
    made.outputs.add(name="y", datatype="UINT8", shape=[2]).contents.uint_contents.extend([1, 255])
    assert parts(write_response(made, Wanted()))[0]["outputs"][0]["data"] == [1, 255]
    assert parts(write_response(made, ALL_BINARY))[1] == b"\x01\xff"


def test_an_answer_that_lacks_a_buffer_is_our_fault() -> None:
    made = response()
    del made.raw_output_contents[1]
    with pytest.raises(Internal):
        write_response(made, Wanted())


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)), max_size=5))
def test_any_mix_of_json_and_binary_round_trips(tensors: list[tuple[bool, list[int]]]) -> None:
    """What write_response writes, read_request reads: the two share their framing."""
    made = oip.ModelInferResponse(model_name="m")
    for index, (_, values) in enumerate(tensors):
        made.outputs.add(name=str(index), datatype="INT32", shape=[len(values)])
        made.raw_output_contents.append(np.array(values, "<i4").tobytes())
    wanted = Wanted(outputs={str(index): as_binary for index, (as_binary, _) in enumerate(tensors)})
    written = write_response(made, wanted)
    document, tail = parts(written)
    request, _ = read({"inputs": document["outputs"]}, tail)
    assert list(request.raw_input_contents) == list(made.raw_output_contents)
