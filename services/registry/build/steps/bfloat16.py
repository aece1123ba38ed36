"""bfloat16 for a runtime without bfloat16 kernels: the same graph in float32 that rounds as bfloat16 would.

ONNX Runtime's CPU provider casts between float32 and bfloat16 but hardly computes in it. Hardware that does
multiplies in bfloat16 and adds in float32, then rounds what it stores. So: compute in float32, round every stored
tensor to bfloat16.
"""

from __future__ import annotations

from typing import Any

_FLOAT, _BFLOAT16 = 1, 16  # TensorProto.DataType


def uses_bfloat16(data: bytes) -> bool:
    """Whether a model holds, takes, gives or casts to bfloat16."""
    import onnx

    graph = onnx.load_model_from_string(data).graph
    return (
        any(tensor.data_type == _BFLOAT16 for tensor in graph.initializer)
        or any(value.type.tensor_type.elem_type == _BFLOAT16 for value in [*graph.input, *graph.output])
        or any(_casts(node) for node in graph.node)
    )


def widened(data: bytes) -> bytes:
    """The model in float32 whose tensors are rounded to bfloat16; inputs and outputs in bfloat16 become float32."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model_from_string(data)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    narrow = {
        value.name
        for value in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
        if value.type.tensor_type.elem_type == _BFLOAT16
    }
    for tensor in model.graph.initializer:
        if tensor.data_type == _BFLOAT16:
            wide = numpy_helper.to_array(tensor).astype("<f4")
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == _BFLOAT16:
            value.type.tensor_type.elem_type = _FLOAT
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if _casts(node):
            _attribute(node, "to").i = _FLOAT
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}/exact"
                nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=_BFLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}/rounded"], [name], to=_FLOAT))
    made = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(made)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def _casts(node: Any) -> bool:
    return bool(node.op_type == "Cast" and _attribute(node, "to").i == _BFLOAT16)


def _attribute(node: Any, name: str) -> Any:
    return next(attribute for attribute in node.attribute if attribute.name == name)
