"""A judge with records that tests write, and workers that do what they are told: a cluster without processes."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.internal.v1.records_pb2 import (
    AssignmentRecord,
    DeploymentRecord,
    ReplicaRecord,
    WantedVersion,
    WorkerRecord,
)
from penstock.v1 import cluster_pb2 as pb
from penstock.v1.manifest_pb2 import Placement
from penstock.v1.models_pb2 import Scaling
from services.scheduler.demand import Said
from services.scheduler.judge import Judge
from services.scheduler.placement import Plan, changes
from services.scheduler.snapshot import VersionId, assignment_record

MIB = 2**20
CALM = Said(idle_seconds=1000.0)


class World:
    """One cluster at `now` seconds."""

    def __init__(self, *workers: str, memory: int = 100) -> None:
        self.judge = Judge()
        self.now = 1000.0
        self.minute = 0
        self.leading = True
        self.assignments: dict[str, AssignmentRecord] = {}
        self.replicas: dict[tuple[str, VersionId], ReplicaRecord] = {}
        self.deployments: dict[str, DeploymentRecord] = {}
        for name in workers:
            self.judge.intake.worker(None, WorkerRecord(id=name, memory_bytes=memory * MIB, engines=["onnx"]))

    def deploy(self, name: str, *versions: WantedVersion) -> None:
        record = DeploymentRecord(name=name, versions=versions, default_version=versions[-1].version)
        self.judge.intake.deployment(self.deployments.get(name), record)
        self.deployments[name] = record

    def on_demand(self, *names: str, most: int = 1, memory: int = 40, **more: float) -> None:
        for name in names:
            self.deploy(name, version(memory=memory, scaling=Scaling(max_replicas=most, **more)))  # type: ignore[arg-type]

    def report(
        self,
        said: Mapping[str, Said | int] | None = None,
        gateway: str = "g1",
        gray: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """By model, version 1 of it; a number is of requests that wait."""
        versions = {
            VersionId(name, 1): Said(waiting=word, outstanding=word) if isinstance(word, int) else word
            for name, word in (said or {}).items()
        }
        self.judge.report(gateway, versions, [(VersionId(name, 1), worker) for name, worker in gray], self.now)

    def plan(self) -> Plan:
        return self.judge.plan(self.now, self.minute, frozenset(), leading=self.leading)

    def step(self, seconds: float = 0.0, *, ready: bool = True) -> dict[str, list[str]]:
        """Time goes on; the plan is carried out, and workers run what they are told. What they are told, by worker."""
        self.now += seconds
        planned = self.plan()
        for worker, told in changes(self.judge.intake.planner.known, planned).items():
            record = assignment_record(worker, told, 1) if told is not None else None
            self.judge.intake.assignment(self.assignments.get(worker), record)
            self.assignments.pop(worker, None)
            if record is not None:
                self.assignments[worker] = record
        if ready:
            self.obey()
        return self.told

    def obey(self, state: pb.ReplicaState.ValueType = pb.REPLICA_STATE_READY, reason: str = "") -> None:
        """Workers run exactly what they are told."""
        wanted = {
            (worker, VersionId(replica.name, replica.version))
            for worker, record in self.assignments.items()
            for replica in record.replicas
        }
        for worker, key in [*wanted, *(self.replicas.keys() - wanted)]:
            before = self.replicas.pop((worker, key), None)
            now = None
            if (worker, key) in wanted:
                now = ReplicaRecord(worker=worker, name=key.name, version=key.version, state=state, reason=reason)
                self.replicas[worker, key] = now
            self.judge.intake.replica(before, now)

    @property
    def told(self) -> dict[str, list[str]]:
        return {
            worker: [f"{'-' if replica.leaving else ''}{replica.name}" for replica in record.replicas]
            for worker, record in sorted(self.assignments.items())
        }

    def number(self, name: str, number: int = 1) -> int:
        wanted = self.judge.intake.wanted(VersionId(name, number))
        assert wanted is not None
        return wanted.replicas


def version(
    number: int = 1,
    *,
    replicas: int = 1,
    memory: int = 40,
    retiring: bool = False,
    scaling: Scaling | None = None,
    pinned: bool = False,
    engine: str = "onnx",
) -> WantedVersion:
    return WantedVersion(
        version=number,
        replicas=replicas,
        memory_bytes=memory * MIB,
        manifest_digest=f"sha256:{number}",
        engine=engine,
        retiring=retiring,
        scaling=scaling,
        placement=Placement(pinned=True) if pinned else None,
    )
