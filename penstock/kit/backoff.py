"""Pauses between tries: doubling from a start to a cap, each shortened at random so that crowds spread out."""

from __future__ import annotations

import random


class Backoff:
    """first, cap: seconds. `reset` after a success."""

    def __init__(self, first: float = 0.05, cap: float = 1.0) -> None:
        self._first = first
        self._cap = cap
        self._tries = 0

    def next(self) -> float:
        """Seconds to pause now: between half and all of the doubled pause, at most the cap."""
        whole = min(self._cap, self._first * float(1 << min(self._tries, 32)))
        self._tries += 1
        return whole * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._tries = 0
