"""One inference call on its way to a replica and back without a task: the straight road that nearly all calls take.

What leaves the road (the replica refuses, the connection breaks) goes on as a task with `Inference.forward`, which
tries another replica; the caller notices nothing. What ends a call, and when, is the same on both roads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from penstock.errors import PenstockError, ResourceExhausted, Unavailable
from penstock.wire.call import Answer, Done, Pending

from .upstream import Place

GoOn = Callable[[str, PenstockError], Awaitable[Answer]]
"""Tries other replicas after the one at this address failed so; raises what ended the call."""
Ended = Callable[[str, BaseException | None], None]
"""Counts the call: OK or the code of an error, and the error."""


class Flight:
    """A call under way. It is what `Direct` gives: whoever lost interest calls `cancel`.

    place: the replica that it went to; done: told the end; go_on: the way after a failure that allows another try.
    """

    __slots__ = ("_done", "_ended", "_go_on", "_place", "_under_way")

    def __init__(self, place: Place, done: Done, go_on: GoOn, ended: Ended) -> None:
        self._place: Place | None = place
        self._done, self._go_on, self._ended = done, go_on, ended
        self._under_way: Pending | None = None

    def took_off(self, under_way: Pending) -> None:
        """The request is on its way."""
        self._under_way = under_way

    def landed(self, answer: Answer | None, problem: BaseException | None) -> None:
        """The replica answered, or did not."""
        place, self._place, self._under_way = self._place, None, None
        assert place is not None
        place.ended(problem)
        if answer is not None:
            self._ended("OK", None)
            self._done(answer, None)
        elif isinstance(problem, Unavailable | ResourceExhausted):
            self._under_way = asyncio.get_running_loop().create_task(self._try_again(place.address, problem))
        else:
            self._fail(problem)

    def cancel(self) -> None:
        """The caller has left, or his time is over."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            # A task that is cancelled before its first step never hears of it, so the call is counted here.
            under_way.cancel()
            place, self._place = self._place, None
            if place is not None:
                place.left()
            self._ended("CANCELLED", None)

    async def _try_again(self, address: str, failure: PenstockError) -> None:
        try:
            answer = await self._go_on(address, failure)
        except Exception as problem:
            self._under_way = None
            self._fail(problem)
        else:
            self._under_way = None
            self._ended("OK", None)
            self._done(answer, None)

    def _fail(self, problem: BaseException | None) -> None:
        self._ended(problem.code.name if isinstance(problem, PenstockError) else "INTERNAL", problem)
        self._done(None, problem)
