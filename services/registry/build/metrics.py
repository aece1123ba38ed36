"""What builds count. On the event loop's thread only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock import signals
from penstock.kit.metrics import counter, gauge, histogram
from penstock.v1 import builds_pb2 as pb

_OUTCOMES: Final[dict[int, str]] = {
    pb.BUILD_STATE_SUCCEEDED: "succeeded",
    pb.BUILD_STATE_FAILED: "failed",
    pb.BUILD_STATE_CANCELLED: "cancelled",
}


class BuildMetrics:
    """Counts builds and their steps."""

    def __init__(self) -> None:
        self._builds = gauge(signals.REGISTRY_BUILDS)
        self._ended = counter(signals.REGISTRY_BUILDS_ENDED)
        self._steps = counter(signals.REGISTRY_BUILD_STEPS)
        self._seconds = histogram(signals.REGISTRY_BUILD_STEP_SECONDS)
        self._cached = gauge(signals.REGISTRY_BUILD_CACHE_BYTES)

    def queue(self, waiting: int, running: int) -> None:
        """So many wait and run now."""
        self._builds.labels("waiting").set(waiting)
        self._builds.labels("running").set(running)

    def ended(
        self,
        state: pb.BuildState.ValueType,
        gate: pb.GateVerdict.ValueType = pb.GATE_VERDICT_UNSPECIFIED,
        *,
        count: int = 1,
    ) -> None:
        """Builds have ended; what is done but for its gate is an outcome of its own."""
        held = state == pb.BUILD_STATE_SUCCEEDED and gate == pb.GATE_VERDICT_FAILED
        self._ended.labels("gate_failed" if held else _OUTCOMES[state]).inc(count)

    def step(self, status: pb.StepStatus) -> None:
        """A step has ended, as its status says."""
        failed = status.state != pb.BUILD_STATE_SUCCEEDED
        self._steps.labels(status.step, "failed" if failed else "found" if status.cached else "made").inc()
        if not failed and not status.cached:
            taken = status.end_time.ToNanoseconds() - status.start_time.ToNanoseconds()
            self._seconds.labels(status.step).observe(taken / 1e9)

    def cached(self, kept: Mapping[str, int]) -> None:
        """Bytes that the cache holds, by kind."""
        for kind, count in kept.items():
            self._cached.labels(kind).set(count)
