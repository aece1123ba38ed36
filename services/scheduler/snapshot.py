"""The cluster at one moment, as an immutable value that placement can decide on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import cluster_pb2 as pb


class VersionId(NamedTuple):
    """A version of a model."""

    name: str
    version: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a version asks of its place besides an engine and the worker's memory.

    devices, device_kind: so many devices of one kind on the same worker. device_bytes, device_percent: what a replica
    reserves on each of them, whichever is more. exclusive: each device is its alone.
    selector: labels that the worker must have. tolerations: taints that do not matter.
    affinity: models whose workers are preferred. anti_affinity: models that it does not share a worker with.
    spread_required: two replicas never share a failure domain; without it they only avoid to.
    pinned: once placed it is never moved or evicted for others. priority: higher goes first, and may evict lower.
    """

    devices: int = 0
    device_kind: str = "gpu"
    device_bytes: int = 0
    device_percent: int = 0
    exclusive: bool = False
    selector: tuple[tuple[str, str], ...] = ()
    tolerations: frozenset[str] = frozenset()
    affinity: frozenset[str] = frozenset()
    anti_affinity: frozenset[str] = frozenset()
    spread_required: bool = False
    pinned: bool = False
    priority: int = 0


PLAIN: Final = Needs()
"""Needs of a version that says nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants of one version. memory_bytes: what one replica reserves of the worker's memory."""

    id: VersionId
    replicas: int
    memory_bytes: int
    manifest_digest: str
    engine: str
    default: bool = False
    retiring: bool = False
    needs: Needs = PLAIN

    @property
    def size_bytes(self) -> int:
        """What one replica reserves in all; the share of a device whose size is not known yet aside."""
        return self.memory_bytes + self.needs.devices * self.needs.device_bytes


class Replica(NamedTuple):
    """One entry of an assignment.

    devices: index and reserved bytes of each device that it uses. leaving: it goes as soon as others are READY in its
    place, and does not count as one of the wanted replicas.
    """

    id: VersionId
    manifest_digest: str
    memory_bytes: int
    engine: str
    devices: tuple[tuple[int, int], ...] = ()
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a worker besides its processor. index: unique on the worker. memory_bytes: what it offers."""

    index: int
    kind: str
    memory_bytes: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker.

    memory_bytes: what it offers of the machine's memory. missing_engines: why an engine cannot run there, by engine.
    domain: what fails together, such as a zone or a machine; its own id when it is not said.
    """

    id: str
    memory_bytes: int
    engines: frozenset[str]
    missing_engines: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: frozenset[str] = frozenset()
    failure_domain: str = ""

    @property
    def domain(self) -> str:
        """The failure domain."""
        return self.failure_domain or self.id


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All that placement looks at.

    assignments: by worker id, live or not, in order of version; a worker that was never told anything has none.
    states: what workers say of their replicas, by (worker id, version).
    held: workers that are gone, and whose assignments stay for now all the same.
    """

    wanted: tuple[Wanted, ...] = ()
    workers: Mapping[str, Worker] = field(default_factory=dict)
    assignments: Mapping[str, tuple[Replica, ...]] = field(default_factory=dict)
    states: Mapping[tuple[str, VersionId], pb.ReplicaState.ValueType] = field(default_factory=dict)
    held: frozenset[str] = frozenset()

    def ready(self, worker: str, version: VersionId) -> bool:
        """Whether that replica takes requests."""
        return self.states.get((worker, version)) == pb.REPLICA_STATE_READY


def take(
    deployments: Iterable[records.DeploymentRecord],
    workers: Iterable[records.WorkerRecord],
    replicas: Iterable[records.ReplicaRecord],
    assignments: Iterable[records.AssignmentRecord],
    held: frozenset[str] = frozenset(),
) -> ClusterSnapshot:
    """The snapshot that these records show."""
    wanted = (_wanted(deployment, version) for deployment in deployments for version in deployment.versions)
    return ClusterSnapshot(
        wanted=tuple(sorted(wanted, key=lambda item: item.id)),
        workers={worker.id: _worker(worker) for worker in workers},
        assignments={assignment.worker: _assigned(assignment) for assignment in assignments},
        states={(item.worker, VersionId(item.name, item.version)): item.state for item in replicas},
        held=held,
    )


def assignment_record(worker: str, replicas: Iterable[Replica], term: int) -> records.AssignmentRecord:
    """The record that tells a worker what to run."""
    assigned = [
        records.AssignedReplica(
            name=replica.id.name,
            version=replica.id.version,
            manifest_digest=replica.manifest_digest,
            memory_bytes=replica.memory_bytes,
            engine=replica.engine,
        )
        for replica in replicas
    ]
    return records.AssignmentRecord(worker=worker, term=term, replicas=assigned)


def _wanted(deployment: records.DeploymentRecord, version: records.WantedVersion) -> Wanted:
    return Wanted(
        id=VersionId(deployment.name, version.version),
        replicas=version.replicas,
        memory_bytes=version.memory_bytes,
        manifest_digest=version.manifest_digest,
        engine=version.engine,
        default=version.version == deployment.default_version,
        retiring=version.retiring,
    )


def _worker(record: records.WorkerRecord) -> Worker:
    return Worker(
        id=record.id,
        memory_bytes=record.memory_bytes,
        engines=frozenset(record.engines),
        missing_engines=dict(record.missing_engines),
        draining=record.draining,
    )


def _assigned(record: records.AssignmentRecord) -> tuple[Replica, ...]:
    replicas = (
        Replica(VersionId(item.name, item.version), item.manifest_digest, item.memory_bytes, item.engine)
        for item in record.replicas
    )
    return tuple(sorted(replicas, key=lambda item: item.id))
