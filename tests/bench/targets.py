"""What issue 3 wants, beside what was measured (pure). Nothing here fails: speeds are not tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Cells: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Target:
    """value: from the cells, KeyError where they were not measured. most: the limit is an upper one."""

    what: str
    limit: float
    unit: str
    value: Callable[[Cells], float]
    most: bool = True

    def row(self, cells: Cells) -> Row:
        """The target beside its measurement."""
        try:
            value = self.value(cells)
        except KeyError:
            return Row(self.what, self.limit, self.unit, self.most, None)
        return Row(self.what, self.limit, self.unit, self.most, value)


@dataclass(frozen=True)
class Row:
    """value: None where it was not measured."""

    what: str
    limit: float
    unit: str
    most: bool
    value: float | None

    @property
    def mark(self) -> str:
        if self.value is None:
            return "not measured"
        reached = self.value <= self.limit if self.most else self.value >= self.limit
        return "reached" if reached else "NOT reached"

    def document(self) -> dict[str, object]:
        """For JSON, which has no infinity."""
        value = None if self.value is None or math.isinf(self.value) else self.value
        return {**vars(self), "value": value, "mark": self.mark}


def _cell(name: str, figure: str = "both_us") -> Callable[[Cells], float]:
    return lambda cells: cells[name][figure]


def _ratio(over: str, under: str, figure: str = "both_us") -> Callable[[Cells], float]:
    return lambda cells: cells[over][figure] / cells[under][figure]


def _added(service: str, engine: str, figure: str) -> Callable[[Cells], float]:
    return lambda cells: cells[service][figure] - cells[engine][figure]


def _rule(load: int) -> Callable[[Cells], float]:
    def value(cells: Cells) -> float:
        cell = cells[f"greedy {load} %"]
        # With refusals the rest is another load than the simulated one.
        return math.inf if cell["failed"] else 100 * (cell["p99_ms"] / cell["rule_p99_ms"] - 1)

    return value


def _percent_more(over: str, under: str, figure: str) -> Callable[[Cells], float]:
    return lambda cells: 100 * (cells[over][figure] / cells[under][figure] - 1)


_SHAPES: Final = ("1x1", "8x1", "8x8", "64x1")
_CPU: Final = "CPU-µs per request, gateway + worker"

TARGETS: Final[tuple[Target, ...]] = (
    *(
        Target(f"gRPC add1 {shape}: {_CPU}", limit, "µs", _cell(f"grpc add1 {shape}"))
        for shape, limit in zip(_SHAPES, (200, 80, 40, 60), strict=True)
    ),
    *(
        Target(f"REST JSON add1 {shape}: {_CPU}", limit, "µs", _cell(f"rest add1 {shape}"))
        for shape, limit in zip(_SHAPES, (250, 120, 80, 90), strict=True)
    ),
    *(
        Target(f"gRPC add1 {shape}: ratio to bare grpc.aio", limit, "×",
               _ratio(f"grpc add1 {shape}", f"bare grpc.aio add1 {shape}"))
        for shape, limit in zip(_SHAPES, (0.6, 0.35, 0.17, 0.25), strict=True)
    ),
    Target("added p50 over the bare engine, 1x1", 0.35, "ms",
           _added("service add1 1x1", "engine add1 in a loop", "p50_ms")),
    Target("added p99 over the bare engine, 1x1", 1.0, "ms",
           _added("service add1 1x1", "engine add1 in a loop", "p99_ms")),
    Target("minilm, 64 in flight: share of the bare engine's requests/s at the same batch sizes", 0.97, "×",
           _ratio("grpc minilm 8x8", "engine minilm in a loop, same batches", "rate"), most=False),
    Target("minilm: two instances against one", 1.7, "×",
           _ratio("grpc minilm 8x8, two instances", "grpc minilm 8x8", "rate"), most=False),
    Target(f"image over gRPC, 1x1: {_CPU}", 1000, "µs", _cell("grpc image 1x1")),
    Target(f"image by shared memory: {_CPU}", 250, "µs", _cell("shared memory image 1x1")),
    Target("image through one hop, 1x1: ratio to grpc.aio", 0.7, "×",
           _ratio("grpc one hop image 1x1", "bare grpc.aio image 1x1")),
    Target("image through two hops, 1x1: ratio to grpc.aio", 0.5, "×",
           _ratio("grpc image 1x1", "bare grpc.aio two hops image 1x1")),
    Target("batching gain of 8 callers over 1", 3.7, "×",
           _ratio("affine 8x1, batches of 8", "affine 1x1, batches of 8", "rate"), most=False),
    Target("added p50 for one caller against max_batch_size 1", 2, "%",
           _percent_more("affine 1x1, batches of 8", "affine 1x1, batches of 1", "p50_ms")),
    *(
        Target(f"greedy rule at {load} % load: p99 over the simulator's", 25, "%", _rule(load))
        for load in (10, 30, 50, 70, 85, 95)
    ),
    Target(f"grpcio client, deadlines vary, add1 8x8: {_CPU}", 100, "µs", _cell("grpcio client add1 8x8")),
    Target("1,000 idle connections beside 64 busy: more CPU per request", 20, "%",
           _percent_more("grpc add1 64x1 beside 1000 idle", "grpc add1 64x1 alone", "both_us")),
    Target("two gateway processes against one", 1.7, "×", _ratio("two gateways", "one gateway", "rate"), most=False),
    Target("10,000 deployed models against 1: more CPU per request", 0, "%",
           _percent_more("gateway beside 10000 models", "gateway beside 1 model", "gateway_us")),
    Target("telemetry at 1 % sampling against off: more CPU per request", 5, "%",
           _percent_more("grpc add1 8x8 traced at 1 %", "grpc add1 8x8 untraced", "both_us")),
    Target("resident memory of an idle gateway", 90, "MB", _cell("memory", "gateway_mb")),
    Target("resident memory of a worker without models", 120, "MB", _cell("memory", "worker_mb")),
)  # fmt: skip


def rows(cells: Cells) -> list[Row]:
    """Every target of the issue, in its order."""
    return [target.row(cells) for target in TARGETS]
