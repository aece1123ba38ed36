"""ONNX files of the steps: read without believing them (penstock/untrusted/onnx_model.py), looked at, written whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidManifest, TooLarge
from penstock.untrusted.onnx_model import MAX_FILE
from penstock.untrusted.onnx_model import constants as constants
from penstock.untrusted.onnx_model import inferred as inferred
from penstock.untrusted.onnx_model import read as read

from ..step import Json

DATATYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8",
    "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT": "FP32",
    "DOUBLE": "FP64", "STRING": "BYTES",
}  # fmt: skip
"""TensorProto.DataType → datatype of a manifest."""

Array = NDArray[Any]
Model = Any
"""onnx.ModelProto; onnx is imported where it is used."""


def write(model: Model, path: Path) -> Path:
    """Writes the model as one file; raises TooLarge past 2 GiB, InvalidArgument where a step made something invalid."""
    import onnx

    if model.ByteSize() > MAX_FILE:
        raise TooLarge("the model that was made is larger than 2 GiB, which an ONNX file cannot hold")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def types(model: Model) -> dict[str, int]:
    """Tensor → TensorProto.DataType for inputs, outputs, initialisers and all that `inferred` found."""
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for values in (model.graph.input, model.graph.output, model.graph.value_info):
        found |= {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: kind for name, kind in found.items() if kind}


def opset(model: Model) -> int:
    """The version of the standard operators; 0 where the model uses none."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def consumers(model: Model) -> dict[str, list[Any]]:
    """Tensor → nodes of the main graph that read it, those that read it from inside a subgraph included."""
    found: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(read_by(node)):
            found.setdefault(name, []).append(node)
    return found


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds, not those inside them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def read_by(node: Any) -> list[str]:
    """Every name that a node reads, from inside its subgraphs too."""
    return [*node.input, *(name for inner in subgraphs(node) for name in reads(inner))]


def reads(graph: Any) -> Iterator[str]:
    """Every name that a graph's nodes and outputs read, at any depth, its own tensors included."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from reads(inner)


def drop_unused(model: Model) -> None:
    """Removes initialisers that nothing reads."""
    used = set(reads(model.graph))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def interface(model: Model) -> Json:
    """The model's inputs and outputs as a manifest declares them; raises InvalidManifest for what cannot be served."""
    import onnx

    def tensor(value: Any) -> Json:
        kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if kind not in DATATYPES:
            raise InvalidManifest(
                f"model: {value.name} has elements of type {kind}, which are not served", field="model"
            )
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1 for dim in dims]
        return {"name": value.name, "datatype": DATATYPES[kind], "shape": shape}

    return {
        "inputs": [tensor(value) for value in model.graph.input],
        "outputs": [tensor(value) for value in model.graph.output],
    }


def summary(path: Path, model: Model) -> Json:
    """What a report says of a model file: its size and what it holds."""
    weights = sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in model.graph.initializer)
    return {"bytes": path.stat().st_size, "nodes": len(model.graph.node), "weights": weights}
