"""Runs the first step of a coroutine at once, and makes a task of it only when it has to wait.

What answers without waiting costs no task and no turn of the loop. During the first step `asyncio.current_task()` is a
stand-in, which hands on to the task as soon as there is one: that is what `asyncio.timeout` and `TaskGroup` need.
(Python 3.12 has eager tasks of its own.)
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


class _StandIn:
    """The task that there may never be."""

    __slots__ = ("__weakref__", "_asked", "_loop", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked = 0
        self.task: asyncio.Task[None] | None = None

    def cancel(self, msg: Any = None) -> bool:
        if self.task is not None:
            return self.task.cancel(msg)
        self._asked += 1
        return True

    def cancelling(self) -> int:
        return self.task.cancelling() if self.task is not None else self._asked

    def uncancel(self) -> int:
        if self.task is not None:
            return self.task.uncancel()
        self._asked = max(0, self._asked - 1)
        return self._asked

    def done(self) -> bool:
        return self.task is not None and self.task.done()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def get_name(self) -> str:
        return self.task.get_name() if self.task is not None else "eager"

    def become(self, task: asyncio.Task[None]) -> None:
        self.task = task
        for _ in range(self._asked):
            task.cancel()


class _Rest(Coroutine[Any, Any, None]):
    """What is left of a coroutine that has taken its first step and waits for `waited`.

    Not an `async def` around it: a task that is cancelled before its first turn would never enter that one, and what
    has begun would not hear of its end.
    """

    __slots__ = ("_rest", "_then", "_waited")

    def __init__(self, rest: Any, waited: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        self._rest, self._waited, self._then = rest, [waited], then

    def send(self, value: Any) -> Any:
        if self._waited:
            return self._waited.pop()
        return self._step(self._rest.send, value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        self._waited.clear()
        return self._step(self._rest.throw, kind if value is None else value)

    def close(self) -> None:
        self._waited.clear()
        self._rest.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise RuntimeError("only a task runs this")

    def _step(self, act: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return act(argument)
        except StopIteration as ended:
            value, problem = ended.value, None
        except (KeyboardInterrupt, SystemExit):
            raise
        except asyncio.CancelledError as cancelled:
            self._then(None, cancelled)
            raise
        except BaseException as raised:
            value, problem = None, raised
        self._then(value, problem)
        raise StopIteration


def start(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    then: Callable[[Any, BaseException | None], None],
) -> asyncio.Task[None] | None:
    """Runs the coroutine in the context; the task when it has to wait, None when it is over already.

    then: called once with the result and what was raised instead, in the same turn as the end.
    """
    stand_in: Any = _StandIn(loop)
    before = asyncio.current_task(loop)
    if before is not None:
        _leave_task(loop, before)
    _enter_task(loop, stand_in)
    rest: Any = coroutine.__await__()
    try:
        waited = context.run(rest.send, None)
    except StopIteration as ended:
        value, problem = ended.value, None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as raised:
        value, problem = None, raised
    else:
        task = loop.create_task(_Rest(rest, waited, then), context=context)
        stand_in.become(task)
        return task
    finally:
        _leave_task(loop, stand_in)
        if before is not None:
            _enter_task(loop, before)
    then(value, problem)
    return None
