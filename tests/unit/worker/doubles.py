"""An engine in this process, behind the contract of EngineHost (alive, staging, begin, finish, died, close), and
requests for it.

The double echoes: output `y` of a row is input `x` of that row. It checks what the batcher promises the engine: tensors
that lie inside the arena, do not overlap and have the size that their shape says; one run at a time; and nothing is
written to the side that a run has. What a side gave before is wiped when the next run on it begins.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import PenstockError
from penstock.internal.v1 import engine_pb2
from penstock.tensors import DATATYPES
from services.worker.batcher import Batcher
from services.worker.batching import BatchPolicy
from services.worker.codec import Request, Tensor
from services.worker.costs import UNKNOWN, Costs
from services.worker.metrics import ReplicaMetrics
from services.worker.statistics import Statistics


@dataclass(frozen=True)
class EchoOutput:
    """One output of a run."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass
class EchoOutcome:
    """What one run gave."""

    outputs: list[EchoOutput]
    row_failures: dict[int, PenstockError] = field(default_factory=dict)
    preprocess_ns: int = 1_000
    infer_ns: int = 20_000
    postprocess_ns: int = 300


class Run:
    """A run that was begun. before: its input as it was then; data: as it is now."""

    def __init__(self, batch_size: int, x: engine_pb2.TensorRef, side: int, arena: bytearray, number: int) -> None:
        self.batch_size, self.x, self.side, self.number = batch_size, x, side, number
        self._arena = arena
        self.before = self.data
        self.rows = split_rows(x.datatype, list(x.shape), self.before) if batch_size else [self.before]

    @property
    def data(self) -> bytes:
        return bytes(self._arena[self.x.offset : self.x.offset + self.x.size_bytes])


class EchoEngine:
    """Answers what it is asked.

    Args:
        gate: when given, a run takes one permit of it before it answers, so that a test decides when batches end.
        behave: called with (batch number, rows as bytes); may raise to fail the batch or give failures by row.
    """

    def __init__(
        self,
        gate: asyncio.Semaphore | None = None,
        behave: Callable[[int, list[bytes]], dict[int, PenstockError]] | None = None,
    ) -> None:
        self.batches: list[list[bytes]] = []
        """Rows of `x` of each batch that was begun."""
        self.shapes: list[tuple[int, ...]] = []
        self.broken: list[str] = []
        """What the batcher has promised the engine and not kept."""
        self.started = asyncio.Semaphore(0)
        """Released once per batch that was begun."""
        self.memory_bytes = 12
        self.costs: Costs = UNKNOWN
        self.pid = 1
        self.closed = False
        self.gone = asyncio.Event()
        self.checks = 0
        self.sick: Callable[[], Awaitable[None]] | None = None
        """What a check does instead of nothing."""
        self._gate = gate
        self._behave = behave
        self._arenas = (bytearray(), bytearray())
        self._answers = (bytearray(1 << 16), bytearray(1 << 16))
        self._under_way: Run | None = None

    @property
    def alive(self) -> bool:
        return not self.gone.is_set()

    def staging(self, size: int, side: int) -> memoryview:
        if self._under_way is not None and self._under_way.side == side:
            self.broken.append("a side that a run has is staged anew")
        arena = self._arenas[side]
        if len(arena) < size:
            arena = bytearray(size)
            self._arenas = (arena, self._arenas[1]) if side == 0 else (self._arenas[0], arena)
        return memoryview(arena)

    async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None:
        try:
            self._check(batch_size, inputs, side)
        except AssertionError as problem:
            self.broken.append(str(problem))
            raise
        x = next(reference for reference in inputs if reference.name == "x")
        run = self._under_way = Run(batch_size, x, side, self._arenas[side], len(self.batches))
        self._answers[side][:] = b"?" * len(self._answers[side])
        self.batches.append(run.rows)
        self.shapes.append(tuple(x.shape))
        self.started.release()

    async def finish(self) -> EchoOutcome:
        run = self._under_way
        assert run is not None
        try:
            if self._gate is not None:
                await self._gate.acquire()
            await asyncio.sleep(0)
            failures = self._behave(run.number, run.rows) if self._behave is not None else {}
            if run.data != run.before:
                self.broken.append("what a run reads was written to")
        finally:
            self._under_way = None
        answer = self._answers[run.side]
        answer[: len(run.data)] = run.data
        output = EchoOutput("y", run.x.datatype, tuple(run.x.shape), memoryview(answer)[: len(run.data)])
        return EchoOutcome([output] if len(failures) < max(1, run.batch_size) else [], failures)

    async def check(self) -> None:
        self.checks += 1
        if self.sick is not None:
            await self.sick()

    async def died(self) -> None:
        await self.gone.wait()

    async def close(self) -> None:
        self.closed = True

    def _check(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None:
        assert self._under_way is None, "one run at a time"
        end = 0
        for reference in inputs:
            assert reference.offset >= end
            assert reference.offset % 64 == 0
            end = reference.offset + reference.size_bytes
            assert end <= len(self._arenas[side])
            width = DATATYPES[reference.datatype].size
            assert not width or math.prod(reference.shape) * width == reference.size_bytes
            assert not batch_size or reference.shape[0] == batch_size


def split_rows(datatype: str, shape: list[int], data: bytes) -> list[bytes]:
    """Rows of a raw tensor, found another way than the code under test does."""
    if datatype != "BYTES":
        step = len(data) // shape[0]
        return [data[index * step : (index + 1) * step] for index in range(shape[0])]
    per_row = math.prod(shape[1:])
    rows, elements, row = [], 0, b""
    while data:
        length = 4 + int.from_bytes(data[:4], "little")
        row, data, elements = row + data[:length], data[length:], elements + 1
        if elements == per_row:
            rows.append(row)
            row, elements = b"", 0
    return rows


def request(
    data: bytes,
    *,
    rows: int = 1,
    datatype: str = "UINT8",
    batched: bool = True,
    priority: int = 0,
    timeout: float | None = None,
    width: int | None = None,
) -> Request:
    """A checked request whose input `x` is `data`, `rows` rows of it."""
    if width is None:
        width = 1 if datatype == "BYTES" else len(data) // rows // DATATYPES[datatype].size
    shape = (rows, width) if batched else (width,)
    tensor = Tensor("x", datatype, shape, data)
    kind = (datatype, shape[1:] if batched else shape)
    return Request("id", rows if batched else 1, kind, (tensor,), ("y",), priority, timeout)


def batcher(
    *engines: EchoEngine, statistics: Statistics | None = None, run_timeout: float = 30.0, **policy: Any
) -> Batcher:
    """A batcher in front of those engines."""
    return Batcher(
        engines,
        BatchPolicy(**{"max_batch_size": 4, **policy}),
        statistics=statistics or Statistics(),
        metrics=ReplicaMetrics("m", 1),
        run_timeout=run_timeout,
    )
