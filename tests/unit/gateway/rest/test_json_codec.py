"""Tensors and parameters as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import Internal, InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES, from_numpy, pack_bytes
from services.gateway.rest import json_codec

PLAIN = [name for name in DATATYPES if name not in ("BYTES", "FP16", "BF16")]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    name = draw(st.sampled_from(PLAIN))
    elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else {}
    return name, draw(hnp.arrays(np.dtype(DATATYPES[name].numpy), SHAPES, elements=elements or None))


@given(arrays(), st.booleans())
def test_every_datatype_survives_json(case: tuple[str, np.ndarray[Any, Any]], flat: bool) -> None:
    name, array = case
    shape = list(array.shape)
    raw = json_codec.to_raw(name, shape, (array.ravel() if flat else array).tolist(), "data")
    assert raw == array.tobytes()
    written = orjson.loads(
        orjson.dumps(json_codec.to_data(name, shape, raw, "data"), option=orjson.OPT_SERIALIZE_NUMPY)
    )
    back = np.array(written, dtype=array.dtype).reshape(shape)
    assert back.tobytes() == array.tobytes()
    assert len(written) == array.size


@given(st.lists(st.text(), max_size=6))
def test_strings_survive(items: list[str]) -> None:
    raw = json_codec.to_raw("BYTES", [len(items)], items, "data")
    assert raw == pack_bytes([item.encode() for item in items])
    assert json_codec.to_data("BYTES", [len(items)], raw, "data") == items


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=3)), st.data())
def test_nesting_that_does_not_follow_the_shape_is_refused(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, array.ndim - 1))
    wrong = list(array.shape)
    wrong[axis] += 1
    with pytest.raises(InvalidArgument):
        json_codec.to_raw("INT32", wrong, array.tolist(), "inputs[0].data")


@pytest.mark.parametrize("name", [name for name in PLAIN if "INT" in name])
def test_integers_must_be_in_range(name: str) -> None:
    info = np.iinfo(DATATYPES[name].numpy)
    edges = [int(info.min), int(info.max)]
    assert json_codec.to_raw(name, [2], edges, "d") == np.array(edges, DATATYPES[name].numpy).tobytes()
    for outside in (info.min - 1, info.max + 1):
        with pytest.raises(InvalidArgument, match=r"range|64 bits"):
            json_codec.to_raw(name, [1], orjson.loads(f"[{outside}]"), "d")


@pytest.mark.parametrize(
    ("name", "shape", "data", "says"),
    [
        ("INT32", [1], [1.0], "element 0 must be an integer"),
        ("INT32", [2], [1, True], "element 1 must be an integer"),
        ("INT32", [2], [1, None], "element 1"),
        ("INT32", [2], [1, "2"], "element 1"),
        ("BOOL", [1], [0], "element 0 must be true or false"),
        ("FP32", [1], [True], "element 0 must be a number"),
        ("FP32", [2], [1, None], "element 1 must be a number"),
        ("FP32", [1], [1e39], "out of the range of FP32"),
        ("BYTES", [1], [1], "element 0 must be a string"),
        ("INT32", [3], [1, 2], "2 elements; shape"),
        ("INT32", [1], {"a": 1}, "must be an array"),
        ("INT32", [1], 5, "must be an array"),
        ("INT32", [2, 1], [[1], 2], "does not follow"),
        ("FP16", [1], [1.0], "binary_data_size"),
        ("BF16", [1], [1.0], "binary_data_size"),
        ("STRING", [1], ["a"], "not a datatype"),
    ],
)
def test_wrong_data_is_named(name: str, shape: list[int], data: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        json_codec.to_raw(name, shape, data, "d")
    assert caught.value.field == "d"


def test_a_scalar_is_one_element() -> None:
    assert json_codec.to_raw("INT8", [], [7], "d") == b"\x07"
    assert json_codec.to_raw("INT8", [2, 0], [[], []], "d") == b""
    assert json_codec.to_raw("INT8", [0, 2], [], "d") == b""


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("FP16", b"\0\0"),
        ("BF16", b"\0\0"),
        ("FP32", np.array([np.nan], "<f4").tobytes()),
        ("FP64", np.array([-np.inf], "<f8").tobytes()),
        ("BYTES", pack_bytes([b"\xff\xfe"])),
    ],
)
def test_what_json_cannot_say_is_refused_with_advice(name: str, raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match="binary_data"):
        json_codec.to_data(name, [1], raw, "outputs[0].data")


@pytest.mark.parametrize(
    ("name", "raw"), [("INT32", b"\0"), ("BYTES", b"\5\0\0\0ab"), ("NOPE", b""), ("INT8", b"\0\0")]
)
def test_a_broken_answer_is_our_fault(name: str, raw: bytes) -> None:
    with pytest.raises(Internal):
        json_codec.to_data(name, [1], raw, "outputs[0].data")


@pytest.mark.parametrize("name", [name for name, row in DATATYPES.items() if row.field])
def test_typed_contents_become_raw(name: str) -> None:
    values: list[Any] = [b"a", b""] if name == "BYTES" else [True, False] if name == "BOOL" else [1, 0]
    output = oip.ModelInferResponse.InferOutputTensor(name="y", datatype=name, shape=[2])
    getattr(output.contents, DATATYPES[name].field).extend(values)
    array = np.array(values, dtype=object if name == "BYTES" else DATATYPES[name].numpy)
    assert json_codec.raw_of(output) == from_numpy(array, name)[2]


def test_fp16_without_raw_contents_is_our_fault() -> None:
    with pytest.raises(Internal):
        json_codec.raw_of(oip.ModelInferResponse.InferOutputTensor(name="y", datatype="FP16", shape=[1]))


@given(
    st.dictionaries(
        st.text(),
        st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
        max_size=5,
    )
)
def test_parameters_survive(parameters: dict[str, Any]) -> None:
    back = json_codec.parameters_out(json_codec.parameters_in(parameters, "parameters"))
    assert back == parameters
    assert {name: type(value) for name, value in back.items()} == {name: type(v) for name, v in parameters.items()}


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 2**64, -(2**63) - 1])
def test_other_parameters_are_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"parameters\.x"):
        json_codec.parameters_in({"x": value}, "parameters")


def test_parameters_are_an_object_of_bounded_size() -> None:
    assert json_codec.parameters_in(None, "parameters") == {}
    with pytest.raises(InvalidArgument, match="object"):
        json_codec.parameters_in([], "parameters")
    with pytest.raises(InvalidArgument, match="more than"):
        json_codec.parameters_in({str(number): 1 for number in range(257)}, "parameters")
