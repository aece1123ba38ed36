"""Which sizes of batch a plan is run with, and how so many rows are made of them (pure; design notes, batching B.4).

A captured graph has one size, so a plan is run with a few sizes only: about ten up to 32. Rows that are no such size
are padded up to the next, or run as a full smaller one and the rest, whichever does more useful rows in a millisecond.
The batcher knows the times, too (`costs.py`), and leaves the rest in its queue where it can; what comes here that is no
such size are requests of many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...costs import best, padded

SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class Bucket:
    """rows: of the batch; profile: index of the optimisation profile that takes them."""

    rows: int
    profile: int


def buckets(ranges: Sequence[tuple[int, int, int]], most: int) -> list[Bucket]:
    """The sizes to run, smallest first.

    ranges: least, best and most rows of each profile. most: the largest batch that will be asked for; where profiles
    take only larger ones, their least is the bucket. Of several profiles the narrowest that takes a size has it: it was
    tuned for fewer.
    """
    wanted = {*SIZES, *(size for limits in ranges for size in limits), most}
    found = []
    for size in sorted(wanted):
        fitting = [index for index, (least, _, top) in enumerate(ranges) if least <= size <= top]
        if fitting and size > 0:
            narrowest = min(fitting, key=lambda index: ranges[index][2] - ranges[index][0])
            found.append(Bucket(size, narrowest))
            if size >= most:
                break
    return found


def split(rows: int, milliseconds: Mapping[int, float]) -> list[int]:
    """Sizes that hold so many rows together, in the order in which to run them.

    All of them have to be run before the first can be answered, so the smaller pieces must be quicker together, too,
    than one padded bucket.
    """
    pieces, left = [], rows
    while left > 0:
        size = best(left, milliseconds)
        pieces.append(size)
        left -= size
    up = padded(rows, milliseconds)
    if up is not None and milliseconds[up] <= sum(milliseconds[size] for size in pieces):
        return [up]
    return pieces
