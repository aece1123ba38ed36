"""What a deserialised plan takes and gives, and the shapes that its profiles allow.

Shapes are of whole batches: the first dimension is the batch where the manifest has batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from penstock.errors import Unsupported

from ..engine import Array, TensorInfo, dtype

_DATATYPES: Final = {
    "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "INT32": "INT32", "INT64": "INT64",
    "BOOL": "BOOL", "UINT8": "UINT8",
}  # fmt: skip

Shape = tuple[int, ...]
Limits = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape."""


@dataclass(frozen=True, slots=True)
class Layout:
    """inputs, outputs: by name. profiles: limits of each input in each optimisation profile. batched: the first
    dimension of every tensor is the batch."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    profiles: Sequence[Mapping[str, Limits]]
    batched: bool

    @property
    def fixed(self) -> bool:
        """True where the batch is all that varies, so that few shapes are all shapes."""
        first = 1 if self.batched else 0
        return all(size >= 0 for info in self.inputs.values() for size in (info.shape or ())[first:])

    def rows(self, profile: int) -> tuple[int, int, int]:
        """Least, best and most rows that a profile takes; ones where there is no batch."""
        if not self.batched:
            return (1, 1, 1)
        limits = self.profiles[profile].values()
        least, best, most = zip(*((low[0], good[0], high[0]) for low, good, high in limits), strict=True)
        return (max(least), max(best), min(most))

    def shapes(self, profile: int, rows: int) -> dict[str, Shape]:
        """The largest shape of each input with so many rows."""
        largest = {name: limits[2] for name, limits in self.profiles[profile].items()}
        return {name: (rows, *shape[1:]) for name, shape in largest.items()} if self.batched else largest

    def profile_of(self, shapes: Mapping[str, Shape]) -> int | None:
        """The first profile that takes inputs of these shapes."""
        for index, limits in enumerate(self.profiles):
            if all(
                all(
                    low <= size <= high for low, size, high in zip(limits[name][0], shape, limits[name][2], strict=True)
                )
                for name, shape in shapes.items()
            ):
                return index
        return None


def layout(trt: Any, engine: Any, *, batched: bool) -> Layout:
    """Reads it from the engine; raises Unsupported for what is not run here."""
    inputs: dict[str, TensorInfo] = {}
    outputs: dict[str, TensorInfo] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DATATYPES:
            raise Unsupported(f"the plan's tensor {name!r} is {kind}, which is not run here")
        # Shapes as inputs, and tensors in the machine's memory, are read while the plan is enqueued.
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or engine.is_shape_inference_io(name):
            raise Unsupported(f"the plan's tensor {name!r} is a shape; compile the model with its shapes in profiles")
        if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise Unsupported(f"the plan's tensor {name!r} is not laid out row by row")
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = TensorInfo(name, _DATATYPES[kind], tuple(engine.get_tensor_shape(name)))
    profiles = [
        {name: _limits(engine, info, profile) for name, info in inputs.items()}
        for profile in range(max(1, engine.num_optimization_profiles))
    ]
    return Layout(inputs, outputs, profiles, batched)


def _limits(engine: Any, info: TensorInfo, profile: int) -> Limits:
    shape = info.shape or ()
    if min(shape, default=0) >= 0:
        return (shape, shape, shape)
    low, best, high = (tuple(dims) for dims in engine.get_tensor_profile_shape(info.name, profile))
    return (low, best, high)


def size_of(info: TensorInfo, shape: Shape) -> int:
    """Bytes of a tensor."""
    return prod(shape) * dtype(info.datatype).itemsize


def fits(info: TensorInfo, array: Array) -> bool:
    """Whether an array may be given for an input, as far as one tensor alone can say."""
    shape = info.shape or ()
    return len(shape) == array.ndim and all(want in (-1, size) for want, size in zip(shape, array.shape, strict=True))
