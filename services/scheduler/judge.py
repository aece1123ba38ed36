"""From records and demand to what should be: how many replicas, which leave, who makes room, what runs where. Pure.

Every scheduler judges, whether it leads or not; only a leader's numbers are remembered, and only a leader makes room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from penstock.v1 import cluster_pb2 as pb

from . import residency
from .demand import Demand, Said
from .intake import Intake
from .numbers import Numbers
from .placement import Plan, is_coming
from .reservations import Reservation
from .shunning import Shunning
from .snapshot import VersionId, Wanted

SWEEP: Final = 10.0
"""Seconds between two looks for what can be forgotten."""
ROOM: Final = 0.5
"""Seconds after which room that could not be made is looked for again though nothing has changed."""
MOST_TRIED: Final = 8
"""Versions for which one look makes room; those that are waited for first."""
SOON: Final = 0.5
"""Seconds at least that somebody is told to wait."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """When a first replica takes requests. seconds: 0 when nobody knows. obstacle: why never, in public words."""

    seconds: float = 0.0
    obstacle: str = ""


class Judge:
    """One cluster.

    reservations: for tenants. intake: is told of records by whoever has them. evicted: how many versions have made
    room so far.
    """

    def __init__(self, reservations: Sequence[Reservation] = ()) -> None:
        self.intake = Intake(reservations)
        self.demand = Demand()
        self.numbers = Numbers(self.intake, self.demand)
        self.evicted = 0
        self._shunning = Shunning()
        self._swept = 0.0
        self._tried: tuple[Plan, float] | None = None
        self._rooms: dict[VersionId, residency.Room] = {}
        self._tried_at: dict[VersionId, float] = {}

    def report(
        self, source: str, versions: Mapping[VersionId, Said], gray: Iterable[tuple[VersionId, str]], now: float
    ) -> None:
        """What one process says. gray: replicas, by version and worker, that it keeps away from."""
        known = {version: said for version, said in versions.items() if self.intake.is_deployed(version)}
        kept = [(version, worker) for version, worker in gray if worker in self.intake.planner.known.workers]
        self.demand.report(source, known, kept, now)

    def look(self, now: float, minute: int, *, leading: bool) -> bool:
        """Numbers and what is shunned, as far as it is time; whether there is something to plan."""
        if now - self._swept >= SWEEP:
            self._swept = now
            self.demand.sweep(now, self.intake.is_deployed)
        self.numbers.look(now, minute, leading=leading)
        known = self.intake.planner.known
        changed = self._shunning.look(
            self.demand.gray(now),
            callers=lambda version: self.demand.callers(version, now),
            told=lambda version: frozenset(known.told_at.get(version, ())),
            started=self.intake.started,
            workers=len(known.workers),
            now=now,
        )
        for version, workers in changed.items():
            self.intake.shun(version, workers)
        return known.changed or bool(self._rooms)

    def plan(self, now: float, minute: int, held: frozenset[str], *, leading: bool) -> Plan:
        """What should be. held: workers that are gone and whose assignments stay."""
        self.look(now, minute, leading=leading)
        planned = self.intake.plan(held)
        if not leading:
            self._rooms = {}
            return planned
        if self._tried is not None and self._tried[0] is planned and now - self._tried[1] < ROOM:
            return planned
        for _ in range(MOST_TRIED):
            if not self._make_room(planned, now, minute):
                break
            planned = self.intake.plan(held)
        self._tried = planned, now
        return planned

    def estimates(self, versions: Iterable[VersionId], now: float, *, leading: bool) -> dict[VersionId, Estimate]:
        """For those that have no READY replica. Good after `plan`. Only a leader knows of obstacles."""
        known = self.intake.planner.known
        found = {}
        for version in versions:
            item = self.intake.wanted(version)
            if item is not None and not known.ready_count(version):
                found[version] = self._estimate(item, now, leading)
        return found

    def _estimate(self, item: Wanted, now: float, leading: bool) -> Estimate:
        draft, version = self.intake.planner.draft, item.id
        load = self.intake.load_seconds(version)
        if not draft.count(version):
            room = self._rooms.get(version)
            if not leading or room is None:
                return Estimate(load)
            if room.seconds is None:
                return Estimate(obstacle=self._obstacle(item))
            return Estimate(load + room.seconds if load else 0.0)
        there = self.intake.replicas.get(version, {}).values()
        failed = [record.reason for record in there if record.state == pb.REPLICA_STATE_FAILED]
        if leading and failed and len(failed) >= draft.count(version):
            return Estimate(obstacle=f"it could not be loaded and is tried again: {failed[0]}")
        since = self.numbers.resident_seconds(version, now) or 0.0
        return Estimate(max(load - since, SOON) if load else 0.0)

    def _obstacle(self, item: Wanted) -> str:
        if not self.intake.planner.draft.pools.eligible(item):
            return f"no worker can run it: it needs engine {item.engine}, and perhaps devices or labels that none has"
        return "no worker has room for it: whatever runs there is in use, pinned or to run at all times"

    def _make_room(self, planned: Plan, now: float, minute: int) -> bool:
        """Evicts for the most urgent of what has no place; whether anything goes."""
        planner = self.intake.planner
        waiting = [item for version in planned.unplaced if (item := self._urgent(version, now, minute)) is not None]
        self._rooms = {item.id: self._rooms[item.id] for item in waiting if item.id in self._rooms}
        self._tried_at = {item.id: self._tried_at.get(item.id, 0.0) for item in waiting}
        if not waiting:
            return False
        waiting.sort(
            key=lambda item: (
                not self.demand.waiting(item.id, now),
                # By turns: those for which nothing can be done keep nobody else from being tried.
                self._tried_at[item.id],
                -item.needs.priority,
                item.id,
            )
        )
        residents = self._residents(now, minute)
        for item in waiting[:MOST_TRIED]:
            self._tried_at[item.id] = now
            if is_coming(planner.draft, item):
                self._rooms.pop(item.id, None)
                continue
            room = self._rooms[item.id] = residency.make_room(planner, item, residents)
            for version in room.evict:
                self.numbers.evict(version)
                self.evicted += 1
            if room.evict:
                return True
        return False

    def _urgent(self, version: VersionId, now: float, minute: int) -> Wanted | None:
        """What is wanted of a version without a place, when others should go for it."""
        item = self.intake.wanted(version)
        if item is None or item.retiring:
            return None
        if version not in self.intake.scaled or self.numbers.floor(version, minute) > self._count(version):
            return item
        return item if self.demand.in_use(version, now) else None

    def _residents(self, now: float, minute: int) -> list[residency.Resident]:
        demand, numbers = self.demand, self.numbers
        return [
            residency.Resident(
                version,
                demand.idle_seconds(version, now),
                numbers.resident_seconds(version, now),
                self.intake.load_seconds(version),
            )
            for version in self.intake.planner.draft.at
            if version in self.intake.scaled and not numbers.floor(version, minute) and not demand.in_use(version, now)
        ]

    def _count(self, version: VersionId) -> int:
        return len(self.intake.planner.draft.at.get(version, ()))
