"""The worker's metrics, with the labels of one replica bound once."""

from __future__ import annotations

from penstock import signals
from penstock.kit.metrics import counter, gauge, histogram


class ReplicaMetrics:
    """Metrics of one model version on this worker."""

    def __init__(self, name: str, version: int) -> None:
        self._labels = (name, str(version))
        self.queue_seconds = histogram(signals.WORKER_QUEUE_SECONDS).labels(*self._labels)
        self.batch_seconds = histogram(signals.WORKER_BATCH_SECONDS).labels(*self._labels)
        self.batch_rows = histogram(signals.WORKER_BATCH_ROWS).labels(*self._labels)
        self.queue_depth = gauge(signals.WORKER_QUEUE_DEPTH).labels(*self._labels)
        self.engine_failures = counter(signals.WORKER_ENGINE_FAILURES).labels(*self._labels)
        self._requests = counter(signals.WORKER_REQUESTS)
        self._ok = self._requests.labels(*self._labels, "OK")

    def answered(self) -> None:
        """A request got its answer."""
        self._ok.inc()

    def failed(self, code: str) -> None:
        """A request ended without one."""
        self._requests.labels(*self._labels, code).inc()
