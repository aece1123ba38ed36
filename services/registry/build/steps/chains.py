"""Chains in a graph: a product, elementwise operators, another product, so that the units between them can be removed.

A unit is a column of the first product's weight, an element of every constant that elementwise operators bring in,
and a row of the second product's weight. Nothing else may see it: every tensor between has one reader and is no
output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import onnx_file

Array = NDArray[Any]

# Operators that treat every element alike. Softmax and normalisations do not: they mix a row.
ALIKE = {
    "Abs", "Celu", "Clip", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish",
    "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
}  # fmt: skip
WITH_CONSTANT = {"Add", "Sub", "Mul", "Div", "PRelu"}
# What several products read is one tensor of several places: not cut.


@dataclass(frozen=True)
class Product:
    """MatMul or Gemm with a constant matrix. makes, reads: the weight's axes of units that it makes and contracts."""

    node: str
    weight: str
    bias: str
    input: str
    output: str
    makes: int
    reads: int


@dataclass(frozen=True)
class Chain:
    """Two products and the constants between them that have one element per unit: name → axis."""

    first: Product
    second: Product
    between: tuple[str, ...]
    width: int


def product(node: Any, constants: dict[str, Any]) -> Product | None:
    """The node as a product of an activation and a constant matrix, or None."""
    attributes = {each.name: each for each in node.attribute}
    if node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2 or node.input[1] not in constants:
        return None
    if len(constants[node.input[1]].dims) != 2 or ("transA" in attributes and attributes["transA"].i):
        return None
    turned = bool("transB" in attributes and attributes["transB"].i)
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    return Product(
        node.name or node.output[0], node.input[1], bias, node.input[0], node.output[0], int(not turned), int(turned)
    )


def find(model: Any) -> list[Chain]:
    """Every chain, in the graph's order, no weight in two places."""
    constants = onnx_file.constants(model)
    readers = onnx_file.consumers(model)
    outputs = {value.name for value in model.graph.output}
    found = []
    for node in model.graph.node:
        first = product(node, constants)
        if first is None or (first.bias and first.bias not in constants):
            continue
        width = constants[first.weight].dims[first.makes]
        between: list[str] = [first.bias] if first.bias else []
        name = first.output
        while name and name not in outputs and len(readers.get(name, ())) == 1:
            reader = readers[name][0]
            second = product(reader, constants)
            if second is not None and second.input == name:
                chain = Chain(first, second, tuple(between), width)
                if _alone(chain, readers, constants):
                    found.append(chain)
                break
            name = _through(reader, name, width, constants, between)
    return found


def _through(node: Any, name: str, width: int, constants: dict[str, Any], between: list[str]) -> str:
    """The output of an elementwise node, or nothing where a unit would not stay a unit; notes its constants."""
    if node.op_type in ALIKE and node.input[0] == name and all(other != name for other in node.input[1:]):
        return str(node.output[0]) if sum(bool(each) for each in node.output) == 1 else ""
    if node.op_type not in WITH_CONSTANT or len(node.input) != 2:
        return ""
    other = node.input[1] if node.input[0] == name else node.input[0]
    if other not in constants:
        return ""
    dims = list(constants[other].dims)
    size = int(np.prod(dims, dtype=np.int64)) if dims else 1
    if size == 1:
        return str(node.output[0])
    if size == width and dims[-1] == width:
        between.append(other)
        return str(node.output[0])
    return ""


def _alone(chain: Chain, readers: dict[str, list[Any]], constants: dict[str, Any]) -> bool:
    names = [chain.first.weight, chain.second.weight, *chain.between]
    own = all(len(readers.get(name, ())) == 1 and constants[name].data_type == 1 for name in names)
    scalar = [name for name in chain.between if int(np.prod(constants[name].dims, dtype=np.int64)) != chain.width]
    return own and not scalar and len(set(names)) == len(names)


def importance(model: Any, chain: Chain) -> Array:
    """One number per unit: the length of what makes it times the length of what reads it."""
    from onnx import numpy_helper

    constants = onnx_file.constants(model)
    made = numpy_helper.to_array(constants[chain.first.weight])
    read = numpy_helper.to_array(constants[chain.second.weight])
    return np.asarray(
        np.linalg.norm(made, axis=1 - chain.first.makes) * np.linalg.norm(read, axis=1 - chain.second.reads)
    )


def cut(model: Any, chain: Chain, keep: Array) -> None:
    """Leaves only these units, in every constant that has them."""
    from onnx import numpy_helper

    axes = {chain.first.weight: chain.first.makes, chain.second.weight: chain.second.reads}
    axes |= {name: -1 for name in chain.between}
    for tensor in model.graph.initializer:
        if tensor.name in axes:
            array = np.take(numpy_helper.to_array(tensor), keep, axis=axes[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
