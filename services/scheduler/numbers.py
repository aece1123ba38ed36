"""How many replicas each version with scaling has, looked at again and again. Pure: time and demand are passed in.

The rule is scaling.py's; this says when to ask it and what of, and keeps the samples of the recent past. A version that
is at its least, that nobody calls and that no schedule concerns is not looked at. Followers take what is assigned for
the number there is, so that whoever leads next goes on from there.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import models_pb2 as pb

from .demand import Demand
from .intake import Intake
from .scaling import Policy, Sample, Window, Wish, desired
from .snapshot import VersionId

BUSY: Final = 1.0
REST: Final = 5.0
"""Seconds between two looks at a version that is in use, and at one that is not."""
FINE: Final = 15.0
"""Seconds for which samples are kept one by one; older ones are merged, the greatest of each measure."""
MERGED: Final = 32
"""Merged samples of one version at most."""

DAY: Final = 24 * 60
WEEK: Final = 7 * DAY
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def policy_of(scaling: pb.Scaling) -> Policy:
    """What a record says as a policy. A window that cannot be read is left out: the registry lets none through."""
    usual = Policy()
    return Policy(
        least=scaling.min_replicas,
        most=max(scaling.max_replicas, scaling.min_replicas, 1),
        outstanding=scaling.outstanding,
        rate=scaling.rate,
        queue_seconds=scaling.queue_time.ToMicroseconds() / 1e6,
        utilisation=scaling.utilisation,
        windows=tuple(part for window in scaling.schedule for part in _windows(window)),
        rise_seconds=_seconds(scaling, "rise_time", usual.rise_seconds),
        fall_seconds=_seconds(scaling, "fall_time", usual.fall_seconds),
        idle_seconds=_seconds(scaling, "idle_time", usual.idle_seconds),
    )


@dataclass(slots=True)
class _Followed:
    """One version that is looked at. wanted: what `policy` was made of. woken: when it last went from none to some."""

    wanted: records.WantedVersion
    policy: Policy
    samples: deque[Sample] = field(default_factory=deque)
    number: int | None = None
    wish: Wish = field(default_factory=lambda: Wish(0, ""))
    woken: float | None = None


class Numbers:
    """Follows all versions with scaling."""

    def __init__(self, intake: Intake, demand: Demand) -> None:
        self._intake = intake
        self._demand = demand
        self._followed: dict[VersionId, _Followed] = {}
        self._due: list[tuple[float, VersionId]] = []
        self._next: dict[VersionId, float] = {}

    def look(self, now: float, minute: int, *, leading: bool) -> None:
        """Tells the intake new numbers, of versions that it is time for. minute: of the week, from Monday 00:00 UTC."""
        due = self._intake.rescaled | self._demand.active
        self._intake.rescaled, self._demand.active = set(), set()
        while self._due and self._due[0][0] <= now:
            time, version = heapq.heappop(self._due)
            if self._next.get(version) == time:
                due.add(version)
        for version in sorted(due):
            wanted = self._intake.scaled.get(version)
            if wanted is None:
                self._followed.pop(version, None)
                self._next.pop(version, None)
            else:
                self._look_at(version, wanted, now, minute, leading)

    def next_look(self, now: float) -> float | None:
        """Seconds until it is time for a version; None when time alone changes nothing."""
        while self._due and self._next.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return max(self._due[0][0] - now, 0.0) if self._due else None

    def wish(self, version: VersionId) -> Wish | None:
        """What was made of its demand last; None for a version without scaling."""
        followed = self._followed.get(version)
        return followed.wish if followed is not None else None

    def floor(self, version: VersionId, minute: int) -> int:
        """Replicas that it has whatever its demand is."""
        followed = self._followed.get(version)
        return 0 if followed is None else _floor(followed.policy, minute)

    def resident_seconds(self, version: VersionId, now: float) -> float | None:
        """Since its first replica was asked for; None when that was before anybody here knew."""
        followed = self._followed.get(version)
        return None if followed is None or followed.woken is None else now - followed.woken

    def evict(self, version: VersionId) -> None:
        """Takes all its replicas away, until somebody calls it."""
        followed = self._followed[version]
        followed.number, followed.wish = 0, Wish(0, "made room for others")
        # Whoever called it before calls it back no more.
        followed.samples.clear()
        self._intake.scale(version, 0)

    def _look_at(
        self, version: VersionId, wanted: records.WantedVersion, now: float, minute: int, leading: bool
    ) -> None:
        followed, known = self._followed.get(version), self._intake.planner.known
        if followed is None:
            followed = self._followed[version] = _Followed(wanted, policy_of(wanted.scaling))
        elif followed.wanted is not wanted:
            followed.wanted, followed.policy = wanted, policy_of(wanted.scaling)
        policy = followed.policy
        assigned = self._intake.assigned(version)
        current = assigned if followed.number is None or not leading else followed.number
        sample = self._demand.sample(version, known.ready_count(version), now)
        if sample is not None:
            _keep(followed, sample)
        if wanted.retiring:
            wish = Wish(min(current, policy.most), "is retiring")
        else:
            wish = desired(policy, followed.samples, now, current, minute=minute)
            if wish.replicas == 0 and self._takes_over(version):
                wish = replace(wish, replicas=1, reason="takes over from a retiring version")
        if wish.replicas and not current:
            followed.woken = now
        followed.number, followed.wish = wish.replicas, wish
        self._intake.scale(version, wish.replicas)
        self._plan_next(version, followed, now, minute)

    def _takes_over(self, version: VersionId) -> bool:
        """Whether it is the default, none of it is READY, and a version that retires still serves."""
        known = self._intake.planner.known
        deployment = self._intake.deployments[version.name]
        return (
            deployment.default_version == version.version
            and not known.ready_count(version)
            and any(
                other.retiring and known.ready_count(VersionId(version.name, other.version))
                for other in deployment.versions
            )
        )

    def _plan_next(self, version: VersionId, followed: _Followed, now: float, minute: int) -> None:
        policy = followed.policy
        busy = self._demand.in_use(version, now)
        at_rest = followed.number == _floor(policy, minute) and not policy.windows
        if at_rest and not busy and not any(sample.rate or sample.outstanding for sample in followed.samples):
            followed.samples.clear()
            self._next.pop(version, None)
            return
        self._next[version] = now + (BUSY if busy else REST)
        heapq.heappush(self._due, (self._next[version], version))


def _keep(followed: _Followed, sample: Sample) -> None:
    """Adds a sample; merges what is old and drops what nobody will look at."""
    samples, policy = followed.samples, followed.policy
    kept = max(policy.fall_seconds, policy.idle_seconds) + policy.rise_seconds
    width = max(kept / MERGED, FINE)
    if samples and sample.time - samples[-1].time < BUSY / 2:
        # Looked at again within a moment, for another reason.
        samples[-1] = _greater(samples[-1], sample)
        return
    samples.append(sample)
    while len(samples) > 1 and sample.time - samples[1].time > kept + width:
        samples.popleft()
    old = len(samples) - 1
    while old > 0 and sample.time - samples[old].time <= FINE:
        old -= 1
    if old > 0 and samples[old].time // width == samples[old - 1].time // width:
        samples[old - 1] = _greater(samples[old - 1], samples[old])
        del samples[old]


def _greater(before: Sample, after: Sample) -> Sample:
    return Sample(
        after.time,
        max(before.rate, after.rate),
        max(before.outstanding, after.outstanding),
        max(before.queue_seconds, after.queue_seconds),
        max(before.utilisation, after.utilisation),
        max(before.replicas, after.replicas),
    )


def _floor(policy: Policy, minute: int) -> int:
    opened = (window.replicas for window in policy.windows if window.begin <= minute < window.end)
    return min(max([policy.least, *opened]), policy.most)


def _seconds(scaling: pb.Scaling, name: str, usual: float) -> float:
    return float(getattr(scaling, name).ToMicroseconds() / 1e6) if scaling.HasField(name) else usual  # type: ignore[arg-type]


def _windows(window: pb.ScaleWindow) -> Sequence[Window]:
    """Parts of the week from Monday 00:00 UTC; what goes on beyond Sunday begins again on Monday."""
    try:
        begin, end = _minutes(window.begin), _minutes(window.end)
        first = [DAYS.index(day) * DAY for day in window.days or DAYS]
    except ValueError:
        return ()
    length = end - begin if end > begin else end - begin + DAY
    parts = []
    for start in (day + begin for day in first):
        parts.append(Window(start, min(start + length, WEEK), window.replicas))
        if start + length > WEEK:
            parts.append(Window(0, start + length - WEEK, window.replicas))
    return parts


def _minutes(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)
