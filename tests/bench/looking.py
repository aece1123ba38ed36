"""`python -m tests.bench.looking`: what a look of the running scheduler costs, from records to what is written.

Everything that a scheduler does at a change but the store's own work: the record comes in as JSON, the planner is told,
plans, and what differs becomes assignments. The cluster is that of `tests.bench.placement`; a part of the models
follows its demand. CPU seconds of this process, the median of several.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from penstock.cluster import keys, records
from penstock.internal.v1 import records_pb2 as pb
from penstock.v1 import cluster_pb2 as cluster_pb
from penstock.v1.manifest_pb2 import Devices, Placement
from penstock.v1.models_pb2 import Scaling
from services.scheduler.demand import Said
from services.scheduler.judge import Judge
from services.scheduler.placement import changes, explain
from services.scheduler.snapshot import VersionId, Wanted, Worker, assignment_record
from services.scheduler.status import Picture, cluster_status

from .placement import cluster, timed

MIB = 2**20
TARGET = 0.05
REPEATS = 9
NOBODY = frozenset[str]()


class Scheduler:
    """A judge that leads, and the records that it was told of."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.now = 1000.0
        self.kept: dict[str, Any] = {}
        self.workers: list[str] = []
        intake = self.judge.intake
        self._kinds: dict[str, tuple[Any, Callable[[Any, Any], None]]] = {
            keys.DEPLOYMENTS: (pb.DeploymentRecord, intake.deployment),
            keys.WORKERS: (pb.WorkerRecord, intake.worker),
            keys.REPLICAS: (pb.ReplicaRecord, intake.replica),
            keys.ASSIGNMENTS: (pb.AssignmentRecord, intake.assignment),
        }

    def take(self, key: str, data: bytes | None, record: Any = None) -> None:
        """A key as a mirror takes it in; None when it is deleted. record: what it holds, of one's own writes."""
        if key.startswith(keys.WORKERS) and key not in self.kept:
            self.workers.append(key)
        cls, told = next(found for prefix, found in self._kinds.items() if key.startswith(prefix))
        before = self.kept.pop(key, None)
        if record is None and data is not None:
            record = records.from_json(cls, data)
        if record is not None:
            self.kept[key] = record
        told(before, record)

    def look(self) -> None:
        """One step of the controller: plans, and takes in what it wrote."""
        self.now += 0.02
        planned = self.judge.plan(self.now, 0, NOBODY, leading=True)
        for worker, told in changes(self.judge.intake.planner.known, planned).items():
            record = assignment_record(worker, told, 1) if told is not None else None
            self.take(keys.assignment(worker), records.to_json(record) if record is not None else None, record)

    def ready(self) -> None:
        """All workers run what they are told."""
        for record in [record for record in self.kept.values() if isinstance(record, pb.AssignmentRecord)]:
            for replica in record.replicas:
                said = pb.ReplicaRecord(worker=record.worker, name=replica.name, version=replica.version)
                said.state = cluster_pb.REPLICA_STATE_READY
                self.take(keys.replica(record.worker, replica.name, replica.version), records.to_json(said))

    def picture(self) -> Picture:
        """As the view makes it."""
        workers = [record for name in self.workers if (record := self.kept.get(name)) is not None]
        planned = self.judge.plan(self.now, 0, NOBODY, leading=True)
        return Picture(self.judge, self.now, planned, workers, (), (), pb.LeaderRecord(), 1, 1)


