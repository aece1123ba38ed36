"""The engines of one replica: started side by side, each in a process of its own, and started anew one by one.

The batcher says which engine is lost and goes on with the others; here it is closed and, after a pause that grows while
engines go on failing, another one takes its place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from penstock.errors import Internal, PenstockError
from penstock.kit.backoff import Backoff

from .instance import EngineRunner
from .tasks import every

LONGEST_PAUSE: Final = 60.0
"""Seconds between tries: doubling from the first to the longest, each shortened at random."""
STABLE_SECONDS: Final = 60.0
"""What was well for so long starts its pauses anew when it breaks."""


class Host(EngineRunner, Protocol):
    """A loaded engine in its child process: host.EngineHost."""

    @property
    def pid(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    async def close(self) -> None: ...


class Instances:
    """The engines of one replica, however many there are just now.

    Args:
        start: gives a loaded and warm engine, or the PenstockError that says why there is none.
        failed: told why an engine was lost or could not be started anew, and the seconds until the next try.
        first_pause: seconds before the first try.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Host]],
        failed: Callable[[PenstockError, float], Awaitable[None]],
        first_pause: float,
    ) -> None:
        self._start = start
        self._failed = failed
        self._pauses = Backoff(first_pause, LONGEST_PAUSE)
        self._failed_at = -math.inf
        self._hosts: list[Host] = []

    @property
    def hosts(self) -> Sequence[Host]:
        """Those that have been started and not been closed."""
        return tuple(self._hosts)

    @property
    def memory_bytes(self) -> int:
        """Resident memory of all together, now."""
        return sum(host.memory_bytes for host in self.hosts)

    async def start(self, count: int) -> None:
        """Starts so many. Raises what the first that failed raised; those that were started are left to `close`."""
        await every(*[self._one() for _ in range(count)])

    async def renew(self, lost: EngineRunner, problem: PenstockError) -> Host:
        """Closes one that is lost and gives the one that takes its place, however many tries that takes."""
        clock = asyncio.get_running_loop().time
        while True:
            if clock() - self._failed_at > STABLE_SECONDS:
                self._pauses.reset()
            self._failed_at = clock()
            pause = self._pauses.next()
            await self._failed(problem, pause)
            for host in [each for each in self._hosts if each is lost]:
                await host.close()
                self._hosts.remove(host)
            await asyncio.sleep(pause)
            try:
                return await self._one()
            except PenstockError as error:
                problem = error
            except OSError as error:
                problem = Internal("the engine's process could not be started", detail=repr(error))

    async def close(self) -> None:
        """Ends all of them, side by side."""
        await every(*[host.close() for host in self._hosts])
        self._hosts.clear()

    async def _one(self) -> Host:
        host = await self._start()
        self._hosts.append(host)
        return host
