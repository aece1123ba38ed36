"""What the registry does beside answering: sweeps broken uploads away, and knows whether its database answers."""

from __future__ import annotations

import asyncio

from penstock.errors import PenstockError
from penstock.kit.log import get_logger

from .blobs import BlobStore
from .database import Database
from .metrics import TransferMetrics
from .threads import Threads

log = get_logger()


async def sweep(blobs: BlobStore, max_age: float, *, every: float = 3600.0) -> None:
    """Removes partial uploads older than max_age seconds, now and every hour, until cancelled."""
    metrics = TransferMetrics()
    while True:
        try:
            removed = await blobs.sweep(max_age)
        except OSError as problem:
            log.warning("sweep_failed", detail=repr(problem))
        else:
            metrics.swept.inc(removed)
            if removed:
                log.info("uploads_swept", count=removed)
        await asyncio.sleep(every)


class DatabaseCheck:
    """A condition of readiness: the database answers."""

    def __init__(self, database: Database, threads: Threads, *, every: float = 2.0) -> None:
        self._database = database
        self._threads = threads
        self._every = every
        self._reason: str | None = None

    def reason(self) -> str | None:
        """None while the database answers."""
        return self._reason

    async def run(self) -> None:
        """Asks it every few seconds until cancelled."""
        while True:
            try:
                await self._threads.run(self._database.ping)
                self._reason = None
            except PenstockError as problem:
                if self._reason is None:
                    log.warning("database_away", detail=problem.detail)
                self._reason = problem.message
            await asyncio.sleep(self._every)
