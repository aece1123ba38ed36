"""What several processes count, as one service's metrics. Pure: text in, text out.

Counters and histograms are summed, those of ended processes too, so that a sum never goes back. Gauges become one by
the rule of their declaration (penstock/signals.py). What has no rule, such as `process_*`, is a matter of each process
and gets a label that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from penstock.signals import Merge

LABEL: Final = "process"

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample and its labels, sorted."""


@dataclass
class Shown:
    """One metric: its description, and the value of each series."""

    kind: str
    help: str
    values: dict[Series, float] = field(default_factory=dict)


Counts = dict[str, Shown]
"""By name of the metric."""


class Ledger:
    """Keeps the last that each process has shown."""

    def __init__(self, rules: Mapping[str, Merge]) -> None:
        self._rules = rules
        self._last: dict[int, tuple[str, Counts]] = {}
        self._ended: Counts = {}

    def seen(self, pid: int, name: str, text: str) -> None:
        """A process shows all that it counts. name: its value of the label. Raises ValueError."""
        self._last[pid] = (name, _read(text))

    def ended(self, pid: int) -> None:
        """No more will come from it: what it counted last is kept, what it was busy with is not."""
        _, counts = self._last.pop(pid, ("", {}))
        for metric, shown in counts.items():
            if shown.kind != "gauge" and metric in self._rules:
                _sum_up(self._ended, metric, shown)

    def text(self) -> bytes:
        """All of it in Prometheus' text format, newer processes last where two have the same name."""
        whole: Counts = {}
        for metric, shown in self._ended.items():
            _sum_up(whole, metric, shown)
        for name, counts in self._last.values():
            for metric, shown in counts.items():
                rule = self._rules.get(metric)
                if rule == "sum":
                    _sum_up(whole, metric, shown)
                elif rule is None:
                    _set_apart(whole, metric, shown, name)
                else:
                    _choose(whole, metric, shown, max if rule == "max" else min)
        registry = CollectorRegistry()
        registry.register(_Written(whole))
        return generate_latest(registry)


def _read(text: str) -> Counts:
    return {
        family.name: Shown(
            family.type,
            family.documentation,
            {(each.name, tuple(sorted(each.labels.items()))): each.value for each in family.samples},
        )
        for family in text_string_to_metric_families(text)
    }


def _of(whole: Counts, metric: str, shown: Shown) -> dict[Series, float]:
    return whole.setdefault(metric, Shown(shown.kind, shown.help)).values


def _sum_up(whole: Counts, metric: str, shown: Shown) -> None:
    values = _of(whole, metric, shown)
    for series, value in shown.values.items():
        values[series] = values.get(series, 0.0) + value


def _choose(whole: Counts, metric: str, shown: Shown, best: Callable[[float, float], float]) -> None:
    values = _of(whole, metric, shown)
    for series, value in shown.values.items():
        values[series] = best(values.get(series, value), value)


def _set_apart(whole: Counts, metric: str, shown: Shown, name: str) -> None:
    values = _of(whole, metric, shown)
    for (sample, labels), value in shown.values.items():
        values[sample, (*labels, (LABEL, name))] = value


class _Written(Collector):
    """Counts, as prometheus_client wants them for writing."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Family]:
        """Asked once by the registry and once by the writer."""
        for name, shown in self._counts.items():
            family = Family(name, shown.help, shown.kind)
            for (sample, labels), value in shown.values.items():
                family.add_sample(sample, dict(labels), value)
            yield family
