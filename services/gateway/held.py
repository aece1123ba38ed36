"""A call that waits for its version to be loaded, without a task: a thousand of them that come at once must not be felt
by those who call other models.

It is counted once, whatever ends it: the reason why it waited in vain, its caller, or the flight that follows the wait.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.errors import PenstockError, Unavailable
from penstock.wire.call import Call, Done, Pending

from .flight import Ended
from .header import RoutingHeader
from .room import Place, Room


class Held:
    """It is what `Direct` gives for such a call.

    fly: begins the call once its turn has come, and has `over` told the end; raises Unavailable when the version has
    gone again, and any PenstockError. count: told the end. Raises what `Room.enter` does.
    """

    __slots__ = ("_call", "_count", "_done", "_fly", "_pending", "_place", "_room", "_target")

    def __init__(
        self,
        room: Room,
        call: Call,
        target: RoutingHeader,
        refusal: Unavailable,
        *,
        fly: Callable[[Held], Pending],
        count: Ended,
        done: Done,
    ) -> None:
        self._room, self._call, self._target = room, call, target
        self._fly, self._count, self._done = fly, count, done
        self._pending: Pending | None = None
        self._place: Place = room.enter(call, target, refusal, self._go, self._give_up)

    @property
    def place(self) -> Place:
        """In the room."""
        return self._place

    def over(self, code: str, problem: BaseException | None) -> None:
        """The call has ended, after its wait."""
        self._pending = None
        self._room.ended(self._place)
        self._count(code, problem)

    def cancel(self) -> None:
        """The caller has left, or his time is over. Nothing once the call has ended."""
        if self._pending is not None:
            self._pending.cancel()
        elif self._place.waits:
            self._room.leave(self._place)
            self._count("CANCELLED", None)

    def _go(self) -> None:
        try:
            self._pending = self._fly(self)
        except Unavailable as again:
            self._room.ended(self._place)
            self._wait_again(again.with_traceback(None))
        except Exception as problem:
            self._room.ended(self._place)
            self._give_up(problem)

    def _wait_again(self, refusal: Unavailable) -> None:
        try:
            self._place = self._room.enter(self._call, self._target, refusal, self._go, self._give_up)
        except PenstockError as problem:
            self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        self._count(problem.code.name if isinstance(problem, PenstockError) else "INTERNAL", problem)
        self._done(None, problem)
