"""What this scheduler knows of the cluster: mirrors of all records, and a bell that rings when one changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from penstock.cluster import Etcd, Mirror, keys
from penstock.internal.v1 import records_pb2 as records

from .absence import Absences
from .reservations import Reservation, kept_on
from .snapshot import ClusterSnapshot, take
from .status import Picture


class ClusterView:
    """The cluster now.

    grace: seconds for which nothing is taken away after the store went back in time. reservations: for tenants.
    """

    def __init__(
        self, etcd: Etcd, absences: Absences, *, grace: float, reservations: Sequence[Reservation] = ()
    ) -> None:
        self._reservations = reservations
        self._absences = absences
        self._grace = grace
        self._rewinds = 0
        self._rewound_at: float | None = None
        self._listeners: set[asyncio.Event] = set()
        self.deployments = Mirror(etcd, keys.DEPLOYMENTS, records.DeploymentRecord, self._changed)
        self.workers = Mirror(etcd, keys.WORKERS, records.WorkerRecord, self._changed)
        self.replicas = Mirror(etcd, keys.REPLICAS, records.ReplicaRecord, self._changed)
        self.assignments = Mirror(etcd, keys.ASSIGNMENTS, records.AssignmentRecord, self._changed)
        self.services = Mirror(etcd, keys.SERVICES, records.ServiceRecord, self._changed)
        self.leader = Mirror(etcd, keys.LEADER, records.LeaderRecord, self._changed)
        self.learned = Mirror(etcd, keys.LEARNED, records.LearnedRecord, self._changed)
        self._placing = (self.deployments, self.workers, self.replicas, self.assignments, self.learned)

    async def run(self) -> None:
        """Keeps it fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            for mirror in (*self._placing, self.services, self.leader):
                group.create_task(mirror.run(), name=f"mirror {mirror.prefix}")

    @property
    def connected(self) -> bool:
        """Whether everything that placement looks at is fresh."""
        return all(mirror.connected for mirror in self._placing)

    @property
    def known(self) -> bool:
        """Whether everything has been read once."""
        return all(mirror.revision for mirror in (*self._placing, self.services, self.leader))

    async def refresh(self) -> None:
        """Reads what placement looks at now: all that was written before is seen after. Raises Unavailable."""
        for mirror in self._placing:
            await mirror.refresh()

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something changes; the listener clears it."""
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)

    def snapshot(self) -> ClusterSnapshot:
        """What placement decides on."""
        return take(
            self.deployments.records.values(),
            self.workers.records.values(),
            self.replicas.records.values(),
            self.assignments.records.values(),
            self._absences.held(asyncio.get_running_loop().time()),
            self.learned.records.values(),
            lambda worker: kept_on(worker.labels, self._reservations),
        )

    @property
    def only_add(self) -> bool:
        """Whether nothing may be taken from a worker now, since the store has gone back in time not long ago."""
        now = asyncio.get_running_loop().time()
        return self._rewound_at is not None and now - self._rewound_at < self._grace

    def next_look(self) -> float | None:
        """Seconds after which time alone changes what `snapshot` or `only_add` say; None for never."""
        now = asyncio.get_running_loop().time()
        ends = [self._absences.next_end(now)]
        if self._rewound_at is not None and self.only_add:
            ends.append(self._rewound_at + self._grace - now)
        return min((end for end in ends if end is not None), default=None)

    def picture(self) -> Picture:
        """All records, for the status."""
        mirrors = (*self._placing, self.services, self.leader)
        return Picture(
            deployments=self.deployments.records.values(),
            workers=self.workers.records.values(),
            replicas=self.replicas.records.values(),
            assignments=self.assignments.records.values(),
            services=self.services.records.values(),
            leader=self.leader.records.get(keys.LEADER, records.LeaderRecord()),
            term=self.leader.create_revision(keys.LEADER),
            revision=max(mirror.revision for mirror in mirrors),
        )

    def _changed(self) -> None:
        now = asyncio.get_running_loop().time()
        rewinds = sum(mirror.rewinds for mirror in self._placing)
        if rewinds > self._rewinds:
            self._rewinds, self._rewound_at = rewinds, now
        if self.known:
            live = {record.id: record for record in self.workers.records.values()}
            self._absences.observe(live, [record.worker for record in self.assignments.records.values()], now)
        for event in self._listeners:
            event.set()
