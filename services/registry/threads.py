"""Blocking work off the event loop: SQL and files.

A caller that is cancelled waits until the thread has let go, so that nobody closes a file or a connection under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A small pool of threads with a name."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's answer. Cancelled, it still lets the function end before it raises."""
        future = asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            if not future.cancelled():
                future.exception()  # Seen, so that asyncio does not report it as lost.
            raise cancelled
        return future.result()

    def close(self) -> None:
        """Waits for what runs, takes nothing more."""
        self._pool.shutdown(wait=True)
