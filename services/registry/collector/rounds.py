"""When to collect: every few hours, by whichever registry sees first that it is due, and whenever somebody asks."""

from __future__ import annotations

import asyncio
from typing import Final

from penstock.errors import PenstockError, Unavailable
from penstock.kit.log import get_logger
from penstock.v1.storage_pb2 import Collection

from ..metrics import CollectionMetrics
from ..threads import Threads
from .collector import Collector
from .references import References

LOOK_SECONDS: Final = 60.0

log = get_logger()


class Rounds:
    """Collects in a thread of its own, one collection at a time.

    Args:
        interval: seconds between two collections, of all registries that share a database; 0: none by itself.
        look: seconds between two looks whether one is due.
    """

    def __init__(
        self,
        collector: Collector,
        references: References,
        *,
        interval: float,
        look: float = LOOK_SECONDS,
    ) -> None:
        self._collector = collector
        self._references = references
        self._interval = interval
        self._look = look
        self._thread = Threads("collector", 1)
        self._metrics = CollectionMetrics()

    async def run(self) -> None:
        """Collects when it is due until cancelled."""
        while self._interval:
            try:
                if await self._thread.run(self._due):
                    await self.collect("")
            except Unavailable as problem:
                log.info("collection_waits", reason=problem.message, detail=problem.detail)
            except (PenstockError, OSError) as problem:
                log.warning("collection_failed", detail=repr(problem))
            await asyncio.sleep(self._look)

    async def collect(self, who: str, *, dry_run: bool = False) -> Collection:
        """Frees what nobody needs; goes on when the caller leaves. Raises as Collector.collect."""
        made = await self._thread.run(self._collector.collect, who, dry_run=dry_run)
        if not dry_run:
            self._metrics.collected(made)
            log.info(
                "artifacts_collected",
                who=who,
                freed=made.freed_artifacts,
                freed_bytes=made.freed_bytes,
                kept=made.kept_artifacts,
                seconds=round(made.seconds, 3),
                partial=made.partial,
            )
        return made

    async def listed(self, page_size: int) -> list[Collection]:
        """The newest collections."""
        return await self._thread.run(self._references.listed, page_size)

    async def leave(self) -> None:
        """What is under way ends soon."""
        self._collector.stop()

    async def close(self) -> None:
        """Waits for the end of what is under way."""
        await self.leave()
        await asyncio.to_thread(self._thread.close)

    def _due(self) -> bool:
        since = self._references.microseconds_since_last()
        return since is None or since >= self._interval * 1e6
