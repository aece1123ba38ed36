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
    shunned: workers where it does badly; it leaves them.
    tenant: whose reserved capacity it may use; empty for nobody's.
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
    shunned: frozenset[str] = frozenset()
    tenant: str = ""


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


class Reserved(NamedTuple):
    """What a worker keeps for one tenant: bytes of its memory, and by kind those of each of its devices."""

    tenant: str
    memory_bytes: int = 0
    devices: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker.

    memory_bytes: what it offers of the machine's memory. missing_engines: why an engine cannot run there, by engine.
    domain: what fails together, such as a zone or a machine; its own id when it is not said.
    reserved: what it keeps for tenants, one entry for each, in order.
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
    reserved: tuple[Reserved, ...] = ()

    @property
    def domain(self) -> str:
        """The failure domain."""
        return self.failure_domain or self.id


class Learned(NamedTuple):
    """What one replica of a version has turned out to be: its engine's memory, that on each device, and the seconds
    that the newest took to load."""

    memory_bytes: int = 0
    device_bytes: int = 0
    load_seconds: float = 0.0


UNKNOWN: Final = Learned()
STEP: Final = 16 << 20
"""Bytes to which measured sizes are rounded up."""


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


def size_of(record: records.LearnedRecord) -> Learned:
    """What was written down of a version's size."""
    return Learned(record.memory_bytes, record.device_bytes, record.load_seconds)


def measured(replicas: Iterable[records.ReplicaRecord]) -> Learned:
    """The most that these replicas of one version take."""
    memory = device = 0
    for replica in replicas:
        memory = max(memory, _rounded(replica.measured_bytes))
        device = max(device, _rounded(replica.measured_device_bytes))
    return Learned(memory, device)


def learned_record(version: VersionId, size: Learned) -> records.LearnedRecord:
    """The record that keeps a size."""
    return records.LearnedRecord(
        name=version.name,
        version=version.version,
        memory_bytes=size.memory_bytes,
        device_bytes=size.device_bytes,
        load_seconds=size.load_seconds,
    )


def _rounded(size: int) -> int:
    """Up to a whole step: a few pages more or less are no news that a cluster should act on."""
    return -(-size // STEP) * STEP


def assignment_record(worker: str, replicas: Iterable[Replica], term: int) -> records.AssignmentRecord:
    """The record that tells a worker what to run."""
    assigned = [
        records.AssignedReplica(
            name=replica.id.name,
            version=replica.id.version,
            manifest_digest=replica.manifest_digest,
            memory_bytes=replica.memory_bytes,
            engine=replica.engine,
            devices=[records.AssignedDevice(index=index, memory_bytes=size) for index, size in replica.devices],
            leaving=replica.leaving,
        )
        for replica in replicas
    ]
    return records.AssignmentRecord(worker=worker, term=term, replicas=assigned)


def wanted_of(
    deployment: records.DeploymentRecord,
    version: records.WantedVersion,
    *,
    replicas: int,
    size: Learned = UNKNOWN,
    shunned: frozenset[str] = frozenset(),
) -> Wanted:
    """What is wanted of a version, at least as big as it has turned out to be. replicas: where its demand decides.

    shunned: workers that it leaves.
    """
    return Wanted(
        id=VersionId(deployment.name, version.version),
        replicas=replicas,
        memory_bytes=max(version.memory_bytes, size.memory_bytes),
        manifest_digest=version.manifest_digest,
        engine=version.engine,
        default=version.version == deployment.default_version,
        retiring=version.retiring,
        needs=_needs(version, size, shunned),
    )


def _needs(version: records.WantedVersion, learned: Learned, shunned: frozenset[str]) -> Needs:
    devices, place = version.devices, version.placement
    if not (version.HasField("devices") or version.HasField("placement") or version.tenant or shunned):
        return PLAIN
    count = devices.count if version.HasField("devices") else 0
    needs = Needs(
        devices=count,
        device_kind=devices.kind or "gpu",
        device_bytes=max(devices.memory_bytes, learned.device_bytes) if count else 0,
        device_percent=devices.percent,
        exclusive=devices.exclusive,
        selector=tuple(sorted(place.selector.items())),
        tolerations=frozenset(place.tolerations),
        affinity=frozenset(place.affinity),
        anti_affinity=frozenset(place.anti_affinity),
        spread_required=place.spread == "required",
        pinned=place.pinned,
        priority=place.priority,
        shunned=shunned,
        tenant=version.tenant,
    )
    # The very same, which is quicker to recognise.
    return PLAIN if needs == PLAIN else needs


def worker_of(record: records.WorkerRecord, *, drained: bool = False, reserved: tuple[Reserved, ...] = ()) -> Worker:
    """A worker as it says that it is. drained: somebody wants it empty; reserved: what it keeps for tenants."""
    usable = (item for item in record.devices if not item.cordoned)
    devices = (Device(item.index, item.kind, item.memory_bytes, item.name) for item in usable)
    return Worker(
        id=record.id,
        memory_bytes=record.memory_bytes,
        engines=frozenset(record.engines),
        missing_engines=dict(record.missing_engines),
        draining=record.draining or drained,
        devices=tuple(sorted(devices, key=lambda device: device.index)),
        labels=dict(record.labels),
        taints=frozenset(record.taints),
        failure_domain=record.failure_domain,
        reserved=reserved,
    )


def assigned_of(record: records.AssignmentRecord) -> tuple[Replica, ...]:
    """What a worker is told to run, in order of version."""
    replicas = (
        Replica(
            VersionId(item.name, item.version),
            item.manifest_digest,
            item.memory_bytes,
            item.engine,
            tuple((device.index, device.memory_bytes) for device in item.devices),
            item.leaving,
        )
        for item in record.replicas
    )
    return tuple(sorted(replicas, key=lambda item: item.id))