def main() -> int:
    """Prints the table; the exit status says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--busy", type=int, default=2_000, help="versions that follow their demand and are called")
    args = parser.parse_args()
    scheduler = Scheduler()
    snapshot = cluster(args.workers, args.models)
    told = [(keys.worker(worker.id), records.to_json(_worker(worker))) for worker in snapshot.workers.values()]
    told += [
        (keys.deployment(item.id.name), records.to_json(_deployment(item, scaled=number < args.busy)))
        for number, item in enumerate(snapshot.wanted)
    ]
    print(f"{args.workers} workers, {args.models} models, CPU seconds on one core, Python {sys.version.split()[0]}\n")
    print(f"{'what':54} {'seconds':>9} {'target':>8}")
    show("reading all records: JSON, and telling the planner", timed(lambda: read(scheduler, told)))
    show("the first look, and writing all assignments", timed(scheduler.look))
    scheduler.ready()
    scheduler.look()
    gc.collect()
    gc.freeze()
    missed = [show(what, *repeated(scheduler, change)) for what, change in CHANGES.items()]
    names = [item.id.name for item in snapshot.wanted]
    cluster_status(scheduler.picture())
    show("status of one model", *repeated(scheduler, lambda one, nth: cluster_status(one.picture(), names[nth]), False))
    show("status of everything", timed(lambda: cluster_status(scheduler.picture())))
    show(
        "explaining one model",
        *repeated(scheduler, lambda one, n: explain(one.judge.intake.planner, names[n]), False),
    )
    missed.append(demand(scheduler, names[: args.busy]))
    return int(any(missed))


def read(scheduler: Scheduler, told: list[tuple[str, bytes]]) -> None:
    """Takes all records in."""
    for key, data in told:
        scheduler.take(key, data)


def demand(scheduler: Scheduler, names: list[str]) -> bool:
    """A second of reports from two gateways, and the look at all that they speak of; after minutes of samples."""
    said = {VersionId(name, 1): Said(rate=5.0, outstanding=1.0) for name in names}
    reports, looks = [], []
    for _ in range(120):
        scheduler.now += 1.0
        began = time.process_time()
        for gateway in ("g1", "g2"):
            scheduler.judge.report(gateway, dict(said), [], scheduler.now)
        reports.append(time.process_time() - began)
        looks.append(timed(lambda: scheduler.judge.look(scheduler.now, 0, leading=True)))
    show(f"two reports of {len(names)} versions each", statistics.median(reports[-REPEATS:]))
    return show(f"a look at the demand of {len(names)} versions, each second", statistics.median(looks[-REPEATS:]))


def show(what: str, seconds: float, target: float = 0.0) -> bool:
    """Prints a row; whether it misses its target."""
    print(f"{what:54} {seconds:9.4f} {f'{target:.3f}' if target else '':>8}")
    return bool(target) and seconds > target


def repeated(
    scheduler: Scheduler, change: Callable[[Scheduler, int], object], is_look: bool = True
) -> tuple[float, float]:
    """Median CPU seconds of a change and the look after it."""
    costs = []
    for number in range(REPEATS):
        costs.append(timed(lambda number=number: change(scheduler, number)))  # type: ignore[misc]
        if is_look:
            costs[-1] += timed(scheduler.look)
    return statistics.median(costs), TARGET


def _deploy(scheduler: Scheduler, number: int) -> None:
    item = Wanted(VersionId(f"new{number}", 1), 2, 100 * MIB, "sha256:n", "onnx", True)
    scheduler.take(keys.deployment(item.id.name), records.to_json(_deployment(item, scaled=False)))


def _undeploy(scheduler: Scheduler, number: int) -> None:
    scheduler.take(keys.deployment(f"m{number * 10 + 3:06}"), None)


def _lose(scheduler: Scheduler, number: int) -> None:
    worker = f"w{number * 7:05}"
    for version in tuple(scheduler.judge.intake.planner.known.reported[worker]):
        scheduler.take(keys.replica(worker, *version), None)
    scheduler.take(keys.worker(worker), None)


def _ready(scheduler: Scheduler, number: int) -> None:
    version = VersionId(f"m{number * 10 + 4:06}", 1)
    (worker,) = scheduler.judge.intake.replicas[version]
    said = pb.ReplicaRecord(worker=worker, name=version.name, version=1, state=cluster_pb.REPLICA_STATE_FAILED)
    scheduler.take(keys.replica(worker, version.name, 1), records.to_json(said))


CHANGES: dict[str, Callable[[Scheduler, int], None]] = {
    "a model with two replicas is deployed": _deploy,
    "a model is undeployed": _undeploy,
    "a replica says something else": _ready,
    "a worker with all its replicas is lost": _lose,
}


def _worker(worker: Worker) -> pb.WorkerRecord:
    devices = [pb.DeviceRecord(index=d.index, kind=d.kind, memory_bytes=d.memory_bytes) for d in worker.devices]
    return pb.WorkerRecord(
        id=worker.id,
        memory_bytes=worker.memory_bytes,
        engines=sorted(worker.engines),
        devices=devices,
        failure_domain=worker.failure_domain,
    )


def _deployment(item: Wanted, *, scaled: bool) -> pb.DeploymentRecord:
    needs = item.needs
    version = pb.WantedVersion(
        version=1,
        replicas=item.replicas,
        memory_bytes=item.memory_bytes,
        manifest_digest=item.manifest_digest,
        engine=item.engine,
        devices=Devices(count=needs.devices, memory_bytes=needs.device_bytes) if needs.devices else None,
        placement=Placement(pinned=True, priority=1) if needs.pinned else None,
        scaling=Scaling(min_replicas=1, max_replicas=3, outstanding=8) if scaled else None,
    )
    return pb.DeploymentRecord(name=item.id.name, versions=[version], default_version=1)


if __name__ == "__main__":
    sys.exit(main())
