"""One inference call on its way to a replica and back without a task: the straight road that nearly all calls take.

What leaves the road (the replica refuses, the connection breaks) goes on as a task with `Inference.forward`, which
tries another replica; the caller notices nothing. What ends a call, and when, is the same on both roads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from penstock.errors import PenstockError, ResourceExhausted, Unavailable
from penstock.wire.call import Answer, Done, Pending

from .upstream import Place

Way = Callable[[], Awaitable[Answer]]
"""A call's way as a task; raises what ended the call."""
GoOn = Callable[[str, PenstockError], Awaitable[Answer]]
"""Tries other replicas after the one at this address failed so; raises what ended the call."""
Ended = Callable[[str, BaseException | None], None]
"""Counts the call: OK or the code of an error, and the error."""


class Flight:
    """A call under way. It is what `Direct` gives: whoever lost interest calls `cancel`.

    place: the replica that it went to; done: told the end; go_on: the way after a failure that allows another try. One
    that does without these two goes by `detour` at once.
    """

    __slots__ = ("_done", "_ended", "_go_on", "_place", "_under_way")

    def __init__(self, place: Place | None, done: Done, go_on: GoOn | None, ended: Ended) -> None:
        self._place = place
        self._done, self._go_on, self._ended = done, go_on, ended
        self._under_way: Pending | None = None

    def took_off(self, under_way: Pending) -> None:
        """The request is on its way."""
        self._under_way = under_way

    def landed(self, answer: Answer | None, problem: BaseException | None) -> None:
        """The replica answered, or did not."""
        place, self._place, self._under_way = self._place, None, None
        assert place is not None and self._go_on is not None
        place.ended(problem)
        if answer is not None:
            self._ended("OK", None)
            self._done(answer, None)
        elif isinstance(problem, Unavailable | ResourceExhausted):
            self.detour(partial(self._go_on, place.address, problem))
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

    def detour(self, way: Way) -> None:
        """Goes on as a task."""
        self._under_way = asyncio.get_running_loop().create_task(self._go(way))

    async def _go(self, way: Way) -> None:
        try:
            answer = await way()
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
