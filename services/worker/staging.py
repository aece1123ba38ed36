"""How a batch lies in the engine's arena: tensor after tensor, in each the rows of one request after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from penstock.internal.v1 import engine_pb2

from .codec import Request
from .references import Source

ALIGNMENT: Final = 64
"""Tensors begin at multiples of it in the arena: a cache line, and what vector instructions like."""


def stage(
    requests: Sequence[Request], arena_of: Callable[[int], memoryview], *, batched: bool
) -> list[engine_pb2.TensorRef]:
    """Writes the requests' rows into the arena, each byte copied once; what lies where.

    arena_of: gives an arena of so many bytes. batched: the first dimension is rows, which add up.
    """
    references: list[engine_pb2.TensorRef] = []
    total = 0
    for index, first in enumerate(requests[0].inputs):
        size = sum(len(request.inputs[index].data) for request in requests)
        shape = first.shape
        if batched:
            shape = (sum(request.rows for request in requests), *shape[1:])
        references.append(
            engine_pb2.TensorRef(name=first.name, datatype=first.datatype, shape=shape, offset=total, size_bytes=size)
        )
        total += -(-size // ALIGNMENT) * ALIGNMENT
    arena = arena_of(max(total, 1))
    for index, reference in enumerate(references):
        offset = reference.offset
        for request in requests:
            data = request.inputs[index].data
            if isinstance(data, Source):
                data.read_into(arena[offset : offset + len(data)])
            else:
                arena[offset : offset + len(data)] = data
            offset += len(data)
    return references
