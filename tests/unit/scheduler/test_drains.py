"""When wishes that a worker be empty are forgotten, and what they do to a plan."""

from __future__ import annotations

from penstock.internal.v1.records_pb2 import DeploymentRecord, DrainRecord, WantedVersion, WorkerRecord
from penstock.v1 import cluster_pb2 as pb
from services.scheduler.drains import Drains
from services.scheduler.intake import Intake
from services.scheduler.placement import changes
from services.scheduler.reservations import parse
from services.scheduler.snapshot import assignment_record

MIB = 2**20


def test_a_worker_that_is_gone_for_good_is_forgotten() -> None:
    drains = Drains(patience=10)
    drains.observe({"w1", "w2"}, {"w1", "w3"}, 100)
    assert drains.forgotten(109.9) == []
    assert drains.next_end(104) == 6
    assert drains.forgotten(110) == ["w2"]


def test_a_worker_that_comes_back_is_not() -> None:
    drains = Drains(patience=10)
    drains.observe({"w1"}, set(), 100)
    drains.observe({"w1"}, {"w1"}, 105)
    assert drains.next_end(105) is None
    drains.observe({"w1"}, set(), 108)
    assert drains.forgotten(110) == []
    assert drains.forgotten(118) == ["w1"]
    drains.observe(set(), set(), 118)
    assert drains.forgotten(118) == [], "nobody wants it any more"


def carry_out(intake: Intake) -> dict[str, list[str]]:
    """Writes the plan, has workers do it at once, and tells what each was told: with a minus what is leaving."""
    planned = intake.plan(frozenset())
    for worker, replicas in changes(intake.planner.known, planned).items():
        intake.assignment(None, assignment_record(worker, replicas or (), 1))
        for version in intake.planner.known.reported.get(worker, set()) - {replica.id for replica in replicas or ()}:
            intake.planner.known.hear(worker, version, None)
        for replica in replicas or ():
            intake.planner.known.hear(worker, replica.id, pb.REPLICA_STATE_READY)
    return {
        worker: [f"{'-' * replica.leaving}{replica.id.name}" for replica in replicas]
        for worker, replicas in planned.assignments.items()
    }


def test_a_drained_worker_gives_its_replicas_away_once_they_are_ready_elsewhere() -> None:
    intake = Intake()
    for name in ("w1", "w2"):
        intake.worker(None, WorkerRecord(id=name, memory_bytes=100 * MIB, engines=["onnx"]))
    wanted = WantedVersion(version=1, replicas=1, memory_bytes=MIB, manifest_digest="sha256:x", engine="onnx")
    intake.deployment(None, DeploymentRecord(name="a", versions=[wanted], default_version=1))
    assert carry_out(intake) == {"w1": ["a"], "w2": []}
    wish = DrainRecord(worker="w1")
    intake.drain(None, wish)
    assert carry_out(intake) == {"w1": ["-a"], "w2": ["a"]}
    assert carry_out(intake) == {"w1": [], "w2": ["a"]}
    intake.drain(wish, None)
    assert carry_out(intake) == {"w1": [], "w2": ["a"]}, "nothing moves back"
    assert not intake.planner.known.workers["w1"].draining


def test_a_wish_that_is_older_than_the_worker_holds_and_its_own_goodbye_too() -> None:
    intake = Intake([parse("acme memory=8MiB on zone=a")])
    wish = DrainRecord(worker="w1")
    intake.drain(None, wish)
    record = WorkerRecord(id="w1", labels={"zone": "a"})
    intake.worker(None, record)
    found = intake.planner.known.workers["w1"]
    assert found.draining and found.reserved[0].memory_bytes == 8 * MIB
    leaving = WorkerRecord(id="w1", draining=True)
    intake.worker(record, leaving)
    intake.drain(wish, None)
    assert intake.planner.known.workers["w1"].draining, "it leaves by itself"
