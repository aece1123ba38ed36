"""Pauses between tries: doubling from a start to a cap, each shortened at random so that crowds spread out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

EQUAL: Final = 0.5
"""Of a pause at least: enough for most, and never so short that a try follows upon the next."""


class Backoff:
    """first, cap: seconds. chance: the next number drawn from [0, 1). `reset` after a success."""

    def __init__(self, first: float = 0.05, cap: float = 1.0, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._cap = cap
        self._chance = chance
        self._tries = 0

    def next(self, least: float = EQUAL) -> float:
        """Seconds to pause now: between that share and all of the doubled pause, at most the cap. 0 spreads a crowd
        evenly that has failed in the same instant."""
        whole = min(self._cap, self._first * float(1 << min(self._tries, 32)))
        self._tries += 1
        return whole * (least + (1.0 - least) * self._chance())

    def reset(self) -> None:
        self._tries = 0
