"""What the gateway counts. Label children are looked up once per model, so that a request costs two increments."""

from __future__ import annotations

from collections.abc import Callable

from penstock import signals
from penstock.kit.metrics import Count, Spread, counter, gauge, histogram

from .routes import RoutingTable
from .upstream import Upstreams


class RequestMetrics:
    """Counts requests as they end."""

    def __init__(self) -> None:
        self._requests = counter(signals.GATEWAY_REQUESTS)
        self._seconds = histogram(signals.GATEWAY_SECONDS)
        self._retries = counter(signals.GATEWAY_RETRIES)
        self._ended: dict[tuple[str, str], tuple[Count, Spread]] = {}

    def ended(self, model: str, code: str, seconds: float) -> None:
        """model: a deployed model's name, or empty: a caller's invention must not become a label."""
        known = self._ended.get((model, code))
        if known is None:
            known = self._ended[model, code] = (self._requests.labels(model, code), self._seconds.labels(model))
        known[0].inc()
        known[1].observe(seconds)

    def retried(self, code: str) -> None:
        """A second replica is tried; code: what the first one said."""
        self._retries.labels(code).inc()


class RoomMetrics:
    """Counts those who waited for a version to be loaded."""

    def __init__(self) -> None:
        self._waited = histogram(signals.GATEWAY_WAITED)

    def waited(self, end: str, seconds: float) -> None:
        """One waits no more; end: went, late (his deadline came first), left (he was cancelled), full (not let in)."""
        self._waited.labels(end).observe(seconds)


def ejected(reason: str) -> None:
    """A worker (lost) or a replica (silent, failing, slow) is avoided from now on, for a while."""
    counter(signals.GATEWAY_EJECTIONS).labels(reason).inc()


def refused(reason: str) -> None:
    """A request, or a question about a model, that its caller's tenant does not allow: model, rate or concurrent."""
    counter(signals.GATEWAY_REFUSED).labels(reason).inc()


def expose(routes: RoutingTable, upstreams: Upstreams, waiting: Callable[[], int]) -> None:
    """Gauges that are read when somebody looks; waiting: requests in the waiting room."""
    gauge(signals.GATEWAY_WAITING).set_function(waiting)
    gauge(signals.GATEWAY_IN_FLIGHT).set_function(lambda: upstreams.in_flight)
    gauge(signals.GATEWAY_WORKERS).set_function(lambda: upstreams.open)
    gauge(signals.GATEWAY_MODELS).set_function(lambda: len(routes.table.models))
    gauge(signals.GATEWAY_HELD).set_function(lambda: routes.held)
