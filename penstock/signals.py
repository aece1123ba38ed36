"""Names of every signal that Penstock sends: metrics and spans, declared before use. docs/telemetry.md lists them, and
a test keeps the two equal. Names are an API: dashboards and alerts stand on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; buckets of request latencies."""
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Rows; buckets of batch sizes."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Counters are named without `_total`, which Prometheus appends."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    service: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=FAST)


# Every service.
RPCS: Final = Metric("penstock_rpcs", "counter", "every", "Calls of the control plane answered", ("method", "code"))
READY: Final = Metric("penstock_ready", "gauge", "every", "1 while the process is ready")
