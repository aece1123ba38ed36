"""When an idle engine is asked whether it still answers, and for how long it may take. Pure.

A process that is alive says little: an engine may hang, or its device may be lost. So an engine that nobody asks is
asked to run the smallest sample of its warm-up. An engine that works proves itself by that.
"""

from __future__ import annotations

from typing import Final

EVERY: Final = 5.0
SHARE: Final = 0.01
"""Of an engine's time that canaries may take: those of a slow model come more rarely."""
PATIENCE: Final = 10.0
FACTOR: Final = 20.0
FAILURES: Final = 2
"""Failed canaries in a row after which the engine is given up: one may be the machine's trouble."""


class Canary:
    """The canaries of one engine."""

    def __init__(self) -> None:
        self.due = False
        self._took = 0.0
        self._failed = 0

    @property
    def pause(self) -> float:
        """Seconds until the next one."""
        return max(EVERY, self._took / SHARE)

    @property
    def limit(self) -> float:
        """Seconds after which an engine that does not answer hangs."""
        return max(PATIENCE, FACTOR * self._took)

    def sang(self, took: float) -> None:
        """The engine answered, after so many seconds."""
        self._took, self._failed = took, 0

    def failed(self) -> bool:
        """The engine answered with an error; True when it is to be given up."""
        self._failed += 1
        return self._failed >= FAILURES
