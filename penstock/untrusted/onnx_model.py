"""ONNX files of others, read without believing them.

What is read was first scanned for tensors outside the file (onnx_scan.py) and then checked by onnx itself. onnx is
native code: whoever reads a file so does it in a process that may end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.errors import InvalidArgument, InvalidManifest

from .onnx_scan import refuse_external

MAX_FILE = 2**31 - 1  # a protobuf message cannot be larger

Model = Any
"""onnx.ModelProto; onnx is imported where it is used."""


def read_bytes(path: Path, role: str = "model") -> bytes:
    """The scanned bytes of an ONNX file; raises InvalidManifest with public words."""
    if path.stat().st_size > MAX_FILE:
        raise InvalidManifest(f"{role}: an ONNX file cannot be larger than 2 GiB", field=role)
    data = path.read_bytes()
    try:
        refuse_external(data)
    except InvalidArgument as error:
        raise InvalidManifest(f"{role}: {error.message}", field=role) from None
    return data


def read(path: Path, role: str = "model") -> Model:
    """The model of a file, checked, its initialisers fixed: none of them is an input that a caller may replace."""
    import onnx
    from google.protobuf.message import DecodeError

    data = read_bytes(path, role)
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InvalidManifest(
            f"{role}: this is not a valid ONNX model; export it again", field=role, detail=str(error)
        ) from None
    _lift_constants(model.graph)
    fixed = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def _lift_constants(graph: Any) -> None:
    """Makes initialisers of the main graph's Constant nodes: one kind of constant is enough for every step."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    kept = []
    for node in graph.node:
        value = node.attribute[0] if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if value is not None and value.name == "value":
            made = TensorProto()
            made.CopyFrom(value.t)
            made.name = node.output[0]
            graph.initializer.append(made)
        elif value is not None and value.name in ("value_float", "value_floats", "value_int", "value_ints"):
            from_float = value.name.startswith("value_float")
            many = value.floats if from_float else value.ints
            one = value.f if from_float else value.i
            array = np.array(many if value.name.endswith("s") else one, np.float32 if from_float else np.int64)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)


def inferred(model: Model) -> Model:
    """A copy with the types and shapes of every tensor that onnx can tell; raises InvalidManifest where they clash."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # a C++ exception without a class of its own
        raise InvalidManifest(
            "model: the types or shapes of the model's tensors contradict each other; export it again",
            field="model",
            detail=str(error),
        ) from None


def constants(model: Model) -> dict[str, Any]:
    """Name → TensorProto of every initialiser."""
    return {tensor.name: tensor for tensor in model.graph.initializer}
