"""What the registry counts."""

from __future__ import annotations

from collections.abc import Callable

from penstock import signals
from penstock.kit.metrics import counter, gauge
from penstock.v1.storage_pb2 import Collection


class TransferMetrics:
    """Counts artifacts on their way in and out."""

    def __init__(self) -> None:
        self._uploads = counter(signals.REGISTRY_UPLOADS)
        self.received = counter(signals.REGISTRY_UPLOADED_BYTES)
        self.sent = counter(signals.REGISTRY_DOWNLOADED_BYTES)
        self.swept = counter(signals.REGISTRY_SWEPT_UPLOADS)

    def upload_ended(self, outcome: str) -> None:
        """outcome: `stored`, `existed`, `refused` (content, room, turn) or `broken` (the caller left)."""
        self._uploads.labels(outcome).inc()


class CollectionMetrics:
    """Counts what collections have freed and left."""

    def __init__(self) -> None:
        self._freed = counter(signals.REGISTRY_FREED_ARTIFACTS)
        self._freed_bytes = counter(signals.REGISTRY_FREED_BYTES)
        self._kept = gauge(signals.REGISTRY_KEPT_BYTES)

    def collected(self, made: Collection) -> None:
        """One has ended; of one that ended early what it has left is not known."""
        self._freed.inc(made.freed_artifacts)
        self._freed_bytes.inc(made.freed_bytes)
        if not made.partial:
            for why in ("versions", "builds", "cache", "new"):
                self._kept.labels(why).set(made.kept_bytes.get(why, 0))


def expose(behind: Callable[[], float], free_bytes: Callable[[], float]) -> None:
    """Gauges that are read when somebody looks."""
    gauge(signals.REGISTRY_PROJECTION_AGE).set_function(behind)
    gauge(signals.REGISTRY_FREE_BYTES).set_function(free_bytes)
