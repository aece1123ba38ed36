"""Records told one by one, in any order and with any changes between plans, lead to the plan of all that there are."""

from __future__ import annotations

from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.internal.v1.records_pb2 import (
    AssignedDevice,
    AssignedReplica,
    AssignmentRecord,
    DeploymentRecord,
    DeviceRecord,
    DrainRecord,
    LearnedRecord,
    ReplicaRecord,
    WantedVersion,
    WorkerRecord,
)
from penstock.v1 import cluster_pb2 as pb
from penstock.v1.manifest_pb2 import Devices, Placement
from penstock.v1.models_pb2 import Scaling
from services.scheduler.intake import Intake
from services.scheduler.placement import changes
from services.scheduler.snapshot import STEP, Learned, VersionId, assignment_record

NAMES = ("a", "b", "c")
WORKERS = ("w0", "w1", "w2")
KINDS = ("deployment", "worker", "replica", "assignment", "learned", "drain")
MIB = 2**20
NOBODY = frozenset[str]()

Store: TypeAlias = dict[tuple[str, ...], Any]
"""What etcd would hold: records by kind and key."""


def sizes(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most).map(lambda steps: steps * STEP)


@st.composite
def versions(draw: st.DrawFn, number: int) -> WantedVersion:
    version = WantedVersion(
        version=number,
        replicas=draw(st.integers(0, 3)),
        memory_bytes=draw(sizes(5)),
        manifest_digest="sha256:x",
        engine="onnx",
        retiring=draw(st.integers(0, 3)) == 0,
    )
    if draw(st.integers(0, 2)) == 0:
        version.devices.CopyFrom(Devices(count=1, memory_bytes=draw(sizes(4))))
    if draw(st.integers(0, 2)) == 0:
        version.placement.CopyFrom(Placement(pinned=draw(st.booleans()), priority=draw(st.integers(0, 1))))
    if draw(st.booleans()):
        version.scaling.CopyFrom(Scaling(min_replicas=draw(st.integers(0, 2)), max_replicas=3))
    return version


@st.composite
def records(draw: st.DrawFn) -> tuple[tuple[str, ...], Any]:
    """A key and what lies there now, None for nothing."""
    kind, name, worker = draw(st.sampled_from(KINDS)), draw(st.sampled_from(NAMES)), draw(st.sampled_from(WORKERS))
    number = draw(st.integers(1, 2))
    keys = {
        "deployment": (kind, name),
        "worker": (kind, worker),
        "replica": (kind, worker, name, str(number)),
        "assignment": (kind, worker),
        "learned": (kind, name, str(number)),
        "drain": (kind, worker),
    }
    if draw(st.integers(0, 4)) == 0:
        return keys[kind], None
    made: Any
    match kind:
        case "deployment":
            count = draw(st.integers(1, 2))
            made = DeploymentRecord(
                name=name, versions=[draw(versions(n + 1)) for n in range(count)], default_version=count
            )
        case "worker":
            made = WorkerRecord(id=worker, memory_bytes=draw(sizes(8)), engines=["onnx"])
            made.draining = draw(st.integers(0, 4)) == 0
            if draw(st.booleans()):
                made.devices.append(DeviceRecord(index=0, kind="gpu", memory_bytes=draw(sizes(6))))
        case "replica":
            state = draw(st.sampled_from([pb.REPLICA_STATE_READY, pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_FAILED]))
            made = ReplicaRecord(worker=worker, name=name, version=number, state=state)
            made.measured_bytes = draw(st.sampled_from([0, 0, MIB, 20 * MIB, 90 * MIB]))
            made.load_seconds = draw(st.sampled_from([0.0, 1.0, 9.0]))
        case "assignment":
            told = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
            replicas = [
                AssignedReplica(
                    name=other,
                    version=draw(st.integers(1, 2)),
                    manifest_digest="sha256:x",
                    memory_bytes=draw(sizes(3)),
                    engine="onnx",
                    devices=[AssignedDevice(index=0, memory_bytes=STEP)] if draw(st.booleans()) else [],
                    leaving=draw(st.integers(0, 4)) == 0,
                )
                for other in told
            ]
            made = AssignmentRecord(worker=worker, term=1, replicas=replicas)
        case "drain":
            made = DrainRecord(worker=worker)
        case _:
            made = LearnedRecord(name=name, version=number, memory_bytes=draw(sizes(6)))
    return keys[kind], made


