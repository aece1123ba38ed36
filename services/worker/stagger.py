"""How long loads wait that are ordered together, so that many workers do not ask a registry in the same instant. Pure.

A single load waits for nothing: somebody waits for it. Loads that come together would take turns anyway, so all but the
first begin at times drawn at random. A worker that is started finds orders from before, and beside it others may have
been started that find theirs: then the first is drawn too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SPREAD: Final = 1.0
"""Seconds within which loads begin that are ordered together."""


def pauses(loads: int, *, found: bool, chance: Callable[[], float]) -> list[float]:
    """Seconds that each of so many loads waits before it asks for what is not on this worker's disk.

    found: they were ordered before this worker was started. chance: the next number drawn from [0, 1).
    """
    return [SPREAD * chance() if found or number else 0.0 for number in range(loads)]
