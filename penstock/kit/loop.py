"""The event loop of every service process."""

from __future__ import annotations

import time

import uvloop


class Loop(uvloop.Loop):
    """uvloop with a clock that goes on inside a turn of the loop.

    uvloop's own is read once per turn, in milliseconds. A process that was frozen in the midst of a turn would not see
    that its lease is over, and whatever takes less than a millisecond would seem to take no time.
    """

    time = staticmethod(time.monotonic)
