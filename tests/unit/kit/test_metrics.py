"""Metrics are made from their declarations, once."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from penstock.kit import metrics
from penstock.signals import Metric

COUNTER = Metric("penstock_test_things", "counter", "every", "Things", ("code",))
GAUGE = Metric("penstock_test_level", "gauge", "every", "Level")
HISTOGRAM = Metric("penstock_test_seconds", "histogram", "every", "Seconds", ("code",), (0.1, 1.0))


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """One of the test's own."""
    fresh = CollectorRegistry()
    monkeypatch.setattr(metrics, "REGISTRY", fresh)
    monkeypatch.setattr(metrics, "_made", {})
    return fresh


def test_the_same_declaration_is_the_same_metric(registry: CollectorRegistry) -> None:
    assert metrics.counter(COUNTER) is metrics.counter(COUNTER)
    assert metrics.gauge(GAUGE) is metrics.gauge(GAUGE)
    assert metrics.histogram(HISTOGRAM) is metrics.histogram(HISTOGRAM)


def test_what_prometheus_reads(registry: CollectorRegistry) -> None:
    metrics.counter(COUNTER).labels("OK").inc(2)
    metrics.gauge(GAUGE).set(0.5)
    metrics.histogram(HISTOGRAM).labels("OK").observe(0.5)
    text = generate_latest(registry).decode()
    for line in (
        "# HELP penstock_test_things_total Things",
        'penstock_test_things_total{code="OK"} 2.0',
        "penstock_test_level 0.5",
        'penstock_test_seconds_bucket{code="OK",le="0.1"} 0.0',
        'penstock_test_seconds_bucket{code="OK",le="1.0"} 1.0',
        'penstock_test_seconds_sum{code="OK"} 0.5',
    ):
        assert line in text.splitlines()
    assert "_created" not in text


def test_a_hostile_label_stays_one_line(registry: CollectorRegistry) -> None:
    metrics.counter(COUNTER).labels('a"} 1\nforged 2').inc()
    samples = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert samples == [r'penstock_test_things_total{code="a\"} 1\nforged 2"} 1.0']


def test_a_declaration_is_made_as_what_it_says(registry: CollectorRegistry) -> None:
    metrics.counter(COUNTER)
    with pytest.raises(AssertionError):
        metrics.gauge(COUNTER)
