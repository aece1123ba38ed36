"""What a batch takes in an engine that runs a few sizes only, and which of them does most for its time (pure; design
notes, batching B.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

Costs: TypeAlias = Mapping[int, float]
"""Time of a batch by its size in rows, of each size that the engine runs; any other is padded up to one of them."""

UNKNOWN: Final[Costs] = {}


def padded(rows: int, costs: Costs) -> int | None:
    """The size that so many rows run as; None where they are more than the largest."""
    return min((size for size in costs if size >= rows), default=None)


def best(rows: int, costs: Costs) -> int:
    """The one size to run next: padded if rows/s(up) ≥ down/s(down), else `down`, full. 0 where nothing is known."""
    up = padded(rows, costs)
    down = max((size for size in costs if size <= rows), default=None)
    if up is None or down is None:
        return up or down or 0
    return up if rows * costs[down] >= down * costs[up] else down


def fitting(rows: Sequence[int], costs: Costs) -> int:
    """How many to run now of requests that have so many rows each, the first first: all, padded up, or as many as fill
    a smaller size, where that does more useful rows for its time. At least one."""
    total = sum(rows)
    size = best(total, costs)
    kept = count = 0
    while count < len(rows) and kept + rows[count] <= size:
        kept += rows[count]
        count += 1
    up, down = padded(total, costs), padded(kept, costs)
    # Whole requests may fill less than the size.
    if not kept or down is None or (up is not None and total * costs[down] >= kept * costs[up]):
        return len(rows)
    return count
