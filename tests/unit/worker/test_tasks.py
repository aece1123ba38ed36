"""Waiting for one of several coroutines, or for all: who is cancelled, and which failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from services.worker.tasks import every, first


async def ends() -> None:
    await asyncio.sleep(0)


async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("first")


class Waiter:
    """Waits for ever, and cleans up in two steps; breaks: fails in the second."""

    def __init__(self, breaks: bool = False) -> None:
        self.cleaned = False
        self._breaks = breaks

    async def waits(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            self.cleaned = True
            if self._breaks:
                raise ValueError("later")


async def test_the_first_that_ends_ends_the_others() -> None:
    other = Waiter()
    await first(other.waits(), ends())
    assert other.cleaned


async def test_the_first_failure_is_told() -> None:
    other = Waiter()
    with pytest.raises(ValueError, match="first"):
        await first(other.waits(), fails())
    assert other.cleaned
    with pytest.raises(ValueError, match="first"):
        await every(ends(), fails(), Waiter().waits())


async def test_a_failure_while_the_others_clean_up_is_no_cancellation() -> None:
    with pytest.raises(ValueError, match="later"):
        await first(Waiter(breaks=True).waits(), ends())
    caller = asyncio.current_task()
    assert caller is not None and not caller.cancelling()


async def test_all_are_waited_for() -> None:
    done: list[int] = []

    async def does(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        done.append(number)

    await every(does(3), does(1), does(2))
    assert done == [1, 2, 3]
    await every()


@pytest.mark.parametrize("wait", [first, every])
async def test_a_cancelled_caller_cancels_all(wait: Callable[..., Coroutine[Any, Any, None]]) -> None:
    others = Waiter(), Waiter(breaks=True)
    waiting = asyncio.ensure_future(wait(*(other.waits() for other in others)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert all(other.cleaned for other in others)
