"""What is tried again of a batch that the engine had no memory for. Pure.

Once, in two halves: a device that others fill has room again in a moment or for less, and one that has not for half of
a batch is not helped by four quarters, while every try takes time from those who wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class _Seat(Protocol):
    @property
    def over(self) -> bool: ...


class _Waiting(Protocol):
    @property
    def rows(self) -> int: ...
    @property
    def item(self) -> _Seat: ...


W = TypeVar("W", bound=_Waiting)


def halves(batch: Sequence[W]) -> tuple[Sequence[W], ...]:
    """Two runs in place of one, in the same order and of as equal rows as whole requests allow, without those whose
    callers have left; nothing when a single request is all there is: then there is nothing smaller to try."""
    there = [waiting for waiting in batch if not waiting.item.over]
    if len(there) < 2:
        # Those who left made room for the one who stayed.
        return (there,) if there and len(batch) > 1 else ()
    total = sum(waiting.rows for waiting in there)
    ahead, best, cut = 0, total, 1
    for index, waiting in enumerate(there[:-1], start=1):
        ahead += waiting.rows
        if abs(total - 2 * ahead) < best:
            best, cut = abs(total - 2 * ahead), index
    return there[:cut], there[cut:]
