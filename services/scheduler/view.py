"""What this scheduler knows of the cluster: mirrors of all records, the plan for them, and a bell that rings when one
changes.

Every scheduler keeps its planner informed, whether it leads or not: all answer from their own plan, and one that begins
to lead need not learn the cluster first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from penstock.cluster import Etcd, Mirror, keys
from penstock.cluster.kv import Op
from penstock.internal.v1 import records_pb2 as records

from .absence import Absences
from .drains import Drains
from .judge import Judge
from .placement import Plan
from .reservations import Reservation
from .status import Picture

LOOK = 1.0
"""Seconds between two looks at the demand."""


class ClusterView:
    """The cluster now.

    grace: seconds for which nothing is taken away after the store went back in time. reservations: for tenants.
    """

    def __init__(
        self, etcd: Etcd, absences: Absences, *, grace: float, reservations: Sequence[Reservation] = ()
    ) -> None:
        self._absences = absences
        self._drained = Drains()
        self._grace = grace
        self._rewinds = 0
        self._observed = False
        self.leading = False
        """Whether this scheduler leads; the controller says so."""
        self.reporters = 0
        """Processes that have told of their demand not long ago."""
        self._rewound_at: float | None = None
        self._listeners: set[asyncio.Event] = set()
        self.judge = Judge(reservations)
        intake = self.intake = self.judge.intake
        self._deployments = Mirror(
            etcd, keys.DEPLOYMENTS, records.DeploymentRecord, self._changed, on_record=intake.deployment
        )
        self.workers = Mirror(etcd, keys.WORKERS, records.WorkerRecord, self._workers_changed, on_record=intake.worker)
        self._replicas = Mirror(etcd, keys.REPLICAS, records.ReplicaRecord, self._changed, on_record=intake.replica)
        self.assignments = Mirror(
            etcd, keys.ASSIGNMENTS, records.AssignmentRecord, self._workers_changed, on_record=intake.assignment
        )
        self._learned = Mirror(etcd, keys.LEARNED, records.LearnedRecord, self._changed, on_record=intake.learned)
        self._drains = Mirror(etcd, keys.DRAINS, records.DrainRecord, self._workers_changed, on_record=intake.drain)
        self._services = Mirror(etcd, keys.SERVICES, records.ServiceRecord, self._changed)
        self._leader = Mirror(etcd, keys.LEADER, records.LeaderRecord, self._changed)
        self.pools = Mirror(etcd, keys.POOLS, records.PoolRecord, self._changed)
        self._placing = (
            self._deployments,
            self.workers,
            self._replicas,
            self.assignments,
            self._learned,
            self._drains,
        )
        self._mirrors = (*self._placing, self._services, self._leader, self.pools)

    async def run(self) -> None:
        """Keeps it fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking(), name="looks at demand")
            for mirror in self._mirrors:
                group.create_task(mirror.run(), name=f"mirror {mirror.prefix}")

    @property
    def connected(self) -> bool:
        """Whether everything that placement looks at is fresh."""
        return all(mirror.connected for mirror in self._placing)

    @property
    def known(self) -> bool:
        """Whether everything has been read once."""
        return all(mirror.revision for mirror in self._mirrors)

    @property
    def rewinds(self) -> int:
        """How often the store turned out older than it was."""
        return sum(mirror.rewinds for mirror in self._placing)

    async def refresh(self) -> None:
        """Reads what placement looks at now: all that was written before is seen after. Raises Unavailable."""
        for mirror in self._placing:
            await mirror.refresh()

    def wrote(self, operations: Sequence[Op], revision: int, messages: Mapping[str, Any]) -> None:
        """Takes in what this scheduler, which leads, has written at that revision. messages: of the puts, by key."""
        for mirror in (self.assignments, self._learned):
            mirror.wrote(operations, revision, messages)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something changes; the listener clears it."""
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)

    def plan(self) -> Plan:
        """What should be, now. It costs what has changed since it was asked for last."""
        now = asyncio.get_running_loop().time()
        return self.judge.plan(now, _minute(), self._absences.held(now), leading=self.decides)

    def look(self) -> None:
        """Makes of the newest demand what there is to make of it; rings when that changes the plan."""
        now = asyncio.get_running_loop().time()
        if self.known and self.judge.look(now, _minute(), leading=self.decides):
            self._ring()

    @property
    def only_add(self) -> bool:
        """Whether nothing may be taken from a worker now, since the store has gone back in time not long ago."""
        now = asyncio.get_running_loop().time()
        return self._rewound_at is not None and now - self._rewound_at < self._grace

    @property
    def decides(self) -> bool:
        """Whether it leads, and believes that what it knows is all that there is: for a while after the store has gone
        back in time, what there is says how many replicas there should be."""
        return self.leading and not self.only_add

    def forgotten_drains(self) -> list[str]:
        """Workers that somebody wanted empty and that are gone for good."""
        return [] if self.only_add else self._drained.forgotten(asyncio.get_running_loop().time())

    def next_look(self) -> float | None:
        """Seconds after which time alone changes what `plan` or `only_add` say; None for never."""
        now = asyncio.get_running_loop().time()
        ends = [self._absences.next_end(now), self._drained.next_end(now)]
        if self._rewound_at is not None and self.only_add:
            ends.append(self._rewound_at + self._grace - now)
        return min((end for end in ends if end is not None), default=None)

    def picture(self) -> Picture:
        """All that the status shows."""
        return Picture(
            judge=self.judge,
            now=asyncio.get_running_loop().time(),
            plan=self.plan(),
            workers=self.workers.records.values(),
            services=self._services.records.values(),
            pools=self.pools.records.values(),
            leader=self._leader.records.get(keys.LEADER, records.LeaderRecord()),
            term=self._leader.create_revision(keys.LEADER),
            revision=self.revision,
        )

    @property
    def revision(self) -> int:
        """The newest revision of the store that is known here."""
        return max(mirror.revision for mirror in self._mirrors)

    def _workers_changed(self) -> None:
        if self.known:
            live = {record.id: record for record in self.workers.records.values()}
            told = [record.worker for record in self.assignments.records.values()]
            now = asyncio.get_running_loop().time()
            self._absences.observe(live, told, now)
            self._drained.observe(self.intake.drains, live, now)
        self._changed()

    def _changed(self) -> None:
        rewinds = self.rewinds
        if rewinds > self._rewinds:
            self._rewinds, self._rewound_at = rewinds, asyncio.get_running_loop().time()
        if self.known and not self._observed:
            # All has been read once: whoever is missing from the first picture is gone.
            self._observed = True
            self._workers_changed()
            return
        self._ring()

    def _ring(self) -> None:
        for event in self._listeners:
            event.set()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self.look()
            self.reporters = self.judge.demand.heard(asyncio.get_running_loop().time())


def _minute() -> int:
    """Of the week in UTC, from Monday 00:00: schedules are the one thing here that the wall clock decides."""
    now = datetime.now(UTC)
    return (now.weekday() * 24 + now.hour) * 60 + now.minute
