"""`share`: weights that are equal are kept once; with `codebook`, weights that are nearly equal become equal.

Equal initialisers become one tensor that all their readers share. A codebook of k values (k-means over one matrix)
leaves an index of one byte per weight: a quarter of the bytes. The graph looks the values up, which ONNX Runtime does
once, while loading; TensorRT does not take such indexes, so compile from the model without a codebook.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument

from ..step import Json, Role, Step, StepContext, StepResult, installed
from . import onnx_file, report

Array = NDArray[Any]

FLOAT, UINT8, INT32 = 1, 2, 6  # TensorProto.DataType
ROUNDS = 25


@dataclass(frozen=True)
class Parameters:
    """codebook: values per matrix, 2 to 256; None keeps weights as they are. least: matrices with fewer elements are
    left alone."""

    codebook: int | None = None
    least: int = 4096
    rows: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codebook is not None and not 2 <= self.codebook <= 256:
            raise InvalidArgument("2 to 256 values are needed", field="codebook")


def run(work: StepContext[Parameters]) -> StepResult:
    """Shares, writes `model`, and compares it with the source."""
    import onnx

    source = onnx_file.read(work.inputs["model"])
    model = onnx.ModelProto()
    model.CopyFrom(source)
    merged = deduplicate(model)
    work.say(f"{merged['tensors']} tensors were copies of others, {merged['bytes']:,} bytes")
    coded = _code(model, work) if work.parameters.codebook else 0
    path = onnx_file.write(model, work.folder / "model.onnx")
    work.progress(0.5)
    tolerance = "int8" if coded else "fp32"
    said = report.compared(work, source, path, tolerance, work.parameters.rows, work.parameters.seed)
    return StepResult({"model": path}, {**said, "merged": merged, "coded": coded, "for_tensorrt": not coded})


def deduplicate(model: Any) -> Json:
    """Makes readers of equal initialisers read the first of them; how many went, and their bytes."""
    from onnx import numpy_helper

    first: dict[tuple[Any, ...], str] = {}
    instead: dict[str, str] = {}
    saved = 0
    for tensor in model.graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(data).digest())
        if key in first:
            instead[tensor.name] = first[key]
            saved += len(data)
        else:
            first[key] = tensor.name
    _rename(model.graph, instead)
    onnx_file.drop_unused(model)
    return {"tensors": len(instead), "bytes": saved}


def _rename(graph: Any, instead: dict[str, str]) -> None:
    """Everywhere in the graph, except where a subgraph has a tensor of its own of that name."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        for inner in onnx_file.subgraphs(node):
            own = {each.name for each in [*inner.input, *inner.initializer]}
            own |= {name for each in inner.node for name in each.output}
            _rename(inner, {name: other for name, other in instead.items() if name not in own and other not in own})


def _code(model: Any, work: StepContext[Parameters]) -> int:
    """Replaces matrices by indexes and a codebook; how many."""
    from onnx import helper, numpy_helper

    outputs = {value.name for value in model.graph.output}
    kept, nodes, count = [], [], 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        size = work.parameters.codebook or 0
        # A table that is indexed would have to be unpacked as a whole; so is every matrix, once, while loading.
        if tensor.data_type != FLOAT or array.ndim != 2 or array.size < work.parameters.least or tensor.name in outputs:
            kept.append(tensor)
            continue
        values, index = codebook(array, size)
        name = tensor.name
        kept += [numpy_helper.from_array(values, f"{name}/values"), numpy_helper.from_array(index, f"{name}/index")]
        nodes += [
            helper.make_node("Cast", [f"{name}/index"], [f"{name}/wide"], name=f"{name}/cast", to=INT32),
            helper.make_node("Gather", [f"{name}/values", f"{name}/wide"], [name], name=f"{name}/look-up", axis=0),
        ]
        count += 1
    if not count:
        raise InvalidArgument("model: it has no float32 matrix that is large enough for a codebook", field="model")
    tensors = [type(each).FromString(each.SerializeToString()) for each in kept]
    rest = [type(each).FromString(each.SerializeToString()) for each in [*nodes, *model.graph.node]]
    del model.graph.initializer[:], model.graph.node[:], model.graph.value_info[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(rest)
    work.say(f"{count} matrices have a codebook of at most {size} values")
    return count


def codebook(array: Array, size: int) -> tuple[Array, Array]:
    """At most `size` values and an index of one byte per element: k-means on a line, begun at quantiles, so that it
    needs no chance."""
    flat = array.astype(np.float64).ravel()
    values = np.unique(np.quantile(flat, (np.arange(size) + 0.5) / size))
    for _ in range(ROUNDS):
        index = np.searchsorted((values[1:] + values[:-1]) / 2, flat)
        counts = np.bincount(index, minlength=len(values))
        sums = np.bincount(index, weights=flat, minlength=len(values))
        moved = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), values))
        if np.array_equal(moved, values):
            break
        values = moved
    index = np.searchsorted((values[1:] + values[:-1]) / 2, flat)
    return values.astype(np.float32), index.astype(np.uint8).reshape(array.shape)


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "onnxruntime")


STEP: Final = Step(
    name="share",
    version=1,
    text="keeps equal weights once; with a codebook, makes nearly equal ones equal",
    parameters=Parameters,
    inputs=(
        Role("model", "an ONNX model in float32"),
        Role("samples", "inputs by name, for the comparison", required=False),
        Role("evaluation", "inputs by name and labels, for accuracy before and after", required=False),
    ),
    outputs=(Role("model", "the ONNX model with shared weights"),),
    tools=_tools,
    run=run,
)
