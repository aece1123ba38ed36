"""Waiting for a condition by the event that changes it, never by a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changed:
    """Pass it as `on_change`; `until` looks again after every call."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self._event.set()

    async def until(self, condition: Callable[[], object], within: float = 30.0) -> None:
        """Waits until the condition holds; raises TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            while not condition():
                self._event.clear()
                await self._event.wait()


async def settled(count: Callable[[], int], within: float = 60.0) -> int:
    """The number once it has stopped to grow: when it is above zero and five looks in a row have found the same, since
    one look may come early on a machine that has stood still."""
    before, same = 0, 0
    async with asyncio.timeout(within):
        while same < 5:
            await asyncio.sleep(0.1)  # nothing tells that nothing happens
            now = count()
            before, same = now, same + 1 if now == before > 0 else 0
    return before
