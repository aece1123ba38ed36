"""Records as they change, told to the planner one by one, so that a look costs what has changed. Pure.

`ClusterView`'s mirrors call it with what a record was and what it is. A record that is the same again, as after a full
read, is not told. What it holds at any time depends on the records there are, not on the order in which they came; a
property of tests/unit/scheduler/test_intake.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import cluster_pb2 as pb

from .placement import Plan, Planner
from .reservations import Reservation, kept_on
from .snapshot import UNKNOWN, Learned, Replica, VersionId, Wanted, assigned_of, measured, size_of, wanted_of, worker_of

NEWS = 1.25
"""How much longer or shorter a load must have taken than what is written down, to be written down."""


class Intake:
    """Keeps a Planner informed.

    deployments: by model. replicas: by version and worker. reserved: bytes of memory, and of each device, by worker.
    shown: workers as the status shows them, as far as nothing has changed since; whoever shows them fills it.
    scaled: versions that follow their demand, as they are wanted. rescaled: those of which that, or what workers are
    told or say of them, has changed since it was last cleared. drains: by worker. reservations: for tenants.
    """

    def __init__(self, reservations: Sequence[Reservation] = ()) -> None:
        self.planner = Planner()
        self._reservations = reservations
        self.deployments: dict[str, records.DeploymentRecord] = {}
        self.replicas: dict[VersionId, dict[str, records.ReplicaRecord]] = {}
        self.reserved: dict[str, tuple[int, Mapping[int, int]]] = {}
        self.shown: dict[str, pb.WorkerStatus] = {}
        self.scaled: dict[VersionId, records.WantedVersion] = {}
        self.rescaled: set[VersionId] = set()
        self.drains: dict[str, records.DrainRecord] = {}
        self._workers: dict[str, records.WorkerRecord] = {}
        self._learned: dict[VersionId, Learned] = {}
        self._sizes: dict[VersionId, Learned] = {}
        self._loads: dict[VersionId, float] = {}
        self._unlearned: set[VersionId] = set()
        self._numbers: dict[VersionId, int] = {}
        self._shunned: dict[VersionId, frozenset[str]] = {}
        self._plan: Plan | None = None

    def deployment(self, before: records.DeploymentRecord | None, now: records.DeploymentRecord | None) -> None:
        """What is wanted of a model has changed."""
        for key in _versions(before) | _versions(now):
            self._unlearned.add(key)
            if self.scaled.pop(key, None) is not None:
                self.rescaled.add(key)
        if before is not None:
            self.deployments.pop(before.name, None)
        if now is None:
            gone = _versions(before)
        else:
            self.deployments[now.name] = now
            gone = _versions(before) - _versions(now)
            for version in now.versions:
                if version.HasField("scaling"):
                    self.scaled[VersionId(now.name, version.version)] = version
                    self.rescaled.add(VersionId(now.name, version.version))
        for key in gone:
            self._numbers.pop(key, None)
            self._shunned.pop(key, None)
        for name in {record.name for record in (before, now) if record is not None}:
            self._want(name)

    def worker(self, before: records.WorkerRecord | None, now: records.WorkerRecord | None) -> None:
        """A worker has come, changed or gone."""
        known = self.planner.known
        for record in (before, now):
            if record is not None:
                self.shown.pop(record.id, None)
        if before is not None and (now is None or before.id != now.id):
            known.join(before.id, None)
            self._workers.pop(before.id, None)
        if now is not None:
            self._workers[now.id] = now
            self._join(now)

    def drain(self, before: records.DrainRecord | None, now: records.DrainRecord | None) -> None:
        """The wish that a worker be empty has come, changed or gone."""
        if before is not None:
            self.drains.pop(before.worker, None)
        if now is not None:
            self.drains[now.worker] = now
        for record in (before, now):
            if record is not None and record.worker in self._workers:
                self.shown.pop(record.worker, None)
                self._join(self._workers[record.worker])

    def _join(self, record: records.WorkerRecord) -> None:
        reserved = kept_on(record.labels, self._reservations)
        found = worker_of(record, drained=record.id in self.drains, reserved=reserved)
        if self.planner.known.workers.get(record.id) != found:
            self.planner.known.join(record.id, found)

    def replica(self, before: records.ReplicaRecord | None, now: records.ReplicaRecord | None) -> None:
        """What a worker says of a replica has changed."""
        known = self.planner.known
        if before is not None:
            version = VersionId(before.name, before.version)
            there = self.replicas.get(version, {})
            there.pop(before.worker, None)
            if not there:
                self.replicas.pop(version, None)
            if now is None or (version, before.worker) != (VersionId(now.name, now.version), now.worker):
                known.hear(before.worker, version, None)
                self._resize(version)
        if now is not None:
            version = VersionId(now.name, now.version)
            self.replicas.setdefault(version, {})[now.worker] = now
            if known.states.get(version, {}).get(now.worker) != now.state:
                known.hear(now.worker, version, now.state)
                if version in self.scaled:
                    self.rescaled.add(version)
            if now.load_seconds and (before is None or before.load_seconds != now.load_seconds):
                self._loads[version] = now.load_seconds
                self._unlearned.add(version)
            self._resize(version)

    def assignment(self, before: records.AssignmentRecord | None, now: records.AssignmentRecord | None) -> None:
        """What a worker is told has changed."""
        known = self.planner.known
        for record in (before, now):
            if record is not None:
                self.shown.pop(record.worker, None)
        self.rescaled |= {version for version in _told(before) ^ _told(now) if version in self.scaled}
        if before is not None and (now is None or before.worker != now.worker):
            known.tell(before.worker, None)
            self.reserved.pop(before.worker, None)
        if now is not None:
            told = assigned_of(now)
            if tuple(known.told[now.worker].values() if now.worker in known.told else ("none",)) != told:
                known.tell(now.worker, told)
                self.reserved[now.worker] = _reserved(told)

    def learned(self, before: records.LearnedRecord | None, now: records.LearnedRecord | None) -> None:
        """What is written down of a version's size has changed."""
        for record in (before, now):
            if record is not None:
                version = VersionId(record.name, record.version)
                self._learned.pop(version, None)
                if record is now:
                    self._learned[version] = size_of(now)
                self._unlearned.add(version)
                self._resize(version)

    def scale(self, version: VersionId, replicas: int) -> None:
        """How many replicas a version with scaling has from now on."""
        if self._numbers.get(version) != replicas:
            self._numbers[version] = replicas
            self._want(version.name)

    def shun(self, version: VersionId, workers: frozenset[str]) -> None:
        """Workers that a version leaves, all of them."""
        if self._shunned.get(version, frozenset()) != workers:
            self._shunned[version] = workers
            if not workers:
                del self._shunned[version]
            self._want(version.name)

    def is_deployed(self, version: VersionId) -> bool:
        """Whether anything is wanted of a version."""
        return self.wanted(version) is not None

    def wanted(self, version: VersionId) -> Wanted | None:
        """What is wanted of a version as it stands."""
        return self.planner.known.item(version)

    def started(self, worker: str) -> float | None:
        """When the worker's process was, in seconds of its host's clock; None while it is not there."""
        record = self._workers.get(worker)
        return None if record is None else record.start_time.ToNanoseconds() / 1e9

    def load_seconds(self, version: VersionId) -> float:
        """How long a replica of it took to load, the newest that is known; 0 when nothing is."""
        return self._loads.get(version) or self._learned.get(version, UNKNOWN).load_seconds

    def assigned(self, version: VersionId) -> int:
        """Replicas that workers are told to run and that stay, or that are READY though nothing tells them any more:
        after the store lost its data."""
        known = self.planner.known
        at = known.told_at.get(version, set())
        states = known.states.get(version, {})
        return sum(not known.told[worker][version].leaving for worker in at) + sum(
            state == pb.REPLICA_STATE_READY and worker not in at for worker, state in states.items()
        )

    def plan(self, held: frozenset[str]) -> Plan:
        """The plan for the cluster as it is known now. held: workers that are gone and whose assignments stay."""
        known = self.planner.known
        known.hold(held)
        if self._plan is None or known.changed:
            self._plan = self.planner.plan()
        return self._plan

    def news(self) -> dict[VersionId, Learned | None]:
        """What to write down of sizes: those that have grown, loads that took another time, and None for versions that
        nobody wants any more."""
        found: dict[VersionId, Learned | None] = {}
        for version in tuple(self._unlearned):
            before, now = self._learned.get(version), self._worth_writing(version)
            if before == now:
                self._unlearned.discard(version)
            else:
                found[version] = now
        return found

    def _worth_writing(self, version: VersionId) -> Learned | None:
        before = self._learned.get(version)
        if not self.is_deployed(version):
            self._loads.pop(version, None)
            return None
        size, load = self._sizes.get(version, UNKNOWN), self._loads.get(version, 0.0)
        written = before.load_seconds if before is not None else 0.0
        if not load or (written and written / NEWS <= load <= written * NEWS):
            load = written
        found = Learned(size.memory_bytes, size.device_bytes, load)
        return before if found == UNKNOWN else found

    def _resize(self, version: VersionId) -> None:
        """Takes over how big a version has turned out to be; a smaller size than before only when nobody says more."""
        written, there = self._learned.get(version, UNKNOWN), measured(self.replicas.get(version, {}).values())
        size = Learned(max(written.memory_bytes, there.memory_bytes), max(written.device_bytes, there.device_bytes))
        if size != self._sizes.get(version, UNKNOWN):
            self._sizes[version] = size
            if size == UNKNOWN:
                del self._sizes[version]
            self._unlearned.add(version)
            if self.is_deployed(version):
                self._want(version.name)

    def _want(self, name: str) -> None:
        deployment = self.deployments.get(name)
        if deployment is None:
            self.planner.known.want(name, ())
            return
        items = []
        for version in deployment.versions:
            key = VersionId(name, version.version)
            replicas = version.replicas
            if version.HasField("scaling"):
                replicas = self._numbers.get(key, version.scaling.min_replicas)
            size, shunned = self._sizes.get(key, UNKNOWN), self._shunned.get(key, frozenset())
            items.append(wanted_of(deployment, version, replicas=replicas, size=size, shunned=shunned))
        self.planner.known.want(name, items)


def _versions(record: records.DeploymentRecord | None) -> set[VersionId]:
    return set() if record is None else {VersionId(record.name, version.version) for version in record.versions}


def _told(record: records.AssignmentRecord | None) -> set[VersionId]:
    return set() if record is None else {VersionId(replica.name, replica.version) for replica in record.replicas}


def _reserved(told: tuple[Replica, ...]) -> tuple[int, Mapping[int, int]]:
    devices: Counter[int] = Counter()
    for replica in told:
        devices.update(dict(replica.devices))
    return sum(replica.memory_bytes for replica in told), devices
