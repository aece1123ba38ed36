"""Prometheus metrics of the process, made from their declarations in penstock/signals.py."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from penstock.signals import Metric

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

_made: dict[str, Counter | Gauge | Histogram] = {}


def counter(metric: Metric) -> Counter:
    """The process's counter of that declaration; the same object every time."""
    made = _made.get(metric.name) or Counter(metric.name, metric.help, metric.labels, registry=REGISTRY)
    assert isinstance(made, Counter)
    _made[metric.name] = made
    return made


def gauge(metric: Metric) -> Gauge:
    """The process's gauge of that declaration; the same object every time."""
    made = _made.get(metric.name) or Gauge(metric.name, metric.help, metric.labels, registry=REGISTRY)
    assert isinstance(made, Gauge)
    _made[metric.name] = made
    return made


def histogram(metric: Metric) -> Histogram:
    """The process's histogram of that declaration; the same object every time."""
    made = _made.get(metric.name) or Histogram(
        metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=REGISTRY
    )
    assert isinstance(made, Histogram)
    _made[metric.name] = made
    return made
