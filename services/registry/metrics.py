"""What the registry counts."""

from __future__ import annotations

from collections.abc import Callable

from penstock import signals
from penstock.kit.metrics import counter, gauge


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


def expose(behind: Callable[[], float], free_bytes: Callable[[], float]) -> None:
    """Gauges that are read when somebody looks."""
    gauge(signals.REGISTRY_PROJECTION_AGE).set_function(behind)
    gauge(signals.REGISTRY_FREE_BYTES).set_function(free_bytes)
