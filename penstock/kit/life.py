"""The life of a process of a service, whatever it does: start, ready, drain, stop; written once.

On SIGTERM or SIGINT: not ready → drain steps in order (leave the cluster, wait for callers to move) → stop accepting,
finish what is in flight → stop the background tasks → close steps in reverse order. A second signal ends at once.
When something fails, what is in flight is cut off, but background tasks and close steps end the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

from penstock.kit import log

Step = Callable[[], Awaitable[object]]

CLOSE_SECONDS = 10.0
"""What one close step may take; one that hangs must not keep the others from running."""


class Life:
    """Where a process hangs what it runs. id, address, admin_address: what the cluster is told of it.

    drain_seconds: for what is under way after the signal to stop.
    """

    id: str
    address: str
    admin_address: str
    second_signal: Any = signal.SIG_DFL
    """What takes a second signal: the system's way out, at once."""

    def __init__(self, drain_seconds: float) -> None:
        self.phase = "starting"
        self._drain_seconds = drain_seconds
        self._drain: list[Step] = []
        self._close: list[Step] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()

    def start(self, coroutine: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
        """Runs a coroutine for the life of the process; if it raises, the process stops with an error."""
        assert self._group is not None
        task = self._group.create_task(self._watched(coroutine, name), name=name)
        self._tasks.add(task)
        return task

    def on_drain(self, step: Step) -> None:
        """Adds a step between "not ready" and "stops accepting"."""
        self._drain.append(step)

    def on_close(self, step: Step) -> None:
        """Adds a step after the servers have stopped."""
        self._close.append(step)

    def stop(self) -> None:
        """Begins the end, as SIGTERM does."""
        self._stop.set()

    async def serve(self, assemble: Callable[[Self], Awaitable[None]]) -> None:
        """The whole life. Raises a group of what assembling, a background task or a step of the end raised."""
        failures: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    self.begin()
                    if await self._assembled(group, assemble) and await self._opened():
                        await self._stop.wait()
                    failures += await self._shut_down()
                finally:
                    for task in self._tasks:
                        task.cancel()
        finally:
            # Empty after a shutdown; after a failure, what nobody is left to serve.
            await self.cut_off()
            for step in reversed(self._close):
                failures += await _taken(step, "close_step_failed", CLOSE_SECONDS)
        if failures:
            raise ExceptionGroup("steps of the end failed", failures)
        log.get_logger().info("stopped")

    # What kinds of process differ in.

    def begin(self) -> None:
        """Before assembling: the admin port, and tasks that tell of the process."""

    async def open(self) -> None:
        """After assembling: takes requests."""

    def opened(self) -> None:
        """Requests are taken: says so to whoever asks."""

    def leave(self) -> None:
        """The end has begun: says so to whoever asks."""

    async def drain(self, seconds: float) -> None:
        """Stops accepting and waits for what is in flight; cuts off what is left after `seconds`."""

    async def cut_off(self) -> None:
        """Ends what still runs, now."""

    # The way through.

    async def _assembled(self, group: asyncio.TaskGroup, assemble: Callable[[Self], Awaitable[None]]) -> bool:
        async def assembling() -> None:
            try:
                await assemble(self)
            except Exception:
                log.get_logger().exception("start_failed")
                raise

        return await self._unless_stopped(group, assembling())

    async def _opened(self) -> bool:
        assert self._group is not None
        if not await self._unless_stopped(self._group, self.open()):
            return False
        self.phase = "serving"
        self.opened()
        log.get_logger().info("started", address=self.address, admin=self.admin_address)
        return True

    async def _unless_stopped(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> bool:
        """Runs it; False when a signal came first, for it may be waiting for something that is away."""
        running, stopped = group.create_task(work), group.create_task(self._stop.wait())
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        stopped.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return not running.cancelled()

    async def _shut_down(self) -> list[Exception]:
        """Every step is taken, whatever became of the ones before it; returns what they raised."""
        log.get_logger().info("draining", seconds=self._drain_seconds)
        self.phase = "draining"
        self.leave()
        failures: list[Exception] = []
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._drain_seconds
        for step in self._drain:
            failures += await _taken(step, "drain_step_failed", deadline - clock())
        await self.drain(max(1.0, deadline - clock()))
        return failures

    async def _watched(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        try:
            await coroutine
        except Exception:
            log.get_logger().exception("task_failed", task=name)
            raise
        finally:
            if task := asyncio.current_task():
                self._tasks.discard(task)


async def _taken(step: Step, event: str, seconds: float) -> list[Exception]:
    """What the step raised, if anything; it is cancelled when its time is over."""
    name = getattr(step, "__qualname__", repr(step))
    limit = asyncio.timeout(max(0.0, seconds))
    try:
        async with limit:
            await step()
    except Exception as problem:
        if isinstance(problem, TimeoutError) and limit.expired():
            log.get_logger().warning("step_unfinished", step=name)
            return []
        log.get_logger().exception(event, step=name)
        return [problem]
    return []


def stop_on_signals(life: Life) -> None:
    """The first SIGTERM or SIGINT begins the end; the next one, whichever of the two, ends at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, life.second_signal)
        life.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop)
