"""One engine and the greedy rule in virtual time: what latency the rule itself gives, without a network (pure).

The rule is not written again here: the worker's own `BatchQueue` decides, told a time that jumps from event to event.
What the service adds to these figures is transport, scheduling and everything else that is not the rule.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from services.worker.batching import BatchPolicy, BatchQueue, ServiceEstimate, Waiting

ServiceTime: TypeAlias = Callable[[int], float]
"""Seconds that the engine takes for a batch of so many rows."""


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in [0, seconds) at `rate` a second, independent of each other."""
    chance = random.Random(seed)
    times: list[float] = []
    now = chance.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chance.expovariate(rate)
    return times


def simulate(arrivals: Sequence[float], service: ServiceTime, policy: BatchPolicy) -> list[float]:
    """Seconds from arrival to answer of each request of one row, in order of arrival (ascending times)."""
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
        decision = queue.take(look)
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
