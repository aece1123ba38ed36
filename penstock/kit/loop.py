"""The event loop of every service process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import uvloop


class Loop(uvloop.Loop):
    """uvloop with a clock that goes on inside a turn of the loop, and timers that are never early by it.

    uvloop's own clock is read once per turn, in milliseconds, and its timers go by that. A process that was frozen in
    the midst of a turn would not see that its lease is over, whatever takes less than a millisecond would seem to take
    no time, and what a timer wakes would find that its time has not come.
    """

    time = staticmethod(time.monotonic)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio. Up to two milliseconds late: uvloop counts from the beginning of the turn, and rounds."""
        delay = max(0.0, when - super().time() + 0.001)
        return super().call_later(delay, callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        if delay <= 0:
            return super().call_later(0, callback, *args, context=context)
        return self.call_at(time.monotonic() + delay, callback, *args, context=context)
