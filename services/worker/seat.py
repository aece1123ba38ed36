"""A request in the batcher, from its coming to its end, and what it takes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from penstock.errors import PenstockError
from penstock.kit.log import get_logger
from penstock.kit.spans import Span

from .batching import Waiting
from .codec import Request, Tensor

log = get_logger()


@dataclass(slots=True)
class Ride:
    """What a request met on its way: rows of its batch, seconds in the queue, nanoseconds of each part."""

    batch_rows: int
    queue_seconds: float
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class Result:
    """The outputs that a request asked for, and its ride. Where it is handed to an `Ended`, the outputs' data are views
    that are valid until that returns."""

    outputs: tuple[Tensor, ...]
    ride: Ride


Ended = Callable[[Result | PenstockError], None]
"""Told how a request ended; does not raise."""


class Seat:
    """A request in the batcher, from `enter` until it ends or its caller leaves. leave: tells the batcher so."""

    __slots__ = ("_kept", "_leave", "arrived", "deadline", "ended", "over", "request", "span", "timer", "waiting")

    def __init__(
        self, leave: Callable[[Seat], None], request: Request, arrived: float, deadline: float, span: Span | None
    ) -> None:
        self._leave, self.request, self.arrived, self.deadline, self.span = leave, request, arrived, deadline, span
        self.ended: Ended | None = None
        self.over = False
        self.waiting: Waiting[Seat] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._kept: AbstractContextManager[object] | None = None

    def keep(self, kept: AbstractContextManager[object]) -> None:
        """Leaves this context when the request has ended, however it ends: what its tensors lie in."""
        self._kept = kept

    def release(self) -> None:
        """The request has ended and everybody has been told."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.__exit__(None, None, None)

    def tell(self, result: Result | PenstockError) -> None:
        """Says how it ended, to whoever still waits for it, and releases it."""
        ended, self.ended = self.ended, None
        if ended is not None:
            try:
                ended(result)
            except Exception:
                log.exception("answer_failed")
        self.release()

    def cancel(self) -> None:
        """The caller leaves: he is told nothing more. Nothing if the request has ended."""
        if not self.over:
            self._leave(self)
