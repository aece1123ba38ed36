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

    async def until(self, condition: Callable[[], object], within: float = 10.0) -> None:
        """Waits until the condition holds; raises TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            while not condition():
                self._event.clear()
                await self._event.wait()
