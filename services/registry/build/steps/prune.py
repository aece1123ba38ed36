"""`prune`: takes away what a network hardly needs.

`magnitude` sets the smallest weights to zero, keeping shapes; `2:4` does so in every group of four, which TensorRT runs
on sparse tensor cores. `structured` removes whole hidden units between two products, so that the model gets smaller and
faster everywhere: chains of MatMul or Gemm with constant weights and only elementwise operators between them.
Pruned models should be tuned or gated; the report says what was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument

from ..step import Json, Role, Step, StepContext, StepResult, installed
from . import chains, onnx_file, report

Array = NDArray[Any]

FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True)
class Parameters:
    """method: see the module. share: of weights (magnitude) or of hidden units (structured) that go, 0 to 1. scope: the
    smallest of the whole model, or of every tensor. multiple: hidden units left are a multiple of this, as hardware
    likes it. least: smaller weights are left alone (elements)."""

    method: Literal["magnitude", "2:4", "structured"] = "structured"
    share: float = 0.25
    scope: Literal["model", "tensor"] = "tensor"
    multiple: int = 8
    least: int = 256
    rows: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InvalidArgument("a share between 0 and 1 is needed", field="share")
        if self.multiple < 1 or self.rows < 1:
            raise InvalidArgument("at least 1 is needed", field="multiple" if self.multiple < 1 else "rows")


def run(work: StepContext[Parameters]) -> StepResult:
    """Prunes, writes `model`, and compares it with the source."""
    import onnx

    source = onnx_file.read(work.inputs["model"])
    model = onnx.ModelProto()
    model.CopyFrom(source)
    weights = _weights(model, work.parameters.least)
    if work.parameters.method == "structured":
        removed = _structured(model, work)
    elif work.parameters.method == "2:4":
        removed = _rewrite(model, {name: _two_of_four(*found) for name, found in weights.items()})
    else:
        removed = _rewrite(model, _magnitude({name: array for name, (array, _) in weights.items()}, work.parameters))
    del model.graph.value_info[:]
    path = onnx_file.write(model, work.folder / "model.onnx")
    work.progress(0.5)
    said = report.compared(work, source, path, "lossy", work.parameters.rows, work.parameters.seed)
    return StepResult({"model": path}, {**said, "method": work.parameters.method, "removed": removed})


def _weights(model: Any, least: int) -> dict[str, tuple[Array, int]]:
    """Name → array and contracted axis of the constant matrices that products read."""
    from onnx import numpy_helper

    constants = onnx_file.constants(model)
    found = {}
    for node in model.graph.node:
        product = chains.product(node, constants)
        if product is not None:
            array = numpy_helper.to_array(constants[product.weight])
            if array.dtype == np.float32 and array.size >= least:
                found[product.weight] = (array, product.reads)
    return found


def _magnitude(weights: dict[str, Array], parameters: Parameters) -> dict[str, Array]:
    """The same arrays with the smallest elements zero."""
    made = {}
    limit = None
    if parameters.scope == "model" and weights:
        limit = np.quantile(np.abs(np.concatenate([array.ravel() for array in weights.values()])), parameters.share)
    for name, array in weights.items():
        bound = np.quantile(np.abs(array), parameters.share) if limit is None else limit
        made[name] = np.where(np.abs(array) <= bound, np.float32(0), array).astype(np.float32)
    return made


def _two_of_four(array: Array, axis: int) -> Array:
    """Zero the two smallest of every four neighbours along the contracted axis; as it is where that is no multiple of
    four."""
    moved = np.moveaxis(array, axis, -1)
    if moved.shape[-1] % 4:
        return array
    groups = np.ascontiguousarray(moved).reshape(-1, 4)
    order = np.argsort(np.abs(groups), axis=1, kind="stable")
    np.put_along_axis(groups, order[:, :2], np.float32(0), axis=1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(moved.shape), -1, axis))


def _rewrite(model: Any, arrays: dict[str, Array]) -> Json:
    """Puts the arrays in place; how many elements of them are zero now."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    total = sum(array.size for array in arrays.values())
    if not total:
        raise InvalidArgument("model: it has no constant float32 matrix that is large enough to prune", field="model")
    zeros = sum(int((array == 0).sum()) for array in arrays.values())
    return {"weights": total, "zeros": zeros, "share": round(zeros / total, 4)}


def _structured(model: Any, work: StepContext[Parameters]) -> Json:
    """Removes hidden units of every chain; what was removed, by chain."""
    found = chains.find(model)
    if not found:
        raise InvalidArgument(
            "model: it has no hidden layer between two products with constant weights and only elementwise operators; "
            "use method magnitude",
            field="prune.method",
        )
    told = {}
    for chain in found:
        keep = _kept(chains.importance(model, chain), work.parameters)
        chains.cut(model, chain, keep)
        told[chain.first.node] = {"before": chain.width, "after": len(keep)}
        work.say(f"{chain.first.node}: {chain.width} to {len(keep)} hidden units")
    onnx_file.drop_unused(model)
    return {"chains": told}


def _kept(importance: Array, parameters: Parameters) -> Array:
    """Indexes of the units that stay, in their order; at least one multiple of them."""
    width = len(importance)
    wanted = max(1, round(width * (1 - parameters.share)))
    rounded = min(width, -(-wanted // parameters.multiple) * parameters.multiple)
    return np.sort(np.argsort(-importance, kind="stable")[:rounded])


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "onnxruntime")


STEP: Final = Step(
    name="prune",
    version=1,
    text="removes the smallest weights, or whole hidden units",
    parameters=Parameters,
    inputs=(
        Role("model", "an ONNX model in float32"),
        Role("samples", "inputs by name, for the comparison", required=False),
        Role("evaluation", "inputs by name and labels, for accuracy before and after", required=False),
    ),
    outputs=(Role("model", "the pruned ONNX model"),),
    tools=_tools,
    run=run,
)
