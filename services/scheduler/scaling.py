"""How many replicas a version should have: several policies at once, the most demanding wins. Pure.

`desired` looks at samples of the recent past and answers a number. It rises as soon as the last `rise_seconds` ask for
more, and falls only to the most that any moment of the last `fall_seconds` asked for: what is one peak for the one is
no valley for the other, so the number does not swing. Reaction time upwards is therefore at most `rise_seconds`, one
interval between samples and the time that a replica takes to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of one version over one interval that ended at `time` (seconds, any monotonic clock).

    rate: requests a second. outstanding: requests under way or waiting, on average. queue_seconds: a request's wait,
    on average. utilisation: busy part of its replicas' engines, 0 to 1. replicas: READY ones, on average.
    """

    time: float
    rate: float
    outstanding: float
    queue_seconds: float
    utilisation: float
    replicas: float


@dataclass(frozen=True, slots=True)
class Window:
    """At least so many replicas while a schedule says so. minutes: of the week from Monday 00:00, [begin, end)."""

    begin: int
    end: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What a version should have. Targets are per replica, 0 for a policy that is not used.

    least, most: bounds; least 0 lets it go to zero after `idle_seconds` without a request. outstanding, rate: requests
    under way, and a second. queue_seconds: wait that is allowed. utilisation: 0 to 1. windows: the schedule.
    tolerance: a policy that asks for so small a part more than there is asks for nothing.
    """

    least: int = 1
    most: int = 1
    outstanding: float = 0.0
    rate: float = 0.0
    queue_seconds: float = 0.0
    utilisation: float = 0.0
    windows: tuple[Window, ...] = ()
    rise_seconds: float = 5.0
    fall_seconds: float = 300.0
    idle_seconds: float = 600.0
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class Wish:
    """The answer. reason: which policy won, for people. asked: what each asked for, before the bounds."""

    replicas: int
    reason: str
    asked: dict[str, int] = field(default_factory=dict)


def desired(policy: Policy, samples: Sequence[Sample], now: float, current: int, *, minute: int = 0) -> Wish:
    """How many replicas it should have from now on.

    samples: in order of time; older ones than `policy.fall_seconds` and `policy.idle_seconds` are not looked at.
    current: how many are wanted now. minute: of the week, for the schedule.
    """
    asked = _asked(policy, [s for s in samples if now - s.time < policy.rise_seconds], current)
    floor, why = policy.least, "least"
    for window in policy.windows:
        if window.begin <= minute < window.end and window.replicas > floor:
            floor, why = window.replicas, "schedule"
    wanted = max(asked.values(), default=0)
    if wanted > current:
        reason = max(asked, key=lambda name: asked[name])
    else:
        wanted, reason = _fallen(policy, samples, now, current, wanted)
    if wanted < floor:
        wanted, reason = floor, why
    if wanted == 0 and current and not _is_idle(policy, samples, now):
        wanted, reason = 1, "not idle for long enough"
    if (
        wanted == 0
        and not current
        and any(s.rate or s.outstanding for s in samples if now - s.time < policy.rise_seconds)
    ):
        wanted, reason = 1, "called while at zero"
    if wanted > policy.most:
        wanted, reason = policy.most, f"most, though {reason} asks for more"
    return Wish(wanted, reason, asked)


def ratio(target: float, samples: Sequence[Sample], now: float, current: int, *, stabilise: float = 300.0) -> int:
    """What the usual rule of Kubernetes' autoscaler makes of utilisation, to compare with: replicas times measured over
    target, a tolerance of a tenth, and the most of the last `stabilise` seconds when it falls."""
    recent = [s for s in samples if now - s.time < 15.0]
    if not recent or not current:
        return max(current, 1)
    latest = _by_ratio(target, _mean(recent, lambda s: s.utilisation), current)
    if latest >= current:
        return latest
    past = (_by_ratio(target, s.utilisation, max(s.replicas, 1)) for s in samples if now - s.time < stabilise)
    return min(current, max([latest, *past]))


def _by_ratio(target: float, measured: float, replicas: float) -> int:
    part = measured / target
    return math.ceil(replicas - 1e-9) if abs(part - 1) <= 0.1 else max(1, math.ceil(replicas * part - 1e-9))


def _asked(policy: Policy, samples: Sequence[Sample], current: int) -> dict[str, int]:
    """What each policy that is in use asks for, from the mean of these samples."""
    if not samples:
        return {}
    replicas = max(_mean(samples, lambda s: s.replicas), 1.0)
    loads: dict[str, float] = {}
    if policy.outstanding:
        loads["outstanding"] = _mean(samples, lambda s: s.outstanding) / policy.outstanding
    if policy.rate:
        loads["rate"] = _mean(samples, lambda s: s.rate) / policy.rate
    if policy.queue_seconds:
        loads["queue"] = _for_queue(policy, samples, replicas)
    if policy.utilisation:
        loads["utilisation"] = _mean(samples, lambda s: s.utilisation) * replicas / policy.utilisation
    return {name: _whole(load, policy.tolerance, current) for name, load in loads.items()}


def _for_queue(policy: Policy, samples: Sequence[Sample], replicas: float) -> float:
    """Replicas that work off what waits for too long; those that are busy now while nothing does.

    In ten times the allowed wait, and at most twice as many as are READY: a queue says that there are too few, and not
    by how many.
    """
    wait = _mean(samples, lambda s: s.queue_seconds)
    if wait <= policy.queue_seconds:
        return replicas * min(max(_mean(samples, lambda s: s.utilisation), 0.0), 1.0)
    return replicas * min(2.0, 1.0 + (wait - policy.queue_seconds) / (10 * policy.queue_seconds))


def _whole(load: float, tolerance: float, current: int) -> int:
    """Replicas for a load, the number there is when they are about enough."""
    wanted = math.ceil(load - 1e-9)
    return current if wanted > current and current and load <= current * (1 + tolerance) else wanted


def _fallen(policy: Policy, samples: Sequence[Sample], now: float, current: int, wanted: int) -> tuple[int, str]:
    """As low as every moment of the recent past allows, not lower."""
    recent = [s for s in samples if now - s.time < policy.fall_seconds]
    # A past that is shorter than that says nothing about what was before it.
    if not recent or recent[0].time > now - policy.fall_seconds + policy.rise_seconds:
        return current, "too early to fall"
    highest = max(max(_asked(policy, [sample], 0).values(), default=0) for sample in recent)
    wanted = max(wanted, highest)
    return (current, "enough") if wanted >= current else (wanted, "fallen")


def _is_idle(policy: Policy, samples: Sequence[Sample], now: float) -> bool:
    recent = [s for s in samples if now - s.time < policy.idle_seconds]
    covered = bool(samples) and samples[0].time <= now - policy.idle_seconds + policy.rise_seconds
    return covered and not any(s.rate or s.outstanding for s in recent)


def _mean(samples: Iterable[Sample], of: Callable[[Sample], float]) -> float:
    values = [of(sample) for sample in samples]
    return sum(values) / len(values)
