"""What a worker does about lost devices: counts, and tells the cluster which of them are not to be used any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock import signals
from penstock.cluster import keys
from penstock.cluster.membership import Membership
from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.kit.log import get_logger
from penstock.kit.metrics import counter, gauge

from .cordon import Cordon

log = get_logger()


class Losses:
    """The losses of one worker.

    Args:
        record: what the worker has announced of itself; a device that is cordoned is marked in it.
    """

    def __init__(self, record: WorkerRecord, membership: Membership) -> None:
        self._record = record
        self._membership = membership
        self._cordon = Cordon()
        self._lost = counter(signals.WORKER_DEVICE_LOSSES)
        self._cordoned = gauge(signals.WORKER_DEVICE_CORDONED)
        for device in record.devices:
            self._cordoned.labels(str(device.index)).set(0)

    async def note(self, devices: Sequence[int]) -> None:
        """An engine has lost its device: one of these, and nobody knows which."""
        now = asyncio.get_running_loop().time()
        for index in devices:
            self._lost.labels(str(index)).inc()
            if self._cordon.lost(index, now):
                log.error("device_cordoned", device=index, mend="see to the device, then start the worker anew")
                self._cordoned.labels(str(index)).set(1)
        changed = [each for each in self._record.devices if each.index in self._cordon.cordoned and not each.cordoned]
        for each in changed:
            each.cordoned = True
        if changed:
            await self._membership.put(keys.worker(self._record.id), self._record)
