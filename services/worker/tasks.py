"""Structured waiting: run several coroutines until one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns when one of the coroutines ends, after cancelling the others and waiting for their clean-up.

    Raises what the first one that failed raised. Cancelling the caller cancels all.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        caller = asyncio.current_task()
        if caller is not None and caller.cancelling():
            # A task group forgets that its caller was cancelled when one of its tasks fails in the same moment.
            raise asyncio.CancelledError from None
        raise failures.exceptions[0] from None
