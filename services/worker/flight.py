"""A batch in an engine, from its staging until its requests are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from penstock.errors import PenstockError
from penstock.kit import telemetry
from penstock.kit.spans import Span

from .batching import Waiting
from .codec import Tensor
from .instance import Outcome
from .rows import Sliced
from .seat import Seat

BATCH_SPAN: Final = "engine.batch"

Batch = Sequence[Waiting[Seat]]


class Flight:
    """started, took: when it was taken, on the loop's clock, and the seconds until the engine answered. whole: it is
    one request of a model without batch dimension. again: it may be tried once more, in halves. problem: why it never
    reached the engine."""

    __slots__ = ("again", "batch", "problem", "rows", "span", "staged_ns", "started", "took", "whole")

    def __init__(self, batch: Batch, started: float, *, whole: bool, again: bool) -> None:
        self.batch, self.started, self.whole, self.again = batch, started, whole, again
        self.rows = sum([waiting.rows for waiting in batch])
        self.span = _span(batch, self.rows)
        self.staged_ns, self.took = 0, 0.0
        self.problem: Exception | None = None

    @property
    def size(self) -> int:
        """The batch's size as the engine is told it."""
        return 0 if self.whole else self.rows

    def answers(self, outcome: Outcome) -> list[tuple[Seat, tuple[Tensor, ...] | PenstockError]]:
        """Each request's own rows, or why it has none; those who have left are left out. Views: a later run overwrites
        the outputs. Raises Internal."""
        sliced = Sliced(outcome.outputs, None if self.whole else self.rows, outcome.row_failures)
        first = 0
        found: list[tuple[Seat, tuple[Tensor, ...] | PenstockError]] = []
        for waiting in self.batch:
            seat = waiting.item
            if not seat.over:
                found.append((seat, sliced.take(first, waiting.rows, seat.request.outputs, seat.request.destinations)))
            first += waiting.rows
        return found


def _span(batch: Batch, size: int) -> Span | None:
    """A span linked to every traced request in the batch, child of the first; None when none is traced."""
    traced = [waiting.item.span for waiting in batch if waiting.item.span is not None]
    if not traced:
        return None
    parent = {telemetry.TRACEPARENT: traced[0].traceparent}
    return telemetry.begin(BATCH_SPAN, parent, links=traced, batch_size=size, requests=len(batch))
