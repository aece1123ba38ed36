"""Gives the jobs their turns: a bounded number at once, in the order of asking, by one registry of those that share a
folder, and again from where they were when a registry was killed.

The right to run jobs is a lock on a file, which the kernel takes back from a process that dies.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from penstock.errors import PenstockError
from penstock.kit.log import get_logger
from penstock.v1 import builds_pb2 as pb

from .job import Bench, Job
from .store import Work

T = TypeVar("T")

MEASURE_SECONDS: Final = 60.0
"""Seconds between two looks at the size of the cache while no build ends."""

log = get_logger()

GENERIC = "something went wrong inside the builder; the operator's log says what"


class Bell:
    """Rung when something has changed; whoever waits looks again."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Wakes everybody who waits."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set with the next ring after this call."""
        return self._next


class Runner:
    """The jobs that run here.

    Args:
        bench: what they work with.
        at_once: jobs at the same time.
        lock: file that the registry which runs jobs holds.
        cached: bytes of results and of plans; blocking.
        interval: seconds between two looks at what other registries have written.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        at_once: int,
        lock: Path,
        cached: Callable[[], Mapping[str, int]],
        interval: float = 2.0,
    ) -> None:
        self._bench = bench
        self._at_once = at_once
        self._lock = lock
        self._cached = cached
        self._interval = interval
        self._measured = -MEASURE_SECONDS
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()

    def wake(self) -> None:
        """There is a new job, or a wish to cancel one."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled, which ends the processes of all steps and leaves the jobs to the next start."""
        descriptor = await self._locked()
        try:
            threads, store = self._bench.threads, self._bench.store
            # What a registry left behind that was killed; its processes died with it.
            await asyncio.to_thread(shutil.rmtree, self._bench.builder.scratch, ignore_errors=True)
            left, ended = await self._asked(lambda: threads.run(store.recover))
            self._bench.metrics.ended(pb.BUILD_STATE_CANCELLED, count=ended)
            if left:
                log.info("builds_resumed", count=left)
            while True:
                await self._turn()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            os.close(descriptor)

    async def _turn(self) -> None:
        """Ends what should end, begins what may begin."""
        threads, store = self._bench.threads, self._bench.store
        try:
            for build_id in await threads.run(store.cancelled):
                if build_id in self._tasks and build_id not in self._cancelled:
                    self._cancelled.add(build_id)
                    self._tasks[build_id].cancel()
            while len(self._tasks) < self._at_once and (work := await threads.run(store.take)) is not None:
                self._tasks[work.id] = asyncio.create_task(self._work(work), name=f"build {work.id}")
                self._bench.changed()
            await self._measure()
        except PenstockError as error:
            log.warning("builds_wait", reason=error.message, detail=error.detail)

    async def _measure(self) -> None:
        """Tells of the queue, and now and then of the cache."""
        threads, metrics = self._bench.threads, self._bench.metrics
        metrics.queue(*await threads.run(self._bench.store.queue))
        now = asyncio.get_running_loop().time()
        if now - self._measured >= MEASURE_SECONDS:
            self._measured = now
            metrics.cached(await threads.run(self._cached))

    async def _work(self, work: Work) -> None:
        store, threads, metrics = self._bench.store, self._bench.threads, self._bench.metrics
        state, reason = pb.BUILD_STATE_FAILED, ""
        try:
            metrics.ended(pb.BUILD_STATE_SUCCEEDED, await Job(self._bench, work).run())
        except asyncio.CancelledError:
            if work.id not in self._cancelled:
                raise  # this registry ends; the next one goes on
            state, reason = pb.BUILD_STATE_CANCELLED, "it was cancelled"
        except PenstockError as error:
            reason = error.message
            log.info("build_failed", build=work.id, reason=error.message, detail=error.detail)
        except Exception as error:  # one job's surprise is not the end of the others
            reason = GENERIC
            log.error("build_broke", build=work.id, detail=repr(error), exc_info=error)
        finally:
            self._cancelled.discard(work.id)
            self._tasks.pop(work.id, None)
        if reason:
            self._bench.journal.add(work.id, reason)
            await self._asked(lambda: threads.run(store.end, work.id, state, reason=reason))
            metrics.ended(state)
        self._measured = -MEASURE_SECONDS
        self._bench.journal.close(work.id)
        self._bench.changed()
        self.wake()

    async def _locked(self) -> int:
        """Waits for the right to run jobs."""
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    await asyncio.sleep(self._interval)
        except BaseException:
            os.close(descriptor)
            raise

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The database's answer, however long it is away."""
        while True:
            try:
                return await ask()
            except PenstockError as error:
                log.warning("builds_wait", reason=error.message, detail=error.detail)
                await asyncio.sleep(self._interval)
