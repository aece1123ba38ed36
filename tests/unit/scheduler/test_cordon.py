"""A cordoned device is none: what runs on it goes elsewhere, and explain says that the device lacks."""

from __future__ import annotations

from penstock.internal.v1 import records_pb2 as records
from penstock.v1 import manifest_pb2
from services.scheduler.intake import Intake
from services.scheduler.snapshot import VersionId

GPU = manifest_pb2.Devices(count=1, memory_bytes=10)
ONE = VersionId("m", 1)


def worker(name: str, *cordoned: int) -> records.WorkerRecord:
    devices = [
        records.DeviceRecord(index=index, kind="gpu", memory_bytes=100, cordoned=index in cordoned)
        for index in range(2)
    ]
    return records.WorkerRecord(id=name, memory_bytes=1000, engines=["onnx"], devices=devices)


def assigned(worker: str, device: int) -> records.AssignmentRecord:
    replica = records.AssignedReplica(name="m", version=1, manifest_digest="sha256:x", memory_bytes=10, engine="onnx")
    replica.devices.add(index=device, memory_bytes=10)
    return records.AssignmentRecord(worker=worker, term=1, replicas=[replica])


def placed(*workers: records.WorkerRecord, now: records.AssignmentRecord) -> dict[str, tuple[int, ...]]:
    """Indices of devices that the version gets, by worker, when these workers were whole until a moment ago."""
    wanted = records.WantedVersion(
        version=1, replicas=1, memory_bytes=10, manifest_digest="sha256:x", engine="onnx", devices=GPU
    )
    intake = Intake()
    intake.deployment(None, records.DeploymentRecord(name="m", versions=[wanted], default_version=1))
    intake.assignment(None, now)
    whole = {record.id: worker(record.id) for record in workers}
    for record in whole.values():
        intake.worker(None, record)
    intake.plan(frozenset())
    for record in workers:
        intake.worker(whole[record.id], record)
    planned = intake.plan(frozenset())
    return {
        name: tuple(index for index, _ in replica.devices)
        for name, replicas in planned.assignments.items()
        for replica in replicas
        if replica.id == ONE
    }


def test_what_runs_on_a_cordoned_device_moves_to_the_next() -> None:
    assert placed(worker("a"), now=assigned("a", 0)) == {"a": (0,)}
    assert placed(worker("a", 0), now=assigned("a", 0)) == {"a": (1,)}


def test_where_every_device_is_cordoned_another_worker_takes_over() -> None:
    assert placed(worker("a", 0, 1), worker("b"), now=assigned("a", 0)).keys() == {"b"}


def test_without_another_device_nothing_runs() -> None:
    assert placed(worker("a", 0, 1), now=assigned("a", 0)) == {}
