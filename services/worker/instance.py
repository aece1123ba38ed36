"""One engine of a replica as the batcher sees it: what it does now, and whether it is well."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, Protocol

from penstock.errors import PenstockError, Unavailable
from penstock.internal.v1 import engine_pb2
from penstock.kit.log import get_logger

from . import rows
from .batching import BatchPolicy, Waiting
from .canary import Canary
from .costs import Costs
from .engines.engine import DeviceLost
from .seat import Seat
from .staging import Staging

HUNG: Final = "the model's engine does not answer; it is being restarted"
LOST: Final = "the model's engine ended unexpectedly; it is being restarted"

UNBATCHED: Final = BatchPolicy()

log = get_logger()


class Outcome(Protocol):
    """What one run of an engine gave. The outputs' data is valid until the next run on the same side."""

    @property
    def outputs(self) -> Sequence[rows.Output]: ...
    @property
    def row_failures(self) -> Mapping[int, PenstockError]: ...
    @property
    def preprocess_ns(self) -> int: ...
    @property
    def infer_ns(self) -> int: ...
    @property
    def postprocess_ns(self) -> int: ...


class EngineRunner(Protocol):
    """The part of host.EngineHost that the batcher uses. A run is begun, then finished; a side is 0 or 1, and what lies
    on the other one is left alone by it."""

    @property
    def alive(self) -> bool: ...
    @property
    def costs(self) -> Costs: ...
    def staging(self, size: int, side: int) -> memoryview: ...
    async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None: ...
    async def finish(self) -> Outcome: ...
    async def check(self) -> None: ...
    async def died(self) -> None: ...


class EngineHung(Unavailable):
    """The engine has not answered for so long that it is given up."""


class Instance:
    """An engine and what its batcher keeps of it.

    batches: how many it has answered. free_at: when what it runs should end, on the loop's clock; 0 while it runs
    nothing.
    halves: of a batch that was too large for its memory, those that are to run yet.
    """

    def __init__(self, engine: EngineRunner, policy: BatchPolicy = UNBATCHED) -> None:
        self.engine = engine
        self.staging = Staging(engine.staging, capacity=policy.capacity, batched=bool(policy.max_batch_size))
        self.halves: deque[Sequence[Waiting[Seat]]] = deque()
        self.canary = Canary()
        self.batches = 0
        self.free_at = 0.0
        self._seen = 0

    def look(self) -> None:
        """Asked once a while: it is due for a check when it has answered nothing since the last look, be it that nobody
        asked or that every batch failed."""
        if self.batches == self._seen and not self.free_at:
            self.canary.due = True
        self._seen = self.batches

    async def check(self, clock: Callable[[], float]) -> None:
        """Raises EngineHung, DeviceLost, or Unavailable when the engine fails its samples."""
        self.canary.due = False
        started = clock()
        try:
            async with asyncio.timeout(self.canary.limit):
                await self.engine.check()
            self.canary.sang(clock() - started)
        except TimeoutError:
            raise EngineHung(HUNG) from None
        except DeviceLost:
            raise
        except PenstockError as error:
            log.warning("check_failed", problem=error.message, detail=error.detail)
            if self.canary.failed():
                raise Unavailable("the model's engine fails to run; it is being restarted") from None

    async def ended(self) -> NoReturn:
        """Raises Unavailable once the engine's process is gone."""
        await self.engine.died()
        raise Unavailable(LOST)
