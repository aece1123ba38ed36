"""What the scheduler counts."""

from __future__ import annotations

from collections.abc import Callable

from penstock import signals
from penstock.kit.metrics import counter, gauge, histogram


class ControllerMetrics:
    """Of the controller; all zero while another scheduler leads."""

    def __init__(self) -> None:
        self._leading = gauge(signals.SCHEDULER_LEADING)
        self._term = gauge(signals.SCHEDULER_TERM)
        self._seconds = histogram(signals.SCHEDULER_PLAN_SECONDS)
        self._writes = counter(signals.SCHEDULER_ASSIGNMENT_WRITES)
        self._missing = gauge(signals.SCHEDULER_MISSING_REPLICAS)
        self._evictions = counter(signals.SCHEDULER_EVICTIONS)
        self._evicted = 0
        self._held = gauge(signals.SCHEDULER_HELD_WORKERS)

    def leads(self, term: int) -> None:
        """term: 0 when the term has ended."""
        self._leading.set(1 if term else 0)
        self._term.set(term)
        if not term:
            self._missing.set(0)
            self._held.set(0)

    def planned(self, seconds: float, missing: int, held: int, evicted: int) -> None:
        """missing: replicas that no worker has room for; held: workers that are gone and still believed in; evicted:
        versions that have made room since this process began."""
        self._evictions.inc(evicted - self._evicted)
        self._evicted = evicted
        self._seconds.observe(seconds)
        self._missing.set(missing)
        self._held.set(held)

    def wrote(self, count: int) -> None:
        self._writes.inc(count)


def expose(workers: Callable[[], int], reporters: Callable[[], int]) -> None:
    """Gauges that are read when somebody looks."""
    gauge(signals.SCHEDULER_WORKERS).set_function(workers)
    gauge(signals.SCHEDULER_REPORTERS).set_function(reporters)


class FleetMetrics:
    """Of pools of workers; nothing while another scheduler leads."""

    def __init__(self) -> None:
        self._wanted = gauge(signals.SCHEDULER_POOL_WANTED)
        self._workers = gauge(signals.SCHEDULER_POOL_WORKERS)
        self._failures = counter(signals.SCHEDULER_POOL_FAILURES)

    def decided(self, pool: str, wanted: int, workers: int) -> None:
        """workers: live ones that stay."""
        self._wanted.labels(pool).set(wanted)
        self._workers.labels(pool).set(workers)
        self._failures.labels(pool)

    def failed(self, pool: str) -> None:
        self._failures.labels(pool).inc()

    def rest(self) -> None:
        """Says nothing any more."""
        self._wanted.clear()
        self._workers.clear()
