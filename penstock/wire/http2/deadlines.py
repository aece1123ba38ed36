"""Deadlines of many calls at the price of one timer: they are kept by tick, and end up to one tick late."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

TICK: Final = 0.005
"""Seconds. Calls are never ended early."""


class Expiring(Protocol):
    """Something with an end. tick: where it is kept, 0 for nowhere; only this module sets it."""

    deadline: float
    tick: int

    def expire(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Of one event loop. The timer runs only while there is something to end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks: dict[int, dict[Expiring, None]] = {}
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: Expiring) -> None:
        """Ends the item at its deadline, unless it is discarded before. Infinity is never."""
        if item.tick or item.deadline == float("inf"):
            return
        tick = int(item.deadline / TICK) + 1
        if self._timer is None:
            self._next = int(self._loop.time() / TICK)
            self._timer = self._loop.call_later(TICK, self._turn)
        # What is late already ends with the next turn.
        tick = max(tick, self._next)
        item.tick = tick
        kept = self._ticks.get(tick)
        if kept is None:
            self._ticks[tick] = {item: None}
        else:
            kept[item] = None

    def discard(self, item: Expiring) -> None:
        """The item has ended otherwise."""
        tick, item.tick = item.tick, 0
        kept = self._ticks.get(tick)
        if kept is not None:
            kept.pop(item, None)
            if not kept:
                del self._ticks[tick]

    def close(self) -> None:
        """Forgets everything."""
        self._ticks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        now = int(self._loop.time() / TICK)
        due: list[Expiring] = []
        if now - self._next > len(self._ticks):
            late = sorted(tick for tick in self._ticks if tick <= now)
        else:
            late = [tick for tick in range(self._next, now + 1) if tick in self._ticks]
        for tick in late:
            due.extend(self._ticks.pop(tick))
        self._next = now + 1
        self._timer = None
        try:
            for item in due:
                item.tick = 0
                item.expire()
        finally:
            if self._ticks and self._timer is None:
                self._timer = self._loop.call_later(TICK, self._turn)


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Deadlines] = WeakKeyDictionary()


def deadlines_of(loop: asyncio.AbstractEventLoop) -> Deadlines:
    """The one that all connections of a loop may share."""
    known = _of_loops.get(loop)
    if known is None:
        known = _of_loops[loop] = Deadlines(loop)
    return known
