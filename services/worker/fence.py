"""When a worker lets go of callers who cannot hear it any more. Pure: times are passed in, monotonic seconds.

Once its lease is over, by its own clock, the cluster counts a worker as lost, and what it does for callers who are cut
off from it too is done for nobody. So it asks every caller for a sign of life, and lets go of those who give none, as
long as the lease is over. Callers who live are served on: an absent etcd alone must cost no request.
"""

from __future__ import annotations

import enum
from typing import Final

ANSWER_SECONDS: Final = 3.0
"""Within which a caller that lives gives a sign of it; callers expect the same of a worker."""


class Step(enum.Enum):
    """What to do now. RESET: let go of those who have not answered since ASK."""

    NOTHING = enum.auto()
    ASK = enum.auto()
    RESET = enum.auto()


class Fence:
    """Of one worker."""

    def __init__(self) -> None:
        self._asked: float | None = None

    def look(self, now: float, present: bool) -> Step:
        """The next step, which is taken with this. present: whether the cluster surely still sees the worker."""
        if present:
            self._asked = None
            return Step.NOTHING
        if self._asked is None:
            self._asked = now
            return Step.ASK
        if now - self._asked < ANSWER_SECONDS:
            return Step.NOTHING
        self._asked = None
        return Step.RESET
