"""Short forms for the records that routes are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, WantedVersion
from penstock.v1 import cluster_pb2 as pb
from penstock.v1.models_pb2 import Scaling

READY = pb.REPLICA_STATE_READY
LOADING = pb.REPLICA_STATE_LOADING
PULLING = pb.REPLICA_STATE_PULLING
ASSIGNED = pb.REPLICA_STATE_ASSIGNED
FAILED = pb.REPLICA_STATE_FAILED
DRAINING = pb.REPLICA_STATE_DRAINING


def deployment(
    name: str = "digits",
    *versions: int,
    default: int = 0,
    aliases: Mapping[str, int] | None = None,
    on_demand: Collection[int] = (),
) -> DeploymentRecord:
    """on_demand: the versions that have no replica while nobody calls."""
    wanted = [
        WantedVersion(version=version, scaling=Scaling(min_replicas=0, max_replicas=2))
        if version in on_demand
        else WantedVersion(version=version, replicas=2)
        for version in versions
    ]
    return DeploymentRecord(
        name=name, versions=wanted, default_version=default or (versions[-1] if versions else 0), aliases=aliases or {}
    )


def replica(
    worker: str,
    state: pb.ReplicaState.ValueType = READY,
    *,
    name: str = "digits",
    version: int = 1,
    reason: str = "",
    retry: int = 0,
    address: str = "",
) -> ReplicaRecord:
    return ReplicaRecord(
        worker=worker,
        name=name,
        version=version,
        state=state,
        reason=reason,
        address=address or f"{worker}:1",
        retry_seconds=retry,
    )


def keyed(*records: ReplicaRecord) -> dict[str, ReplicaRecord]:
    return {f"{record.worker}/{record.name}@{record.version}": record for record in records}
