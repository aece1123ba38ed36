"""How a batch lies in the engine's arena: tensor after tensor, in each the rows of one request after the other.

While a batch runs, rows of those who would go next are copied to the arena's other side as they come. Nobody is bound
by that: when the engine is free the queue decides, and what does not lie as it should is copied anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from penstock.internal.v1 import engine_pb2

from .codec import Referred, Request, Tensor
from .references import Source

ALIGNMENT: Final = 64
"""Tensors begin at multiples of it in the arena: a cache line, and what vector instructions like."""
WORTH_BYTES: Final = 16 << 10
"""Of a tensor, from where it is copied ahead: less is copied as soon as one has seen whether it lies there already."""
AHEAD_BYTES: Final = 256 << 20
"""How much may be copied ahead for a batch."""

ArenaOf: TypeAlias = Callable[[int, int], memoryview]
"""An arena of so many bytes on a side, 0 or 1: the same one again where it is large enough."""


class Staging:
    """What lies in one engine's arenas for its next batch.

    capacity: rows of a batch; batched: the first dimension is rows, which add up.
    """

    def __init__(self, arena_of: ArenaOf, *, capacity: int, batched: bool) -> None:
        self._arena_of = arena_of
        self._capacity, self._batched = capacity, batched
        self._side = 0
        self._open: _Open | None = None

    def ahead(self, upcoming: Iterable[Request]) -> None:
        """Copies those who would go next, as far as they do not lie there already, while a batch runs on this side."""
        requests = iter(upcoming)
        first = next(requests, None)
        if first is None or not worthwhile(first):
            return
        if self._open is None or self._open.kind != first.kind:
            self._open = _Open(first, self._capacity, self._arena_of, 1 - self._side)
        self._open.become([first, *requests])

    def place(self, requests: Sequence[Request], *, beside: bool) -> tuple[int, list[engine_pb2.TensorRef]]:
        """Has the rows of exactly these requests lie in the arena: on which side, and what lies where.

        beside: the side of the batch before is in use still.
        """
        ahead, self._open = self._open, None
        if ahead is not None and ahead.begins_with(requests) and ahead.become(requests):
            self._side = 1 - self._side
            return self._side, ahead.references(self._batched)
        if beside:
            self._side = 1 - self._side
        return self._side, stage(requests, self._arena_of, self._side, batched=self._batched)

    def forget(self, request: Request) -> bool:
        """A request has left; whether it lay there, so that those behind it have to be copied anew."""
        return self._open is not None and self._open.forget(request)

    def drop(self) -> None:
        """What was copied ahead has gone another way."""
        self._open = None


class _Open:
    """A batch that is not decided yet: requests of one kind, each tensor in a room for a full batch of such rows."""

    def __init__(self, first: Request, capacity: int, arena_of: ArenaOf, side: int) -> None:
        self.kind = first.kind
        self._requests: list[Request] = []
        each = sum(len(tensor.data) for tensor in first.inputs) / first.rows
        rows = min(capacity, max(1, int(AHEAD_BYTES / max(1, each))))
        self._rooms = [_room(tensor, first.rows, rows) for tensor in first.inputs]
        self._offsets = [sum(self._rooms[:index]) for index in range(len(self._rooms))]
        # Where each request's rows end, tensor by tensor; in front, where those of the first begin.
        self._ends = [(0,) * len(self._rooms)]
        self._arena = arena_of(max(1, sum(self._rooms)), side)

    def begins_with(self, requests: Sequence[Request]) -> bool:
        """Whether anything of it is of use for these."""
        return bool(self._requests) and self._requests[0] is requests[0]

    def become(self, requests: Sequence[Request]) -> bool:
        """Makes it these, which may be fewer or others: False when not all of them have room."""
        same = 0
        for there, wanted in zip(self._requests, requests, strict=False):
            if there is not wanted:
                break
            same += 1
        self._cut(same)
        return all(self._add(request) for request in requests[same:])

    def forget(self, request: Request) -> bool:
        """Takes a request and those behind it out; False when it is not in."""
        for index, there in enumerate(self._requests):
            if there is request:
                self._cut(index)
                return True
        return False

    def references(self, batched: bool) -> list[engine_pb2.TensorRef]:
        """What lies where."""
        rows = sum(request.rows for request in self._requests)
        return [
            _reference(tensor, rows if batched else None, offset, size)
            for tensor, offset, size in zip(self._requests[0].inputs, self._offsets, self._ends[-1], strict=True)
        ]

    def _cut(self, count: int) -> None:
        del self._requests[count:], self._ends[count + 1 :]

    def _add(self, request: Request) -> bool:
        begins = self._ends[-1]
        ends = tuple([begin + len(tensor.data) for begin, tensor in zip(begins, request.inputs, strict=True)])
        if any([end > room for end, room in zip(ends, self._rooms, strict=True)]):
            return False
        for tensor, offset, begin in zip(request.inputs, self._offsets, begins, strict=True):
            _write(tensor, self._arena, offset + begin)
        self._requests.append(request)
        self._ends.append(ends)
        return True


def worthwhile(request: Request) -> bool:
    """Whether it is large enough to be copied before its batch is decided."""
    return any([len(tensor.data) >= WORTH_BYTES for tensor in request.inputs])


def stage(requests: Sequence[Request], arena_of: ArenaOf, side: int, *, batched: bool) -> list[engine_pb2.TensorRef]:
    """Writes the requests' rows into that side's arena, each byte copied once; what lies where.

    batched: the first dimension is rows, which add up.
    """
    references: list[engine_pb2.TensorRef] = []
    rows = sum([request.rows for request in requests]) if batched else None
    total = 0
    for index, first in enumerate(requests[0].inputs):
        size = sum([len(request.inputs[index].data) for request in requests])
        references.append(_reference(first, rows, total, size))
        total += _aligned(size)
    arena = arena_of(max(total, 1), side)
    for index, reference in enumerate(references):
        offset = reference.offset
        for request in requests:
            offset = _write(request.inputs[index], arena, offset)
    return references


def _write(tensor: Tensor | Referred, arena: memoryview, offset: int) -> int:
    """Copies a request's rows of one tensor; where they end."""
    data = tensor.data
    end = offset + len(data)
    if isinstance(data, Source):
        data.read_into(arena[offset:end])
    else:
        arena[offset:end] = data
    return end


def _reference(first: Tensor | Referred, rows: int | None, offset: int, size: int) -> engine_pb2.TensorRef:
    """One tensor of a batch. rows: of the whole batch, None where there is one request and no batch dimension."""
    shape = first.shape if rows is None else (rows, *first.shape[1:])
    return engine_pb2.TensorRef(name=first.name, datatype=first.datatype, shape=shape, offset=offset, size_bytes=size)


def _room(tensor: Tensor | Referred, rows: int, most: int) -> int:
    """Bytes for `most` rows like these; where rows differ in size, for some that are larger."""
    row = -(-len(tensor.data) // rows)
    return _aligned(row * most * (2 if tensor.datatype == "BYTES" else 1))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
