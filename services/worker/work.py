"""What one replica has done since somebody last asked: the worker's part of a report of demand. Pure: times are passed
in, seconds of one monotonic clock.

Busy time is kept as a sum of ends less a sum of beginnings, so that a batch costs two additions, and one that still
runs counts as far as it has come.
"""

from __future__ import annotations

from penstock.internal.v1 import demand_pb2 as pb


class Work:
    """Counters that the batcher touches once a batch.

    instances: engines of the replica; its busy time is the mean of theirs.
    """

    __slots__ = ("_busy", "_dequeued", "_instances", "_queued", "_running")

    def __init__(self, instances: int = 1) -> None:
        self._instances = instances
        self._dequeued = 0
        self._queued = 0.0
        self._busy = 0.0
        self._running = 0

    def dequeued(self, count: int, seconds: float) -> None:
        """So many requests left the queue, for the engine or refused, after waiting so long together."""
        self._dequeued += count
        self._queued += seconds

    def began(self, now: float) -> None:
        """An engine runs."""
        self._running += 1
        self._busy -= now

    def ended(self, now: float) -> None:
        """It does not any more."""
        self._running -= 1
        self._busy += now

    def taken(self, name: str, version: int, now: float) -> pb.VersionDemand | None:
        """What there is to tell of the time since the last look, which is over with this; None for nothing."""
        dequeued, queued = self._dequeued, self._queued
        running = self._running * now
        busy = (self._busy + running) / self._instances
        self._dequeued, self._queued, self._busy = 0, 0.0, -running
        if not dequeued and busy <= 0.0:
            return None
        return pb.VersionDemand(
            name=name, version=version, dequeued=dequeued, queue_seconds=queued, busy_seconds=max(0.0, busy)
        )
