"""Outliers of activations moved into weights, so that int8 has room for the rest.

A few channels of a transformer's activations are tens of times larger than the others, and one scale per tensor is
made for them alone. A product does not change when channel j of its input is divided by s[j] and row j of its weight
is multiplied by it; s is chosen so that both sides share the range (Xiao et al., SmoothQuant, 2022, equation 4).
Weights have a scale per column, so they can bear it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import chains, onnx_file, tensors
from .session import Session

Array = NDArray[Any]

OUTLIER = 4.0
"""A tensor is smoothed where its largest channel is this many times its median one."""


def smoothed(
    model: Any, arrays: Mapping[str, Array], strength: float, rows: int, batch: int, threads: int
) -> tuple[Any, int]:
    """A copy with a Mul before products whose input has outliers, and how many tensors were smoothed.

    strength: 0 leaves the outliers in the activations, 1 moves them to the weights whole.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = onnx_file.constants(made)
    readers: dict[str, list[tuple[Any, chains.Product]]] = {}
    weights: dict[str, int] = {}
    for node in made.graph.node:
        product = chains.product(node, constants)
        if product is not None:
            readers.setdefault(product.input, []).append((node, product))
            weights[product.weight] = weights.get(product.weight, 0) + 1
    wanted = {name: found for name, found in readers.items() if all(weights[each.weight] == 1 for _, each in found)}
    largest = _largest(made, list(wanted), arrays, rows, batch, threads)
    nodes = {}
    for name, peaks in largest.items():
        products = wanted[name]
        matrices = [numpy_helper.to_array(constants[each.weight]) for _, each in products]
        heights = np.max(
            [np.abs(matrix).max(axis=1 - each.reads) for matrix, (_, each) in zip(matrices, products, strict=True)],
            axis=0,
        )
        if peaks.shape != heights.shape or peaks.max() < OUTLIER * max(float(np.median(peaks)), 1e-6):
            continue
        scale = _scale(peaks, heights, strength)
        for matrix, (node, each) in zip(matrices, products, strict=True):
            turned = scale[:, None] if each.reads == 0 else scale[None, :]
            constants[each.weight].CopyFrom(numpy_helper.from_array((matrix * turned).astype(np.float32), each.weight))
            node.input[0] = f"{name}/smooth"
        made.graph.initializer.append(numpy_helper.from_array((1 / scale).astype(np.float32), f"{name}/shrink"))
        nodes[name] = helper.make_node("Mul", [name, f"{name}/shrink"], [f"{name}/smooth"], name=f"{name}/smooth")
    _insert(made, nodes)
    return made, len(nodes)


def _scale(peaks: Array, heights: Array, strength: float) -> Array:
    floor = max(float(peaks.max()), 1e-6) * 1e-5
    scale = np.maximum(peaks, floor) ** strength / np.maximum(heights, 1e-8) ** (1 - strength)
    return np.asarray(np.clip(scale, 1e-4, 1e4))


def _largest(
    model: Any, names: list[str], arrays: Mapping[str, Array], rows: int, batch: int, threads: int
) -> dict[str, Array]:
    """The largest magnitude of every channel (last axis) of these tensors, over the samples."""
    import onnx

    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in inputs | outputs
    )
    session = Session(opened.SerializeToString(), threads)
    found: dict[str, Array] = {}
    for feeds in tensors.batches(arrays, batch, rows):
        values = {**session.run(feeds), **{name: feeds[name] for name in names if name in inputs}}
        for name in names:
            peak = np.abs(values[name]).reshape(-1, values[name].shape[-1]).max(axis=0)
            found[name] = np.maximum(found.get(name, 0), peak)
    return found


def _insert(model: Any, nodes: Mapping[str, Any]) -> None:
    """Puts each node behind the one that makes its input, or first where that is an input of the model."""
    made = {output for node in model.graph.node for output in node.output}
    ordered = [node for name, node in nodes.items() if name not in made]
    for node in model.graph.node:
        ordered.append(node)
        ordered += [nodes[name] for name in node.output if name in nodes]
    kept = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
