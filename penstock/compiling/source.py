"""What an ONNX model says of the plan that it becomes: its precision, and the shapes that the plan is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidArgument
from penstock.plans import Profile

from . import profiles, repair


def precision_of(model: Any, compilable: bool = True) -> str:
    """What the graph computes in: int8 where it has quantised operators, else its half type, else fp32.

    compilable: raises InvalidArgument for operators that no compiler knows.
    """
    kinds = {node.op_type for node in model.graph.node}
    for operator in sorted(kinds & set(repair.INSTEAD)) if compilable else ():
        raise InvalidArgument(
            f"model: the operator {operator} cannot be compiled; {repair.INSTEAD[operator]}", field="model"
        )
    if kinds & {"QuantizeLinear", "DequantizeLinear", *repair.INSTEAD}:
        return "int8"
    held = {tensor.data_type for tensor in model.graph.initializer}
    cast = {
        each.i for node in model.graph.node if node.op_type == "Cast" for each in node.attribute if each.name == "to"
    }
    return "fp16" if 10 in held | cast else "bf16" if 16 in held | cast else "fp32"


def chosen_profiles(
    model: Any,
    batches: Sequence[tuple[int, int, int]],
    sizes: Mapping[str, Sequence[int]],
    exact: Mapping[str, Sequence[Sequence[int]]],
) -> tuple[profiles.Profile, ...]:
    """The profiles for this model's inputs. batches, sizes, exact: see profiles.profiles."""
    inputs: dict[str, list[int | str]] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        inputs[value.name] = [
            each.dim_value if each.HasField("dim_value") else each.dim_param or f"{value.name}.{axis}"
            for axis, each in enumerate(dims)
        ]
    return profiles.profiles(inputs, batches, sizes, exact)


def profile_text(wanted: tuple[Profile, ...]) -> str:
    """The profiles as one line: `pixels:1x64/8x64/32x64`, several inputs by a comma, several profiles by a bar."""

    def shape(sizes: tuple[int, ...]) -> str:
        return "x".join(map(str, sizes))

    return "|".join(
        ",".join(f"{name}:{'/'.join(map(shape, three))}" for name, three in sorted(one.items())) for one in wanted
    )
