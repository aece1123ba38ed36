"""The cluster as operators see it: records and plan joined into one ClusterStatus. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import cluster_pb2 as pb

from .fitting import LABEL
from .intake import Intake
from .judge import Judge
from .placement import Plan
from .snapshot import VersionId


@dataclass(frozen=True, slots=True)
class Picture:
    """The cluster at one moment. now: the judge's clock. plan: its newest.

    leader: empty id while nobody leads; term: 0 then.
    """

    judge: Judge
    now: float
    plan: Plan
    workers: Iterable[records.WorkerRecord]
    services: Iterable[records.ServiceRecord]
    pools: Iterable[records.PoolRecord]
    leader: records.LeaderRecord
    term: int
    revision: int


def cluster_status(picture: Picture, name: str = "") -> pb.ClusterStatus:
    """The picture for people. name: only this model's versions; empty for all."""
    deployments = picture.judge.intake.deployments
    names = sorted(deployments) if not name else [name] if name in deployments else []
    return pb.ClusterStatus(
        versions=[
            _version(deployments[model], version, picture)
            for model in names
            for version in sorted(deployments[model].versions, key=lambda item: item.version)
        ],
        workers=[_worker(worker, picture.judge.intake) for worker in sorted(picture.workers, key=lambda item: item.id)],
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
        for worker in picture.judge.intake.planner.known.workers.values()
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


def _replicas(version: VersionId, intake: Intake) -> list[pb.ReplicaStatus]:
    """Every replica that is assigned or still there; what its worker says of it goes first."""
    said = intake.replicas.get(version, {})
    told = intake.planner.known.told_at.get(version, set())
    return [
        pb.ReplicaStatus(worker=worker, state=said[worker].state, reason=said[worker].reason)
        if worker in said
        else pb.ReplicaStatus(worker=worker, state=pb.REPLICA_STATE_ASSIGNED)
        for worker in sorted(said.keys() | told)
    ]


def _version(
    deployment: records.DeploymentRecord, version: records.WantedVersion, picture: Picture
) -> pb.VersionStatus:
    key = VersionId(deployment.name, version.version)
    intake = picture.judge.intake
    there = _replicas(key, intake)
    wanted = intake.wanted(key)
    return pb.VersionStatus(
        name=deployment.name,
        version=version.version,
        wanted=wanted.replicas if wanted is not None else version.replicas,
        ready=sum(1 for replica in there if replica.state == pb.REPLICA_STATE_READY),
        replicas=there,
        unplaced_reason=picture.plan.unplaced.get(key, ""),
        aliases=sorted(alias for alias, number in deployment.aliases.items() if number == version.version),
        default_version=deployment.default_version == version.version,
        retiring=version.retiring,
        scaling=_scaling(key, version, picture) if version.HasField("scaling") else None,
    )


def _scaling(key: VersionId, version: records.WantedVersion, picture: Picture) -> pb.ScalingStatus:
    demand, wish = picture.judge.demand, picture.judge.numbers.wish(key)
    sample = demand.sample(key, 1, picture.now)
    return pb.ScalingStatus(
        min_replicas=version.scaling.min_replicas,
        max_replicas=version.scaling.max_replicas,
        reason=wish.reason if wish is not None else "",
        rate=sample.rate if sample is not None else 0.0,
        outstanding=sample.outstanding if sample is not None else 0.0,
        waiting=demand.waiting(key, picture.now),
    )


def _worker(worker: records.WorkerRecord, intake: Intake) -> pb.WorkerStatus:
    if worker.id not in intake.shown:
        intake.shown[worker.id] = _made(worker, intake)
    return intake.shown[worker.id]


def _made(worker: records.WorkerRecord, intake: Intake) -> pb.WorkerStatus:
    reserved, on = intake.reserved.get(worker.id, (0, {}))
    return pb.WorkerStatus(
        id=worker.id,
        address=worker.address,
        memory_bytes=worker.memory_bytes,
        reserved_bytes=reserved,
        engines=sorted(worker.engines),
        draining=worker.draining or worker.id in intake.drains,
        drained_by=intake.drains[worker.id].caller if worker.id in intake.drains else "",
        start_time=worker.start_time,
        devices=[
            pb.DeviceStatus(
                index=device.index,
                kind=device.kind,
                name=device.name,
                memory_bytes=device.memory_bytes,
                reserved_bytes=on.get(device.index, 0),
                cordoned=device.cordoned,
            )
            for device in sorted(worker.devices, key=lambda item: item.index)
        ],
        labels=worker.labels,
        taints=sorted(worker.taints),
        failure_domain=worker.failure_domain,
    )
