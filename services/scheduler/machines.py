"""How many workers each pool should have, and who goes first when it has too many. Pure: the time is passed in.

A pool is a group of workers that are alike and bear its name in a label, `pool=NAME`. It grows as soon as something has
no place and would have one on a worker more, or when less of it is free than should be; by as many as that takes. It
shrinks when it could have done with fewer for a while, a few at a time, and only by workers whose replicas all
have a place elsewhere by the rules of placement itself. Nobody goes who has the only READY copy of what is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from .fitting import LABEL, Cluster, Floor, Kind, Newcomers, kind_of, workers_for
from .snapshot import Replica, VersionId

HYSTERESIS: Final = 0.9
"""A pool that has something to move shrinks only when all then fills at most so much of what would make it grow."""
_LOOKS: Final = 20
"""Times that who could go is looked for while a pool waits to shrink: it is the dear part of a decision."""
_TRIED: Final = 4
"""Workers that are tried for each that may go, the emptiest first."""
_MOST: Final = 8
"""Workers of a pool that are told to go together."""


@dataclass(frozen=True, slots=True)
class Pool:
    """What one pool may be. least, most: workers. spare: part of what it offers that should stay free, below 1."""

    name: str
    least: int
    most: int
    spare: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """rise_seconds: how long something must lack a place, since moving others may find it one. fall_seconds: for how
    long a pool must have had too many."""

    rise_seconds: float = 2.0
    fall_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Course:
    """What a pool should be, and what is remembered of it until the next look.

    count: workers that it should have. leaving: ids of those that were chosen to go and are still there; they are not
    among `count`. reason: in words. short_since, slack_since: since when it has had too few, or too many; None when it
    has not. looked_at: when who could go was last looked for. kind: what its workers are like, once one was seen.
    """

    count: int
    leaving: frozenset[str] = frozenset()
    reason: str = ""
    short_since: float | None = None
    slack_since: float | None = None
    looked_at: float | None = None
    kind: Kind | None = None


def decide(
    pools: Sequence[Pool], courses: Mapping[str, Course], cluster: Cluster, pace: Pace, now: float
) -> dict[str, Course]:
    """What each pool should be from now on. courses: of the look before; of a first look, just how many there are."""
    if cluster.unsure:
        why = "nothing changes while it is not sure which workers are there"
        calm = {name: replace(course, short_since=None, slack_since=None) for name, course in courses.items()}
        return {pool.name: replace(calm[pool.name], reason=why) for pool in pools}
    here = {pool.name: _Here.of(pool, courses[pool.name], cluster) for pool in pools}
    newcomers = Newcomers(
        cluster,
        {name: found.course.kind for name, found in here.items()},
        {name: found.pool.most - found.size for name, found in here.items()},
    )
    newcomers.receive()
    going = frozenset(chain.from_iterable(found.course.leaving for found in here.values()))
    return {
        name: _risen(found, newcomers, pace, now) or _fallen(found, newcomers, cluster, going, pace, now)
        for name, found in here.items()
    }


@dataclass(frozen=True, slots=True)
class _Here:
    """One pool as it is. staying: ids of live workers that neither drain nor were chosen to go; idle: how many of them
    run nothing. size: those that stay, and those that somebody else has told to drain and that count all the same."""

    pool: Pool
    course: Course
    staying: tuple[str, ...]
    size: int
    idle: int

    @classmethod
    def of(cls, pool: Pool, course: Course, cluster: Cluster) -> _Here:
        members = sorted(name for name, worker in cluster.workers.items() if worker.labels.get(LABEL) == pool.name)
        leaving = course.leaving.intersection(members)
        drains = {name for name in members if cluster.workers[name].draining}
        if len(members) - len(drains) <= course.count:
            # Somebody else went instead, or who was to go was never told.
            leaving &= drains
        staying = tuple(name for name in members if name not in leaving and name not in drains)
        kind = kind_of([cluster.workers[name] for name in staying], course.kind)
        idle = sum(1 for name in staying if not cluster.assignments.get(name))
        # Who drains counts as far as there is nobody in its place yet: a drained machine stays, an evicted pod goes.
        drained = len(members) - len(leaving) - len(staying)
        size = len(staying) + min(drained, max(course.count - len(staying), 0))
        return cls(pool, replace(course, leaving=leaving, kind=kind), staying, size, idle)

    def filling(self, cluster: Cluster, newcomers: Newcomers, part: float) -> int:
        """Workers that it takes so that what is reserved fills at most `part` of them."""
        if self.course.kind is None:
            return 0
        mine: Iterator[Replica] = chain.from_iterable(cluster.assignments.get(name, ()) for name in self.staying)
        return workers_for(chain(mine, newcomers.reserved(self.pool.name)), self.course.kind, part)


def _risen(here: _Here, newcomers: Newcomers, pace: Pace, now: float) -> Course | None:
    """The course of a pool that has too few; None for any other."""
    pool, course = here.pool, here.course
    # An empty worker takes what it can when the plan is made: whatever still lacks a place would not fit on another.
    added = max(newcomers.added[pool.name] - here.idle, 0)
    needed, reason = here.size + added, _lacking(newcomers.whom.get(pool.name, []))
    if pool.spare and (filled := here.filling(newcomers.cluster, newcomers, 1 - pool.spare)) > needed:
        needed, reason = filled, f"less than {pool.spare:.0%} of what it offers is free"
    if needed > pool.most or (needed == pool.most and newcomers.left):
        needed, reason = pool.most, f"{reason}; {pool.most} is the most"
    if max(needed, pool.least) <= course.count:
        if needed <= here.size:
            return None
        coming = course.count - here.size
        reason = f"{coming} to come, since {reason}" if coming > 0 else reason
        return replace(course, reason=reason, short_since=None, slack_since=None)
    if course.count < pool.least:
        return replace(course, count=max(course.count, pool.least), reason=f"{pool.least} is the least")
    since = now if course.short_since is None else course.short_since
    if now - since < pace.rise_seconds:
        return replace(course, reason=f"soon more, since {reason}", short_since=since, slack_since=None)
    # Who was to go and has not begun to may stay after all.
    drains = frozenset(name for name in course.leaving if newcomers.cluster.workers[name].draining)
    count = min(needed + len(course.leaving - drains), max(pool.most, needed))
    return replace(course, count=count, leaving=drains, reason=reason, short_since=None, slack_since=None)


def _fallen(
    here: _Here, newcomers: Newcomers, cluster: Cluster, going: frozenset[str], pace: Pace, now: float
) -> Course:
    """The course of a pool that has enough, or too many."""
    pool, course = here.pool, replace(here.course, short_since=None)
    absent = course.count - max(here.size, pool.least)
    if course.leaving:
        return replace(course, reason=f"waits for {_listed(sorted(course.leaving))} to leave")
    if absent <= 0 and course.count <= pool.least:
        return replace(course, slack_since=None, looked_at=None, reason=f"{pool.least} is enough, and the least")
    if course.count >= pool.most and newcomers.left:
        return replace(course, slack_since=None, looked_at=None, reason=f"{pool.most} is the most")
    waited = 0.0 if course.slack_since is None else now - course.slack_since
    due = course.slack_since is not None and waited >= pace.fall_seconds
    if not due and course.looked_at is not None and now - course.looked_at < pace.fall_seconds / _LOOKS:
        return course
    leavers: tuple[str, ...] = ()
    if absent > 0:
        why = f"{absent} that {'has' if absent == 1 else 'have'} not come not needed"
    else:
        leavers, why = _who_goes(here, newcomers, cluster, going)
        if not leavers:
            return replace(course, slack_since=None, looked_at=now, reason=why)
    since = now if course.slack_since is None else course.slack_since
    if not due:
        return replace(course, slack_since=since, looked_at=now, reason=f"soon fewer: {why}")
    return replace(
        course,
        count=course.count - (absent if absent > 0 else len(leavers)),
        leaving=frozenset(leavers),
        # Whoever is next has waited too.
        slack_since=since,
        looked_at=None,
        reason=why,
    )


def _who_goes(
    here: _Here, newcomers: Newcomers, cluster: Cluster, going: frozenset[str]
) -> tuple[tuple[str, ...], str]:
    """Who can go now, a tenth at most, and why; nobody, and why not."""
    pool = here.pool
    least = max(pool.least, here.filling(cluster, newcomers, (1 - pool.spare) * HYSTERESIS))
    why = f"{here.size} are enough, and fewer would be too full"
    if here.size <= least and (not here.idle or pool.spare):
        return (), why
    everybody = (name for name, worker in cluster.workers.items() if not worker.draining and name not in going)
    floor = Floor(cluster, everybody)
    most = min(max(1, len(here.staying) // 10), _MOST)
    chosen: list[str] = []
    ordered = sorted(here.staying, key=lambda name: (_load(cluster.assignments.get(name, ())), *_newest(name)))
    for name in ordered[: most * _TRIED]:
        idle = not cluster.assignments.get(name)
        if len(chosen) == most or here.size - len(chosen) <= (pool.least if idle and not pool.spare else least):
            break
        stuck = floor.clear(name)
        if stuck is None:
            chosen.append(name)
        elif not chosen:
            why = f"enough: {stuck} on {name} has no place elsewhere"
    if not chosen:
        return (), why
    runs = any(cluster.assignments.get(name) for name in chosen)
    goes = "goes" if len(chosen) == 1 else "go"
    return tuple(chosen), f"{_listed(chosen)} {goes}: what runs there fits elsewhere" if runs else (
        f"{_listed(chosen)} {goes}: nothing runs there"
    )


def _load(replicas: Sequence[Replica]) -> int:
    return sum([r.memory_bytes + (sum(size for _, size in r.devices) if r.devices else 0) for r in replicas])


def _newest(name: str) -> tuple[int, tuple[int, ...]]:
    """Of two that are equally empty the one with the later name goes: numbered names stay low."""
    return -len(name), tuple(-ord(letter) for letter in name)


def _lacking(versions: Sequence[VersionId]) -> str:
    names = [f"{version.name}@{version.version}" for version in versions]
    return f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no place"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
