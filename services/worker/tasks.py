"""Structured waiting: run several coroutines until one of them ends, or all have; run something in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def first(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns when one of the coroutines ends, after cancelling the others and waiting for their clean-up.

    Raises what the first one that failed raised. Cancelling the caller cancels all.
    """
    with _one_failure():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            # Here, not in the group's exit: there Python 3.11 leaves the caller marked as cancelled when a task fails.
            await asyncio.wait(tasks)


async def every(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns when all have ended. When one fails the others are cancelled, and what it raised is raised.

    Cancelling the caller cancels all.
    """
    with _one_failure():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            if tasks:
                await asyncio.wait(tasks)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Like asyncio.to_thread, but a cancelled caller waits for the thread, which may be writing to his file."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


@contextmanager
def _one_failure() -> Iterator[None]:
    """The first failure of a task group instead of the group of them."""
    try:
        yield
    except BaseExceptionGroup as failures:
        caller = asyncio.current_task()
        if caller is not None and caller.cancelling():
            # A task group forgets that its caller was cancelled when one of its tasks fails in the same moment.
            raise asyncio.CancelledError from None
        raise failures.exceptions[0] from None
