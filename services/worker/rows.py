"""Cutting a batch's outputs into each request's rows (pure).

Rows of fixed-size datatypes are found by division, rows of BYTES by walking the lengths once per batch. A promise that
an engine breaks (a tensor without the batch's dimension, bytes that do not fit its shape) is Internal for the batch, so
that no request ever gets another one's rows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Final, Protocol

from penstock.errors import Internal, InvalidArgument, PenstockError
from penstock.tensors import DATATYPES

from .codec import Tensor
from .references import Destination

_LENGTH: Final = struct.Struct("<I")


class Output(Protocol):
    """One output tensor of a batch, in raw form."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def data(self) -> memoryview: ...


class Sliced:
    """The outputs of one run, ready to be cut.

    Args:
        size: rows of the batch; None where the model has no batch dimension and one request gets everything.
        failures: rows that could not be used; the outputs have rows for all, those of a failed row mean nothing.
    """

    def __init__(self, outputs: Sequence[Output], size: int | None, failures: Mapping[int, PenstockError]) -> None:
        self._outputs = {output.name: output for output in outputs}
        self._size = size
        self._failures = failures
        self._bounds: dict[str, list[int]] = {}

    def take(
        self, first: int, count: int, names: Sequence[str], destinations: Mapping[str, Destination] | None = None
    ) -> tuple[Tensor, ...] | PenstockError:
        """Views of rows first … first + count - 1 of these outputs, or why one of the rows failed. What has a
        destination is written there, and its tensor is empty."""
        for row in range(first, first + count) if self._failures else ():
            if (failure := self._failures.get(row)) is not None:
                return failure if count == 1 else _numbered(failure, row - first)
        cut = tuple(self._cut(name, first, count) for name in names)
        return cut if destinations is None else _placed(cut, destinations)

    def _cut(self, name: str, first: int, count: int) -> Tensor:
        output = self._outputs.get(name)
        if output is None:
            raise Internal("the model did not give an output that its manifest promises", detail=f"output {name!r}")
        shape = tuple(output.shape)
        if self._size is None or count == self._size:
            self._check(output)
            return Tensor(name, output.datatype, shape, output.data)
        bounds = self._bounds.get(name)
        if bounds is None:
            self._check(output)
            bounds = self._bounds[name] = _bounds(output, self._size)
        return Tensor(name, output.datatype, (count, *shape[1:]), output.data[bounds[first] : bounds[first + count]])

    def _check(self, output: Output) -> None:
        if self._size is not None and (not output.shape or output.shape[0] != self._size):
            raise Internal(
                "the model's output does not have one row per item of the batch",
                detail=f"output {output.name!r} has shape {list(output.shape)} for {self._size} rows",
            )


def _placed(tensors: Sequence[Tensor], destinations: Mapping[str, Destination]) -> tuple[Tensor, ...] | PenstockError:
    left = []
    try:
        for tensor in tensors:
            destination = destinations.get(tensor.name)
            if destination is not None:
                tensor = Tensor(tensor.name, tensor.datatype, tensor.shape, destination.write(memoryview(tensor.data)))
            left.append(tensor)
    except InvalidArgument as misplaced:
        return misplaced
    return tuple(left)


def _bounds(output: Output, size: int) -> list[int]:
    """Where each row begins, and where the last one ends."""
    width = DATATYPES[output.datatype].size
    elements = prod(output.shape[1:])
    total = len(output.data)
    if width:
        step = elements * width
        if step * size != total:
            raise _unfit(output)
        return [row * step for row in range(size + 1)]
    bounds, offset = [0], 0
    try:
        for _ in range(size):
            for _ in range(elements):
                offset += 4 + _LENGTH.unpack_from(output.data, offset)[0]
            bounds.append(offset)
    except struct.error:
        raise _unfit(output) from None
    if offset != total:
        raise _unfit(output)
    return bounds


def _unfit(output: Output) -> Internal:
    return Internal(
        "the model's output does not fit its shape",
        detail=f"output {output.name!r} {output.datatype} {list(output.shape)} has {len(output.data)} bytes",
    )


def _numbered(failure: PenstockError, item: int) -> PenstockError:
    """The failure of one item of a request that has several."""
    return type(failure)(f"item {item}: {failure.message}", field=failure.field, detail=failure.detail)
