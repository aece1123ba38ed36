"""One engine and the greedy rule in virtual time: what latency the rule itself gives, without a network (pure).

The rule is not written again here: the worker's own `BatchQueue` decides, told a time that jumps from event to event.
What the service adds to these figures is transport, scheduling and everything else that is not the rule.
`python -m tests.bench.simulate` prints what the rule makes of an engine that runs a few sizes only.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from services.worker.batching import BatchPolicy, BatchQueue, ServiceEstimate, Waiting
from services.worker.costs import UNKNOWN, Costs, padded
from services.worker.engines.trt.buckets import SIZES
from tests.bench.output import quantile

ServiceTime: TypeAlias = Callable[[int], float]
"""Seconds that the engine takes for a batch of so many rows."""
LARGEST: Final = 32
POWERS: Final = (1, 2, 4, 8, 16, 32)
TEN: Final = tuple(size for size in SIZES if size <= LARGEST)
"""What the TensorRT engine runs."""
LOADS: Final = (30, 50, 70, 85)
REQUESTS: Final = 60_000


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in [0, seconds) at `rate` a second, independent of each other."""
    chance = random.Random(seed)
    times: list[float] = []
    now = chance.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chance.expovariate(rate)
    return times


def simulate(
    arrivals: Sequence[float], service: ServiceTime, policy: BatchPolicy, costs: Costs = UNKNOWN
) -> list[float]:
    """Seconds from arrival to answer of each request of one row, in order of arrival (ascending times).

    costs: what the rule is told of the engine's sizes; `service` is what it takes.
    """
    queue: BatchQueue[int] = BatchQueue(policy, ServiceEstimate())
    latencies = [math.nan] * len(arrivals)
    coming, free_at, wake = 0, 0.0, 0.0
    while coming < len(arrivals) or len(queue):
        arrival = arrivals[coming] if coming < len(arrivals) else math.inf
        look = max(free_at, wake) if len(queue) else math.inf
        if arrival <= look:
            queue.admit(Waiting(coming, None, 1, 1, arrival, math.inf), arrival, max(0.0, free_at - arrival))
            coming, wake = coming + 1, arrival
            continue
        decision = queue.take(look, costs)
        wake = decision.wake
        if decision.batch:
            took = service(len(decision.batch))
            queue.estimate.observe(len(decision.batch), took)
            free_at = wake = look + took
            for waiting in decision.batch:
                latencies[waiting.item] = free_at - waiting.arrived
    return latencies


def measured(points: Mapping[int, float]) -> ServiceTime:
    """Service time between measured sizes by straight lines, beyond the largest by its cost per row."""
    sizes = sorted(points)

    def service(rows: int) -> float:
        if rows in points:
            return points[rows]
        below = max((size for size in sizes if size < rows), default=sizes[0])
        above = min((size for size in sizes if size > rows), default=0)
        if not above:
            return points[below] * rows / below
        share = (rows - below) / (above - below)
        return points[below] + share * (points[above] - points[below])

    return service


def jittering(times: Mapping[int, Sequence[float]], seed: int) -> ServiceTime:
    """Each batch takes one of the times that were measured for its size, by chance."""
    chance = random.Random(seed)
    return lambda rows: chance.choice(times[rows])


def affine(points: Mapping[int, float]) -> tuple[float, float]:
    """Least squares a, c of service time = a + c * rows, seconds."""
    count = len(points)
    mean_rows, mean = sum(points) / count, sum(points.values()) / count
    spread = sum((rows - mean_rows) ** 2 for rows in points)
    slope = sum((rows - mean_rows) * (seconds - mean) for rows, seconds in points.items()) / spread
    return mean - slope * mean_rows, slope


def bert(rows: int) -> float:
    """Seconds of the design notes' engine (batching B.2: BERT-base on an A100)."""
    return 0.685e-3 + rows * 0.095e-3


def bucketed(sizes: Sequence[int], load: float, rule: str, requests: int) -> list[float]:
    """Ascending latencies of that engine when it runs these sizes only, at a share of its capacity.

    rule: "best" is the worker's; "up" always pads and "down" never does: the same rule, told costs that make it so.
    """
    costs = {size: bert(size) for size in sizes}
    told = {"best": costs, "up": dict.fromkeys(sizes, 1.0), "down": {size: float(size) ** 9 for size in sizes}}
    rate = load * LARGEST / bert(LARGEST)

    def service(rows: int) -> float:
        return costs[padded(rows, costs) or LARGEST]

    arrivals = poisson(rate, requests / rate, seed=1)
    return sorted(simulate(arrivals, service, BatchPolicy(max_batch_size=LARGEST, max_queue_size=requests), told[rule]))


def main() -> int:
    """The command: mean and p99 in milliseconds, as the table of batching B.4."""
    columns = {
        "exact size": (range(1, LARGEST + 1), "best"),
        "powers of 2, up": (POWERS, "up"), "down": (POWERS, "down"), "best": (POWERS, "best"),
        "ten sizes, up": (TEN, "up"), "best of ten": (TEN, "best"),
    }  # fmt: skip
    print("load" + "".join(f"{name:>17}" for name in columns))
    for load in LOADS:
        cells = []
        for sizes, rule in columns.values():
            found = bucketed(sizes, load / 100, rule, REQUESTS)
            cells.append(f"{sum(found) / len(found) * 1e3:.2f} / {quantile(found, 0.99) * 1e3:.2f}")
        print(f"{load:3}%" + "".join(f"{cell:>17}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
