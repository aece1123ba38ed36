"""Wishes that workers be empty, and when they are forgotten: a machine that is away for maintenance comes back drained,
one that never does leaves nothing behind. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

PATIENCE: Final = 600.0
"""Seconds that a worker may be gone, as one leader sees it, before it is gone for good."""


class Drains:
    """Since when drained workers are gone. patience: seconds."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._gone: dict[str, float] = {}

    def observe(self, drained: Collection[str], live: Collection[str], now: float) -> None:
        """Which workers somebody wants empty, and which are there."""
        self._gone = {worker: self._gone.get(worker, now) for worker in drained if worker not in live}

    def forgotten(self, now: float) -> list[str]:
        """Workers that are gone for good."""
        return sorted(worker for worker, since in self._gone.items() if now - since >= self._patience)

    def next_end(self, now: float) -> float | None:
        """Seconds until the next of them is; None when none will be."""
        return min((since + self._patience - now for since in self._gone.values()), default=None)
