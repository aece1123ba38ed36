"""Models that only benchmarks need, each a folder that `penstock publish` takes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto, helper

OPSET: Final = [helper.make_opsetid("", 20)]
IMAGE_SHAPE: Final = (600, 1000)
STRIPES: Final = 4
WIDTH: Final = 128
"""Values in a row of the affine model."""
FIXED_SECONDS: Final = 0.020
"""What the affine model costs whatever the batch; a row adds about a fiftieth of it.

Long enough for the engine, not whoever calls it, to be what is scarce at 95 % load on two cores.
"""
ROW_PRODUCTS: Final = 8


def image(folder: Path, name: str = "image") -> Path:
    """Identity on UINT8 [n, 600, 1000]: 600 KB in, the same out."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", *IMAGE_SHAPE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", *IMAGE_SHAPE])]
    model = _model(name, [helper.make_node("Identity", ["x"], ["y"])], inputs, outputs, [])
    return _write(folder, name, model, "UINT8", IMAGE_SHAPE, max_batch_size=8)


def picture(folder: Path, name: str = "picture") -> Path:
    """UINT8 [n, 600, 1000] to FP32 [n, 4], the means of four upright stripes: 600 KB in, little out."""
    stripe = IMAGE_SHAPE[1] // STRIPES
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", *IMAGE_SHAPE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", STRIPES])]
    constants = [
        helper.make_tensor("channel", TensorProto.INT64, [1], [1]),
        helper.make_tensor("flat", TensorProto.INT64, [2], [0, STRIPES]),
    ]
    size = [IMAGE_SHAPE[0], stripe]
    nodes = [
        helper.make_node("Cast", ["x"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["grey", "channel"], ["plane"]),
        helper.make_node("AveragePool", ["plane"], ["means"], kernel_shape=size, strides=size),
        helper.make_node("Reshape", ["means", "flat"], ["y"]),
    ]
    model = _model(name, nodes, inputs, outputs, constants)
    return _write(folder, name, model, "UINT8", IMAGE_SHAPE, max_batch_size=8, output=("FP32", (STRIPES,)))


def affine(folder: Path, name: str, max_batch_size: int, *, steps: int) -> Path:
    """y = x + 1 on FP32 [n, 128], after `steps` products of 256x256 matrices and a few products of 128x128 a row.

    So its time is a + c * rows. `steps` by `calibrated_steps`.
    """
    return _write(folder, name, _affine(name, steps), "FP32", (WIDTH,), max_batch_size=max_batch_size)


def calibrated_steps(seconds: float = FIXED_SECONDS) -> int:
    """How many steps of the affine model take so long on this machine, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    feed = {"x": np.ones((1, WIDTH), np.float32)}
    steps = 50
    session = onnxruntime.InferenceSession(_affine("trial", steps).SerializeToString(), options)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return max(1, round(steps * seconds / sorted(times)[4]))


def one_thread(source: Path, folder: Path) -> Path:
    """A copy of a model folder whose manifest asks for one thread, whatever the machine has."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("build.json", "metrics.json"))
    path = folder / "model.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["resources"]["threads"] = 1
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def _affine(name: str, steps: int) -> onnx.ModelProto:
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
    constants = [
        helper.make_tensor("steps", TensorProto.INT64, [], [steps]),
        helper.make_tensor("go", TensorProto.BOOL, [], [True]),
        helper.make_tensor("size", TensorProto.INT64, [2], [256, 256]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("column", TensorProto.INT64, [1], [2]),
        helper.make_tensor("row", TensorProto.INT64, [1], [1]),
        helper.make_tensor("cell", TensorProto.INT64, [2], [1, 2]),
    ]
    nodes = [
        # Both parts begin at the input and end in the output as a zero, so that no optimiser removes them.
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Sigmoid", ["least"], ["between"]),
        helper.make_node("Expand", ["between", "size"], ["start"]),
        helper.make_node("Loop", ["steps", "go", "start"], ["end"], body=body),
        helper.make_node("ReduceMin", ["end"], ["last"], keepdims=0),
        helper.make_node("Mul", ["last", "half"], ["below_one"]),
        helper.make_node("Floor", ["below_one"], ["fixed_zero"]),
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "column"], ["columns"]),
        helper.make_node("Unsqueeze", ["s", "row"], ["rows"]),
        helper.make_node("MatMul", ["columns", "rows"], ["outer"]),
        *_row_products("outer", "small"),
        helper.make_node("ReduceMin", ["small", "cell"], ["smallest"], keepdims=0),
        helper.make_node("Mul", ["smallest", "fixed_zero"], ["zero"]),
        helper.make_node("Unsqueeze", ["zero", "row"], ["zeros"]),
        helper.make_node("Add", ["x", "one"], ["more"]),
        helper.make_node("Add", ["more", "zeros"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])]
    return _model(name, nodes, inputs, outputs, constants)


def _row_products(source: str, target: str) -> list[Any]:
    """Products of each row's own matrix, one after the other."""
    nodes, last = [], source
    for step in range(ROW_PRODUCTS):
        squashed = target if step == ROW_PRODUCTS - 1 else f"{target}_{step}"
        nodes.append(helper.make_node("MatMul", [last, source], [f"product_{step}"]))
        nodes.append(helper.make_node("Sigmoid", [f"product_{step}"], [squashed]))
        last = squashed
    return nodes


def _model(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name.replace("-", "_"), inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    onnx.checker.check_model(model)
    return model


def _write(
    folder: Path,
    name: str,
    model: onnx.ModelProto,
    datatype: str,
    shape: tuple[int, ...],
    *,
    max_batch_size: int,
    output: tuple[str, tuple[int, ...]] | None = None,
) -> Path:
    """output: its datatype and shape where they are not the input's."""
    given, given_shape = output or (datatype, shape)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    manifest = {
        "schema": "penstock/v1",
        "name": name,
        "description": f"{name}, for benchmarks",
        "framework": "onnx",
        "format": "onnx",
        "files": {"model": "model.onnx"},
        "inputs": [{"name": "x", "datatype": datatype, "shape": list(shape)}],
        "outputs": [{"name": "y", "datatype": given, "shape": list(given_shape)}],
        "batching": {"max_batch_size": max_batch_size},
        "resources": {"memory_bytes": 64 << 20, "threads": 1},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder
