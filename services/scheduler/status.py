"""The cluster as operators see it: records and plan joined into one ClusterStatus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import cluster_pb2 as pb

from .fitting import LABEL
from .placement import Plan
from .snapshot import VersionId


@dataclass(frozen=True, slots=True)
class Picture:
    """All records of one moment. leader: empty id while nobody leads; term: 0 then."""

    deployments: Iterable[records.DeploymentRecord]
    workers: Iterable[records.WorkerRecord]
    replicas: Iterable[records.ReplicaRecord]
    assignments: Iterable[records.AssignmentRecord]
    services: Iterable[records.ServiceRecord]
    pools: Iterable[records.PoolRecord]
    leader: records.LeaderRecord
    term: int
    revision: int


def cluster_status(picture: Picture, plan: Plan, name: str = "") -> pb.ClusterStatus:
    """The picture for people. name: only this model's versions; empty for all."""
    replicas = _replicas_by_version(picture)
    reserved = {item.worker: item.replicas for item in picture.assignments}
    deployments = sorted((d for d in picture.deployments if name in ("", d.name)), key=lambda item: item.name)
    return pb.ClusterStatus(
        versions=[
            _version(deployment, version, replicas, plan)
            for deployment in deployments
            for version in sorted(deployment.versions, key=lambda item: item.version)
        ],
        workers=[_worker(worker, reserved) for worker in sorted(picture.workers, key=lambda item: item.id)],
        leader=picture.leader.id,
        term=picture.term,
        services=[
            pb.ServiceStatus(service=item.service, id=item.id, address=item.address, start_time=item.start_time)
            for item in sorted(picture.services, key=lambda item: (item.service, item.id))
        ],
        revision=picture.revision,
        pools=[_pool(pool, picture) for pool in sorted(picture.pools, key=lambda item: item.name)],
    )


def _pool(pool: records.PoolRecord, picture: Picture) -> pb.PoolStatus:
    staying = (
        worker
        for worker in picture.workers
        if worker.labels.get(LABEL) == pool.name and not worker.draining and worker.id not in pool.leaving
    )
    return pb.PoolStatus(
        name=pool.name,
        workers=sum(1 for _ in staying),
        wanted=pool.count,
        least=pool.least,
        most=pool.most,
        reason=pool.reason,
        problem=pool.problem,
    )


def _replicas_by_version(picture: Picture) -> dict[VersionId, list[pb.ReplicaStatus]]:
    """Every replica that is assigned or still there; what its worker says of it goes first."""
    told = {
        (VersionId(item.name, item.version), item.worker): pb.ReplicaStatus(
            worker=item.worker, state=item.state, reason=item.reason
        )
        for item in picture.replicas
    }
    for assignment in picture.assignments:
        for replica in assignment.replicas:
            key = (VersionId(replica.name, replica.version), assignment.worker)
            told.setdefault(key, pb.ReplicaStatus(worker=assignment.worker, state=pb.REPLICA_STATE_ASSIGNED))
    by_version: dict[VersionId, list[pb.ReplicaStatus]] = {}
    for (version, _), status in sorted(told.items(), key=lambda item: item[0]):
        by_version.setdefault(version, []).append(status)
    return by_version


def _version(
    deployment: records.DeploymentRecord,
    version: records.WantedVersion,
    replicas: Mapping[VersionId, list[pb.ReplicaStatus]],
    plan: Plan,
) -> pb.VersionStatus:
    key = VersionId(deployment.name, version.version)
    there = replicas.get(key, [])
    return pb.VersionStatus(
        name=deployment.name,
        version=version.version,
        wanted=version.replicas,
        ready=sum(1 for replica in there if replica.state == pb.REPLICA_STATE_READY),
        replicas=there,
        unplaced_reason=plan.unplaced.get(key, ""),
        aliases=sorted(alias for alias, number in deployment.aliases.items() if number == version.version),
        default_version=deployment.default_version == version.version,
        retiring=version.retiring,
    )


def _worker(worker: records.WorkerRecord, reserved: Mapping[str, Sequence[records.AssignedReplica]]) -> pb.WorkerStatus:
    replicas = reserved.get(worker.id, ())
    on: Counter[int] = Counter()
    for replica in replicas:
        for device in replica.devices:
            on[device.index] += device.memory_bytes
    return pb.WorkerStatus(
        id=worker.id,
        address=worker.address,
        memory_bytes=worker.memory_bytes,
        reserved_bytes=sum(replica.memory_bytes for replica in replicas),
        engines=sorted(worker.engines),
        draining=worker.draining,
        start_time=worker.start_time,
        devices=[
            pb.DeviceStatus(
                index=device.index,
                kind=device.kind,
                name=device.name,
                memory_bytes=device.memory_bytes,
                reserved_bytes=on[device.index],
            )
            for device in sorted(worker.devices, key=lambda item: item.index)
        ],
        labels=worker.labels,
        taints=sorted(worker.taints),
        failure_domain=worker.failure_domain,
    )
