"""Shape profiles of a compiled engine: from the sizes that a caller names, or from the batches that were seen (pure).

An engine is tuned at the profile's best shape and works from the smallest to the largest. One profile is the rule;
where traffic has two humps that are far apart, a second one serves the small batches, which would run in kernels
tuned for large ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from penstock.errors import InvalidArgument

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input → smallest, best, largest shape."""

APART = 8
"""Batches this many times larger than others are another hump."""
ENOUGH = 0.1
"""A hump has at least this share of the rows on either side."""


def batch_ranges(seen: Mapping[int, int], largest: int) -> list[tuple[int, int, int]]:
    """Smallest, best and largest batch of each profile, one or two, largest last.

    seen: size of a batch → how often. largest: what the model is served with at most; sizes above it count as it. The
    best is the size at which most rows were served (size times count), so that the engine is fast where the work is.
    Without traffic the best is the largest: a full batch is what the greedy batcher makes under load.
    """
    if largest < 1:
        raise InvalidArgument("the largest batch is at least 1", field="batch.max")
    rows: dict[int, int] = {}
    for size, count in seen.items():
        if size < 1 or count < 0:
            raise InvalidArgument(f"a batch of {size} seen {count} times cannot be", field="batch.seen")
        rows[min(size, largest)] = rows.get(min(size, largest), 0) + min(size, largest) * count
    total = sum(rows.values())
    if not total:
        return [(1, largest, largest)]
    best = max(sorted(rows), key=lambda size: rows[size])
    split = _split(rows, total)
    if split is None:
        return [(1, best, largest)]
    low = {size: count for size, count in rows.items() if size <= split}
    high = {size: count for size, count in rows.items() if size > split}
    return [
        (1, max(sorted(low), key=lambda size: low[size]), split),
        (1, max(sorted(high), key=lambda size: high[size]), largest),
    ]


def _split(rows: Mapping[int, int], total: int) -> int | None:
    """The last size of the lower hump, or None where there is one hump: a gap of APART with ENOUGH on both sides."""
    sizes = sorted(rows)
    below = 0
    for small, large in itertools.pairwise(sizes):
        below += rows[small]
        if large >= APART * small and below >= ENOUGH * total and total - below >= ENOUGH * total:
            return small
    return None


def profiles(
    inputs: Mapping[str, Sequence[int | str]],
    batches: Sequence[tuple[int, int, int]],
    sizes: Mapping[str, Sequence[int]],
    exact: Mapping[str, Sequence[Sequence[int]]],
) -> tuple[Profile, ...]:
    """One profile per range of batches.

    inputs: name → shape, where a text is a dimension of that name. The first dimension, where it is not a number, is
    the batch; without `batches` it is a dimension like the others. sizes: dimension → smallest, best, largest. exact:
    input → the three shapes, as they are, in every profile. Raises InvalidArgument for a dimension without sizes and
    for shapes that contradict the model. No profile
    is needed where every dimension is a number: the answer is empty then.
    """
    unknown = sorted(set(exact) - set(inputs))
    if unknown:
        raise InvalidArgument(f"the model has no input {unknown[0][:60]!r}", field="profile")
    if all(isinstance(size, int) for shape in inputs.values() for size in shape):
        return ()
    made: list[Profile] = []
    for batch in batches or (None,):
        profile: Profile = {}
        for name, shape in inputs.items():
            three = exact[name] if name in exact else _sized(name, shape, batch, sizes)
            profile[name] = _checked(name, shape, three)
        if profile not in made:
            made.append(profile)
    return tuple(made)


def _sized(
    name: str, shape: Sequence[int | str], batch: tuple[int, int, int] | None, sizes: Mapping[str, Sequence[int]]
) -> list[list[int]]:
    three: list[list[int]] = [[], [], []]
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            found: Sequence[int] = (size, size, size)
        elif size in sizes:
            found = sizes[size]
        elif axis == 0 and batch is not None:
            found = batch
        else:
            raise InvalidArgument(
                f"the input {name} has the dimension {size!r}, which needs its smallest, best and largest size in "
                "`sizes`",
                field="sizes",
            )
        if len(found) != 3:
            raise InvalidArgument(f"{size}: three sizes are needed: smallest, best, largest", field="sizes")
        for shape_, one in zip(three, found, strict=True):
            shape_.append(one)
    return three


def _checked(name: str, shape: Sequence[int | str], three: Sequence[Sequence[int]]) -> tuple[Shape, Shape, Shape]:
    if len(three) != 3 or any(len(each) != len(shape) for each in three):
        raise InvalidArgument(f"{name}: three shapes of {len(shape)} dimensions are needed", field="profile")
    for axis, size in enumerate(shape):
        low, best, high = (each[axis] for each in three)
        if not 1 <= low <= best <= high < 1 << 31:
            raise InvalidArgument(f"{name}: {low}, {best}, {high} do not rise", field="profile")
        if isinstance(size, int) and (low, high) != (size, size):
            raise InvalidArgument(f"{name}: dimension {axis} is {size} in the model", field="profile")
    low_, best_, high_ = (tuple(each) for each in three)
    return low_, best_, high_
