"""What TensorRT's ONNX parser does not take although ONNX allows it, written in the way that it takes (pure).

The meaning stays the same. What cannot be written otherwise is left to the parser, whose words name the operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.untrusted import onnx_model

# Operators of ONNX Runtime's quantiser that no compiler knows, and what to do instead.
INSTEAD = {
    "DynamicQuantizeLinear": "quantise with method static",
    "MatMulInteger": "quantise with method static",
    "ConvInteger": "quantise with method static",
    "DynamicQuantizeMatMul": "quantise with method static",
}


def repaired(model: Any) -> tuple[Any, list[str]]:
    """A copy that the parser takes, and what was changed, in words."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    changed = [f"Slice {node.name or node.output[0]}: its axes are written out" for node in _name_axes(made)]
    return made, changed


def _name_axes(model: Any) -> list[Any]:
    """A Slice without axes slices the first ones; the parser takes none as all of them."""
    from onnx import numpy_helper

    constants = onnx_model.constants(model)
    sizes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in onnx_model.inferred(model).graph.value_info
        if len(value.type.tensor_type.shape.dim) == 1
    }
    changed = []
    for node in model.graph.node:
        if node.op_type != "Slice" or node.domain not in ("", "ai.onnx") or (len(node.input) > 3 and node.input[3]):
            continue
        if len(node.input) < 3:  # before opset 10, attributes
            continue
        start = node.input[1]
        count = int(constants[start].dims[0]) if start in constants else int(sizes.get(start, 0))
        if count:
            name = f"{node.output[0]}/axes"
            model.graph.initializer.append(numpy_helper.from_array(np.arange(count, dtype=np.int64), name))
            rest = list(node.input[4:])
            del node.input[3:]
            node.input.extend([name, *rest])
            changed.append(node)
    return changed
