"""One engine of a replica as the batcher sees it: what it does now, and whether it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, Protocol

from penstock.errors import PenstockError, Unavailable
from penstock.internal.v1 import engine_pb2
from penstock.kit.log import get_logger

from . import rows
from .canary import Canary
from .engines.engine import DeviceLost

HUNG: Final = "the model's engine does not answer; it is being restarted"
LOST: Final = "the model's engine ended unexpectedly; it is being restarted"

log = get_logger()


class Outcome(Protocol):
    """What one run of an engine gave. The outputs' data is valid until the next run."""

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
    """The part of host.EngineHost that the batcher uses."""

    @property
    def alive(self) -> bool: ...
    def staging(self, size: int) -> memoryview: ...
    async def run(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef]) -> Outcome: ...
    async def check(self) -> None: ...
    async def died(self) -> None: ...


class EngineHung(Unavailable):
    """The engine has not answered for so long that it is given up."""


class Instance:
    """An engine and what its batcher keeps of it.

    batches: how many it has answered. free_at: when what it runs should end, on the loop's clock; 0 while it runs
    nothing.
    """

    def __init__(self, engine: EngineRunner) -> None:
        self.engine = engine
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
