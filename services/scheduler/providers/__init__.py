"""Who starts and stops workers: one small protocol, so that what decides knows no cloud.

A provider is asked by the leading scheduler alone, never on a request's path, and may be asked the same again at any
time: `resize` says what should be, not what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Provider(Protocol):
    """Starts and stops the workers of pools.

    Every method raises PenstockError with what an operator should do, and `retry_after` where that was told.
    """

    async def size(self, pool: str) -> int:
        """How many workers the pool was last told to have, up or not; those that leave do not count."""
        ...

    async def resize(self, pool: str, count: int, leaving: Sequence[str]) -> None:
        """Lets the pool have so many. When it has more, `leaving` go first: ids of workers.

        Whoever goes is asked to, by SIGTERM, and given the time to drain. Returns once that is said, not when done.
        """
        ...
