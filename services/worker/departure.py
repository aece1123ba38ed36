"""How a worker leaves the cluster without a caller noticing: say so, let others take over, finish, go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from penstock.cluster import keys
from penstock.cluster.membership import Membership
from penstock.internal.v1 import records_pb2
from penstock.kit.log import get_logger

from .replicas import Replicas
from .tasks import first

HANDOVER_SHARE: Final = 0.6
"""Part of the drain time that others have to take over; the rest is for finishing what is in flight."""

log = get_logger()


def somebody_else(workers: Mapping[str, records_pb2.WorkerRecord], own_id: str) -> bool:
    """Whether another worker is there that does not leave as well."""
    return any(worker.id != own_id and not worker.draining for worker in workers.values())


class Departure:
    """The drain of one worker.

    Args:
        record: what this worker has announced of itself.
        workers: the live workers, kept fresh by somebody else, who calls `note_change`.
    """

    def __init__(
        self,
        record: records_pb2.WorkerRecord,
        membership: Membership,
        replicas: Replicas,
        workers: Mapping[str, records_pb2.WorkerRecord],
        drain_seconds: float,
    ) -> None:
        self._record = record
        self._membership = membership
        self._replicas = replicas
        self._workers = workers
        self._patience = drain_seconds * HANDOVER_SHARE
        self._changed = asyncio.Event()

    def note_change(self) -> None:
        """Says that the live workers may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Says that this worker leaves, waits until its models have moved or nobody can take them, drains the rest."""
        leaving = records_pb2.WorkerRecord()
        leaving.CopyFrom(self._record)
        leaving.draining = True
        await self._membership.put(keys.worker(self._record.id), leaving)
        try:
            async with asyncio.timeout(self._patience):
                await first(self._replicas.emptied(), self._alone())
        except TimeoutError:
            log.warning("handover_unfinished", seconds=self._patience)
        await self._replicas.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._membership.settled()

    async def _alone(self) -> None:
        while somebody_else(self._workers, self._record.id):
            self._changed.clear()
            await self._changed.wait()
