"""No ONNX file that names another one passes, wherever the schema lets it do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import InvalidArgument
from penstock.untrusted.onnx_scan import MAX_DEPTH, refuse_external

Plant = Callable[[onnx.ModelProto, TensorProto], None]


def external(location: str = "../../etc/passwd") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def internal() -> TensorProto:
    return numpy_helper.from_array(np.ones(4, np.float32), "w")


def sparse(tensor: TensorProto, *, indices: bool = False) -> onnx.SparseTensorProto:
    plain = numpy_helper.from_array(np.zeros(4, np.int64), "w")
    values, places = (plain, tensor) if indices else (tensor, plain)
    return onnx.SparseTensorProto(values=values, indices=places, dims=[8])


def graph_with(tensor: TensorProto) -> onnx.GraphProto:
    graph = onnx.GraphProto(name="inner")
    graph.initializer.append(tensor)
    return graph


def node_with(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], **attributes)


def deep(model: onnx.ModelProto, tensor: TensorProto) -> None:
    graph = graph_with(tensor)
    for _ in range(8):
        outer = onnx.GraphProto(name="outer")
        outer.node.append(node_with(then_branch=graph))
        graph = outer
    model.graph.node.append(node_with(then_branch=graph))


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def in_function_default(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.functions.add(name="f", domain="d").attribute_proto.append(helper.make_attribute("value", tensor))


def in_training(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().algorithm.CopyFrom(graph_with(tensor))


def tensors_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = model.graph.node.add(op_type="X")
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)


def sparse_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = model.graph.node.add(op_type="Constant")
    node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse(tensor))


def sparse_attributes(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = model.graph.node.add(op_type="Constant")
    node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSORS).sparse_tensors.append(sparse(tensor))


def graphs_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = model.graph.node.add(op_type="X")
    node.attribute.add(name="g", type=onnx.AttributeProto.GRAPHS).graphs.append(graph_with(tensor))


PLACES: dict[str, Plant] = {
    "initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "sparse values": lambda model, tensor: model.graph.sparse_initializer.append(sparse(tensor)),
    "sparse indices": lambda model, tensor: model.graph.sparse_initializer.append(sparse(tensor, indices=True)),
    "constant": lambda model, tensor: model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor)),
    "tensors attribute": tensors_attribute,
    "sparse attribute": sparse_attribute,
    "sparse attributes": sparse_attributes,
    "subgraph": lambda model, tensor: model.graph.node.append(node_with(then_branch=graph_with(tensor))),
    "graphs attribute": graphs_attribute,
    "nested subgraphs": deep,
    "function": in_function,
    "function default": in_function_default,
    "training": in_training,
}


def model_with(plant: Plant, tensor: TensorProto) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    model = helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [x]))
    plant(model, tensor)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("place", PLACES)
def test_an_external_tensor_is_found_and_an_internal_one_passes(place: str) -> None:
    refuse_external(model_with(PLACES[place], internal()))
    with pytest.raises(InvalidArgument, match="keeps tensors in other files"):
        refuse_external(model_with(PLACES[place], external()))


@pytest.mark.parametrize("place", PLACES)
def test_one_of_the_two_marks_is_enough(place: str) -> None:
    only_location, only_data = external(), external()
    del only_location.external_data[:]
    only_data.ClearField("data_location")
    for tensor in (only_location, only_data):
        with pytest.raises(InvalidArgument, match="keeps tensors in other files"):
            refuse_external(model_with(PLACES[place], tensor))


def test_a_location_that_only_a_32_bit_reader_takes_for_external() -> None:
    # data_location = 2**32 + 1: an int32 enum keeps the lower half, which is EXTERNAL.
    tensor = internal().SerializeToString() + bytes([14 << 3]) + b"\x81\x80\x80\x80\x10"
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    model = bytes([7 << 3 | 2, len(graph)]) + graph
    assert onnx.ModelProto.FromString(model).graph.initializer[0].data_location == TensorProto.EXTERNAL
    with pytest.raises(InvalidArgument, match="keeps tensors in other files"):
        refuse_external(model)


def test_what_cannot_be_followed_is_refused() -> None:
    good = model_with(PLACES["initializer"], internal())
    length_past_the_end = bytes([7 << 3 | 2, 100])
    group = bytes([7 << 3 | 3, 7 << 3 | 4])
    long_tag = b"\xba\x80\x80\x80\x10\x00"  # field 7 in the lower 32 bits, another one above
    for data in (good[:-1], good + length_past_the_end, good + group, good + long_tag, good + b"\xff" * 11, b"\0\0"):
        with pytest.raises(InvalidArgument, match="not an ONNX model"):
            refuse_external(data)


def test_nesting_is_bounded() -> None:
    graph = b""
    for _ in range(MAX_DEPTH):
        attribute = _field(6, graph)
        graph = _field(1, _field(5, attribute))
    with pytest.raises(InvalidArgument, match="nests graphs deeper"):
        refuse_external(_field(7, graph))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_other_ways_to_a_second_file() -> None:
    model = model_with(lambda model, _: model.graph.node.append(helper.make_node("EPContext", [], ["c"])), internal())
    with pytest.raises(InvalidArgument, match="EPContext"):
        refuse_external(model)
    with pytest.raises(InvalidArgument, match="own format"):
        refuse_external(b"\x20\0\0\0ORTM" + bytes(100))