def tell(intake: Intake, store: Store, key: tuple[str, ...], now: Any) -> None:
    """Writes into the store, and tells the intake as a mirror would."""
    before = store.pop(key, None)
    if now is not None:
        store[key] = now
    if before is not None or now is not None:
        getattr(intake, key[0])(before, now)


def _decide(intake: Intake, number: int, shun: frozenset[str]) -> None:
    """What demand decides: a number for what follows it, and workers that are left."""
    for version in intake.scaled:
        intake.scale(version, number)
    for deployment in intake.deployments.values():
        for wanted in deployment.versions:
            intake.shun(VersionId(deployment.name, wanted.version), shun)


@given(
    st.lists(st.lists(records(), max_size=6), min_size=1, max_size=5),
    st.sampled_from([frozenset[str](), frozenset({"w0"})]),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_a_plan_of_changed_records_is_the_plan_of_all_records(
    steps: list[list[tuple[tuple[str, ...], Any]]], held: frozenset[str], number: int
) -> None:
    store: Store = {}
    intake = Intake()
    for step, told in enumerate(steps):
        for key, now in told:
            tell(intake, store, key, now)
        shun = held if step % 2 else NOBODY
        _decide(intake, number, shun)
        planned = intake.plan(held)
        fresh = Intake()
        for key, record in reversed(store.items()):
            getattr(fresh, key[0])(None, record)
        _decide(fresh, number, shun)
        assert planned == fresh.plan(held)
        assert dict(planned.unplaced) == dict(fresh.plan(held).unplaced)
        known, other = intake.planner.known, fresh.planner.known
        assert changes(known, planned) == changes(other, fresh.plan(held))
        assert (known.models, known.told, known.states) == (other.models, other.told, other.states)
        assert intake.reserved == fresh.reserved
        # Written down, what there is to do is done, for this one and for whoever learns of it.
        for worker, replicas in changes(known, planned).items():
            record = assignment_record(worker, replicas, 1) if replicas is not None else None
            tell(intake, store, ("assignment", worker), record)
        assert changes(known, intake.plan(held)) == {}


def test_a_record_that_says_the_same_again_is_no_change() -> None:
    intake = Intake()
    store: Store = {}
    records: dict[tuple[str, ...], Any] = {
        ("deployment", "a"): DeploymentRecord(
            name="a", versions=[WantedVersion(version=1, replicas=1, memory_bytes=MIB, engine="onnx")]
        ),
        ("worker", "w0"): WorkerRecord(id="w0", memory_bytes=64 * MIB, engines=["onnx"]),
        ("assignment", "w0"): AssignmentRecord(worker="w0", term=1),
        ("replica", "w0"): ReplicaRecord(worker="w0", name="a", version=1, state=pb.REPLICA_STATE_READY),
    }
    for key, record in records.items():
        tell(intake, store, key, record)
    intake.plan(frozenset())
    for kind in ("worker", "assignment", "replica"):
        key = next(key for key in records if key[0] == kind)
        tell(intake, store, key, records[key])
        assert not intake.planner.known.changed


def test_news_of_sizes_and_loads_are_told_until_they_are_written() -> None:
    intake, version = Intake(), VersionId("a", 1)
    deployed = DeploymentRecord(name="a", versions=[WantedVersion(version=1, replicas=1, engine="onnx")])
    intake.deployment(None, deployed)
    assert intake.news() == {}
    ready = ReplicaRecord(worker="w0", name="a", version=1, state=pb.REPLICA_STATE_READY)
    ready.measured_bytes, ready.load_seconds = 3 * MIB, 4.0
    intake.replica(None, ready)
    assert intake.news() == {version: Learned(STEP, 0, 4.0)} == intake.news()
    written = LearnedRecord(name="a", version=1, memory_bytes=STEP, load_seconds=4.0)
    intake.learned(None, written)
    assert intake.news() == {} and intake.load_seconds(version) == 4.0
    about = ReplicaRecord(worker="w1", name="a", version=1, state=pb.REPLICA_STATE_READY, load_seconds=4.5)
    intake.replica(None, about)
    assert intake.news() == {} and intake.load_seconds(version) == 4.5
    slower = ReplicaRecord(worker="w1", name="a", version=1, state=pb.REPLICA_STATE_READY, load_seconds=9.0)
    intake.replica(about, slower)
    assert intake.news() == {version: Learned(STEP, 0, 9.0)}
    intake.replica(ready, None)
    intake.replica(slower, None)
    wanted = intake.wanted(version)
    assert wanted is not None and wanted.memory_bytes == STEP
    intake.deployment(deployed, None)
    assert intake.news() == {version: None}
