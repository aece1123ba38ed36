"""Which failed call is tried again, and after how long (pure: no clock, no sleeping).

A retry is worth it when nothing was changed by the failed call and another moment may go better. A budget keeps a
client from multiplying the load of a server that is down: every answered call earns a tenth of a retry, up to ten.
"""

from __future__ import annotations

import random
from typing import Final

from penstock.errors import PenstockError, Unavailable

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
CAPACITY: Final = 10.0
EARNED: Final = 0.1


class Budget:
    """Retries that one client may spend."""

    def __init__(self) -> None:
        self._tokens = CAPACITY

    def answered(self) -> None:
        """A call was answered, well or not: the server is there."""
        self._tokens = min(CAPACITY, self._tokens + EARNED)

    def spend(self) -> bool:
        """Takes one retry; False when none is left."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def pause_before_retry(
    error: PenstockError, attempt: int, retries: int, budget: Budget, remaining: float | None
) -> float | None:
    """Seconds to wait before trying again, or None to give up and raise.

    attempt: how many retries there were; remaining: seconds left to the deadline, None for no deadline. Only
    Unavailable is tried again, and only when the pause ends before the deadline does.
    """
    if not isinstance(error, Unavailable) or attempt >= retries:
        return None
    ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
    pause = max(error.retry_after or 0.0, random.uniform(ceiling / 2, ceiling))
    if remaining is not None and pause >= remaining:
        return None
    return pause if budget.spend() else None
