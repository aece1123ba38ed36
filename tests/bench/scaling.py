"""`python -m tests.bench.scaling`: the autoscaling rule on traces, beside the usual rule of Kubernetes' HPA.

Four traces are made up, one of them by chance with a seed, and one was recorded at our own gateway (record.py). A model
whose replicas serve 10 requests a second each and take 20 s to load. What is beyond their capacity waits in one queue.
Ours looks every 5 s at outstanding requests, queue time and utilisation; the HPA rule every 15 s at utilisation.
Seconds are the model's own: nothing is measured, so the table is the same on every machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from services.scheduler.scaling import Policy, Sample, desired, ratio
from tests.bench.record import read

CAPACITY = 10.0
LOAD_SECONDS = 20
MOST = 40
TARGET = 0.7
SLOW = 1.0
"""Seconds of waiting beyond which a request counts as late."""
POLICY = Policy(least=1, most=MOST, outstanding=8, queue_seconds=0.2, utilisation=TARGET, fall_seconds=300.0)

Trace: TypeAlias = Callable[[int], float]
Rule: TypeAlias = Callable[[list[Sample], float, int], int]


@dataclass(slots=True)
class Outcome:
    """What a rule made of a trace. reaction: seconds from the step to the first answer that is higher."""

    late: float
    longest: float
    replica_hours: float
    changes: int
    reaction: float


def diurnal(second: int) -> float:
    """A day in four hours: 10 to 150 requests a second."""
    return 80 - 70 * math.cos(2 * math.pi * second / 14_400)


def burst(second: int) -> float:
    """20 requests a second, and 120 for a minute in every ten."""
    return 120.0 if second % 600 >= 540 else 20.0


def flash_crowd(second: int) -> float:
    """20 requests a second; after half an hour 250 within 10 s, which then slowly go away."""
    if second < 1800:
        return 20.0
    return 20 + 230 * min(1.0, (second - 1800) / 10) * math.exp(-max(0, second - 2400) / 900)


def _noisy() -> list[float]:
    """The same day, as it would be counted: swings of minutes that nobody foresees, and arrivals by chance."""
    # The old generator, whose numbers are the same with every numpy.
    luck = np.random.RandomState(4)
    swing, counts = 0.0, []
    for second in range(14_400):
        swing = 0.99 * swing + luck.normal(0.0, 0.05)
        counts.append(float(luck.poisson(diurnal(second) * math.exp(swing))))
    return counts


NOISY, SESSIONS = _noisy(), read("sessions")

TRACES: dict[str, tuple[Trace, int, int]] = {
    "diurnal": (diurnal, 14_400, 0),
    "burst": (burst, 3_600, 540),
    "flash crowd": (flash_crowd, 5_400, 1800),
    "noisy day": (NOISY.__getitem__, 14_400, 0),
    "recorded": (SESSIONS.__getitem__, len(SESSIONS), 0),
}
RULES: dict[str, tuple[Rule, int]] = {
    "penstock": (lambda samples, now, current: desired(POLICY, samples, now, current).replicas, 5),
    "HPA": (lambda samples, now, current: min(ratio(TARGET, samples, now, current), MOST), 15),
}


def simulate(trace: Trace, seconds: int, step: int, rule: Rule, interval: int) -> Outcome:
    """Runs a trace second by second. interval: seconds between two looks of the rule."""
    ready, wanted, loading, queue = 4.0, 4, [0] * 0, 0.0
    samples: list[Sample] = []
    seen: list[tuple[float, float, float, float]] = []
    outcome = Outcome(0.0, 0.0, 0.0, 0, math.nan)
    total = 0.0
    for second in range(seconds):
        ready += sum(1 for due in loading if due == second)
        loading = [due for due in loading if due > second]
        rate = trace(second)
        served = min(queue + rate, ready * CAPACITY)
        queue += rate - served
        wait = queue / (ready * CAPACITY)
        total += rate
        outcome.late += rate if wait > SLOW else 0.0
        outcome.longest = max(outcome.longest, wait)
        outcome.replica_hours += (ready + len(loading)) / 3600
        seen.append((rate, queue + served / CAPACITY, wait, served / (ready * CAPACITY)))
        if (second + 1) % 5 == 0:
            rates, outstanding, waits, busy = (sum(values) / len(seen) for values in zip(*seen, strict=True))
            samples = [*samples[-140:], Sample(second + 1.0, rates, outstanding, waits, busy, ready)]
            seen = []
        if (second + 1) % interval == 0:
            answer = rule(samples, second + 1.0, wanted)
            if answer > wanted and second >= step and math.isnan(outcome.reaction):
                outcome.reaction = second + 1.0 - step
            outcome.changes += answer != wanted
            loading += [second + LOAD_SECONDS] * max(0, answer - wanted)
            for _ in range(max(0, wanted - answer)):
                # What still loads goes first.
                if loading:
                    loading.pop()
                else:
                    ready -= 1
            wanted = answer
    outcome.late *= 100 / total
    return outcome


def table() -> Iterator[str]:
    """The lines to print."""
    numbers = f"{'late %':>7} {'longest wait s':>15} {'replica hours':>14} {'changes':>8} {'reaction s':>11}"
    yield f"{'trace':12} {'rule':9} {numbers}"
    for name, (trace, seconds, step) in TRACES.items():
        for rule_name, (rule, interval) in RULES.items():
            found = simulate(trace, seconds, step, rule, interval)
            reaction = f"{found.reaction:11.0f}" if step else f"{'-':>11}"
            yield (
                f"{name:12} {rule_name:9} {found.late:7.2f} {found.longest:15.2f} {found.replica_hours:14.2f}"
                f" {found.changes:8d} {reaction}"
            )


def main() -> int:
    """Prints the table."""
    for line in table():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
