"""An engine in this process, behind the contract of EngineHost (alive, staging, run, died, close), and requests for it.

The double echoes: output `y` of a row is input `x` of that row. It checks what the batcher promises the engine: tensors
that lie inside the arena, do not overlap and have the size that their shape says.
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
        self.pid = 1
        self.closed = False
        self.gone = asyncio.Event()
        self.checks = 0
        self.sick: Callable[[], Awaitable[None]] | None = None
        """What a check does instead of nothing."""
        self._gate = gate
        self._behave = behave
        self._arena = bytearray()
        self._answer = bytearray(1 << 16)

    @property
    def alive(self) -> bool:
        return not self.gone.is_set()

    def staging(self, size: int) -> memoryview:
        if len(self._arena) < size:
            self._arena = bytearray(size)
        return memoryview(self._arena)

    async def run(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef]) -> EchoOutcome:
        try:
            self._check(batch_size, inputs)
        except AssertionError as problem:
            self.broken.append(str(problem))
            raise
        x = next(reference for reference in inputs if reference.name == "x")
        data = bytes(self._arena[x.offset : x.offset + x.size_bytes])
        rows = split_rows(x.datatype, list(x.shape), data) if batch_size else [data]
        self.batches.append(rows)
        self.shapes.append(tuple(x.shape))
        self.started.release()
        number = len(self.batches) - 1
        if self._gate is not None:
            await self._gate.acquire()
        await asyncio.sleep(0)
        failures = self._behave(number, rows) if self._behave is not None else {}
        # The same buffer every time: an answer that was not copied out in time is overwritten.
        self._answer[:] = b"?" * len(self._answer)
        self._answer[: len(data)] = data
        output = EchoOutput("y", x.datatype, tuple(x.shape), memoryview(self._answer)[: len(data)])
        return EchoOutcome([output] if len(failures) < max(1, batch_size) else [], failures)

    async def check(self) -> None:
        self.checks += 1
        if self.sick is not None:
            await self.sick()

    async def died(self) -> None:
        await self.gone.wait()

    async def close(self) -> None:
        self.closed = True

    def _check(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef]) -> None:
        end = 0
        for reference in inputs:
            assert reference.offset >= end
            assert reference.offset % 64 == 0
            end = reference.offset + reference.size_bytes
            assert end <= len(self._arena)
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
