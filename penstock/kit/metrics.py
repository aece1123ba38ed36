"""Prometheus metrics of the process, made from their declarations in penstock/signals.py.

Counters and histograms are plain numbers that become samples when somebody scrapes: several are counted per request,
and prometheus_client's own take a lock each time. Count on the event loop's thread only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as PrometheusMetric
from prometheus_client.utils import floatToGoString

from penstock import signals
from penstock.signals import Merge, Metric

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


class Count:
    """A counter with its labels bound. Of one thread, so that counting costs an addition and no lock."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Counts."""
        self.value += amount


class Spread:
    """A histogram with its labels bound; as Count. buckets: upper bounds, rising."""

    __slots__ = ("buckets", "counts", "total")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value


Kept = TypeVar("Kept", Count, Spread)


class _Labelled(Generic[Kept]):
    """One metric: what is kept for each combination of its labels."""

    def __init__(self, metric: Metric, make: Callable[[], Kept]) -> None:
        self._metric = metric
        self._make: Callable[[], Kept] = make
        self._kept: dict[tuple[str, ...], Kept] = {}
        if not metric.labels:
            self.labels()
        REGISTRY.register(self)

    def labels(self, *values: object) -> Kept:
        """What counts for these values of the labels, in their order; the same object every time."""
        key = tuple(map(str, values))
        known = self._kept.get(key)
        if known is None:
            assert len(key) == len(self._metric.labels), f"{self._metric.name} has the labels {self._metric.labels}"
            known = self._kept[key] = self._make()
        return known

    def collect(self) -> Iterator[PrometheusMetric]:
        """For whoever scrapes; on another thread, which sees what has been counted so far."""
        raise NotImplementedError


class Counter(_Labelled[Count]):
    """A counter."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric, Count)

    def inc(self, amount: float = 1.0) -> None:
        """Counts, where there are no labels."""
        self.labels().inc(amount)

    def collect(self) -> Iterator[PrometheusMetric]:
        """See _Labelled."""
        family = CounterMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for values, count in sorted(self._kept.copy().items()):
            family.add_metric(values, count.value)
        yield family


class Histogram(_Labelled[Spread]):
    """A histogram."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric, lambda: Spread(metric.buckets))

    def observe(self, value: float) -> None:
        """Counts one value, where there are no labels."""
        self.labels().observe(value)

    def collect(self) -> Iterator[PrometheusMetric]:
        """See _Labelled."""
        family = HistogramMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for values, spread in sorted(self._kept.copy().items()):
            bounds = [*map(floatToGoString, spread.buckets), "+Inf"]
            family.add_metric(values, list(zip(bounds, accumulate(spread.counts), strict=True)), spread.total)
        yield family


_made: dict[str, Counter | Gauge | Histogram] = {}


def counter(metric: Metric) -> Counter:
    """The process's counter of that declaration; the same object every time."""
    made = _made.get(metric.name) or Counter(metric)
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
    made = _made.get(metric.name) or Histogram(metric)
    assert isinstance(made, Histogram)
    _made[metric.name] = made
    return made


def exposition() -> bytes:
    """Everything that this process counts, in Prometheus' text format."""
    return generate_latest(REGISTRY)


def merge_rules() -> dict[str, Merge]:
    """How the values of several processes become one, by the name of a declared metric that has a rule."""
    declared = [value for value in vars(signals).values() if isinstance(value, Metric)]
    return {metric.name: metric.merge for metric in declared if metric.merge is not None}
