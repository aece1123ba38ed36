"""Who goes on next, of the connections that have sent more calls at once than are begun in a turn of the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """One of them goes on in each turn of the loop, in the order in which they came: however many there are, a call of
    somebody else's waits for one portion."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], bool]] = deque()

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def add(self, go_on: Callable[[], bool]) -> None:
        """Takes the last place. go_on: begins a portion of calls; whether there are more now."""
        self._waiting.append(go_on)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        # It keeps its place until it has gone on: who comes meanwhile is not alone.
        more = self._waiting[0]()
        go_on = self._waiting.popleft()
        if more:
            self._waiting.append(go_on)
        if self._waiting:
            self._loop.call_soon(self._next)
