"""Small real ONNX models for tests, each a folder with model.onnx and model.yaml that `penstock publish` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import yaml
from onnx import TensorProto, helper

OPSET = [helper.make_opsetid("", 21)]

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def identity(folder: Path, name: str = "identity") -> Path:
    """Every datatype in and out unchanged: inputs in_<type> [n, 2], outputs out_<type>."""
    inputs, outputs, nodes, specs_in, specs_out = [], [], [], [], []
    for datatype, kind in ONNX_TYPES.items():
        source, target = f"in_{datatype.lower()}", f"out_{datatype.lower()}"
        inputs.append(helper.make_tensor_value_info(source, kind, ["n", 2]))
        outputs.append(helper.make_tensor_value_info(target, kind, ["n", 2]))
        nodes.append(helper.make_node("Identity", [source], [target]))
        specs_in.append({"name": source, "datatype": datatype, "shape": [2]})
        specs_out.append({"name": target, "datatype": datatype, "shape": [2]})
    return _write(folder, name, nodes, inputs, outputs, specs_in, specs_out, batching={"max_batch_size": 8})


def add_one(folder: Path, name: str = "add1", add: float = 1.0, **batching: Any) -> Path:
    """y = x + add on FP32 [n, 16]; `add` tells versions apart."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])]
    one = helper.make_node("Constant", [], ["one"], value_float=add)
    nodes = [one, helper.make_node("Add", ["x", "one"], ["y"])]
    specs = ([{"name": "x", "datatype": "FP32", "shape": [16]}], [{"name": "y", "datatype": "FP32", "shape": [16]}])
    return _write(folder, name, nodes, inputs, outputs, *specs, batching={"max_batch_size": 32, **batching})


def any_size(folder: Path, name: str = "anysize") -> Path:
    """Identity on FP32 of any length, without a batch dimension: for payloads of any size."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    specs = ([{"name": "x", "datatype": "FP32", "shape": [-1]}], [{"name": "y", "datatype": "FP32", "shape": [-1]}])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _write(folder, name, nodes, inputs, outputs, *specs, batching={"max_batch_size": 0})


def slow(folder: Path, name: str = "slow") -> Path:
    """Multiplies 256x256 matrices `times` (INT64 [1]) times and answers times + 1: about 0.3 ms each."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["m_in", "m_in"], ["square"]),
            helper.make_node("Sigmoid", ["square"], ["m_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m_in", TensorProto.FLOAT, [256, 256]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("m_out", TensorProto.FLOAT, [256, 256]),
        ],
    )
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["go"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
        helper.make_node("Constant", [], ["size"], value_ints=[256, 256]),
        helper.make_node(
            "ConstantOfShape", ["size"], ["start"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
        ),
        helper.make_node("ReduceSum", ["times", "zero"], ["count"], keepdims=0),
        helper.make_node("Loop", ["count", "go", "start"], ["end"], body=body),
        # The answer depends on the loop, so that no optimiser removes it.
        helper.make_node("ReduceMin", ["end"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["floor"], to=TensorProto.INT64),
        helper.make_node("Add", ["times", "floor"], ["done"]),
    ]
    inputs = [helper.make_tensor_value_info("times", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("done", TensorProto.INT64, [1])]
    specs = (
        [{"name": "times", "datatype": "INT64", "shape": [1]}],
        [{"name": "done", "datatype": "INT64", "shape": [1]}],
    )
    return _write(folder, name, nodes, inputs, outputs, *specs, batching={"max_batch_size": 0})


def unloadable(folder: Path, name: str = "unloadable") -> Path:
    """A well-formed ONNX file whose one operator no runtime has."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])]
    specs = ([{"name": "x", "datatype": "FP32", "shape": [16]}], [{"name": "y", "datatype": "FP32", "shape": [16]}])
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"])]
    return _write(folder, name, nodes, inputs, outputs, *specs, batching={"max_batch_size": 4}, check=False)


def _write(
    folder: Path,
    name: str,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    specs_in: list[dict[str, Any]],
    specs_out: list[dict[str, Any]],
    *,
    batching: dict[str, Any],
    check: bool = True,
) -> Path:
    graph = helper.make_graph(nodes, name.replace("-", "_"), inputs, outputs)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    if check:
        onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    manifest = {
        "schema": "penstock/v1",
        "name": name,
        "description": f"{name}, for tests",
        "author": "tests",
        "tags": {"purpose": "test"},
        "framework": "onnx",
        "format": "onnx",
        "files": {"model": "model.onnx"},
        "inputs": specs_in,
        "outputs": specs_out,
        "batching": batching,
        "resources": {"memory_bytes": 64 << 20},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder
