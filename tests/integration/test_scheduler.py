"""Controllers and the status service over a real etcd, with workers that are only records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from penstock.cluster import Election, Etcd, Membership, Mirror, keys, records
from penstock.cluster.kv import Delete, Put
from penstock.errors import InvalidArgument, NotFound
from penstock.internal.v1.records_pb2 import (
    AssignmentRecord,
    DeploymentRecord,
    DrainRecord,
    LeaderRecord,
    LearnedRecord,
    ReplicaRecord,
    WantedVersion,
    WorkerRecord,
)
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import cluster_pb2_grpc as rpc
from penstock.v1.models_pb2 import Scaling
from services.scheduler.absence import Absences
from services.scheduler.controller import Controller
from services.scheduler.drains import Drains
from services.scheduler.metrics import ControllerMetrics
from services.scheduler.rpc import ClusterService
from services.scheduler.view import ClusterView
from tests.harness.etcd import EtcdProcess
from tests.harness.processes import started
from tests.harness.waiting import Changed

MIB = 2**20


class Scheduler:
    """One scheduler without its chassis."""

    def __init__(self, store: Etcd, name: str, *, grace: float = 30.0) -> None:
        self.view = ClusterView(store, Absences(window=2.0, grace=grace, settle=0.1), grace=grace)
        # A term that outlasts the pauses of a busy machine; none of these is to end by itself.
        election = Election(store, LeaderRecord(id=name, address="127.0.0.1:1"), 10.0)
        self.controller = Controller(self.view, election, ControllerMetrics())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.view.run())
            group.create_task(self.controller.run())

    async def knows(self, worker: str, there: bool = True) -> None:
        """Waits until the worker is known to be there, or not: workers and deployments come by watches of their own."""
        with self.view.listening() as changed:
            async with asyncio.timeout(30):
                while (keys.worker(worker) in self.view.workers.records) != there:
                    await changed.wait()
                    changed.clear()


class Assignments:
    """What workers are told, as it comes about."""

    def __init__(self, store: Etcd) -> None:
        self.changed = Changed()
        self.mirror = Mirror(store, keys.ASSIGNMENTS, AssignmentRecord, self.changed)
        self.learned = Mirror(store, keys.LEARNED, LearnedRecord, self.changed)

    @property
    def now(self) -> dict[str, list[str]]:
        return {
            record.worker: [f"{replica.name}@{replica.version}" for replica in record.replicas]
            for record in self.mirror.records.values()
        }

    def reserved(self, worker: str) -> list[int]:
        found = self.mirror.records.get(keys.assignment(worker), AssignmentRecord())
        return [replica.memory_bytes for replica in found.replicas]

    def term(self, worker: str) -> int:
        return self.mirror.records[keys.assignment(worker)].term

    async def become(self, expected: dict[str, list[str]], within: float = 30.0) -> None:
        try:
            await self.changed.until(lambda: self.now == expected, within)
        except TimeoutError:
            raise AssertionError(f"assignments are {self.now}, not {expected}") from None


@asynccontextmanager
async def running(store: Etcd, *schedulers: Scheduler) -> AsyncIterator[Assignments]:
    assignments = Assignments(store)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mirror.run()) for mirror in (assignments.mirror, assignments.learned)]
        tasks += [group.create_task(scheduler.run()) for scheduler in schedulers]
        await assignments.mirror.synced()
        yield assignments
        for task in tasks:
            task.cancel()


async def deploy(store: Etcd, name: str, *versions: WantedVersion, default: int = 0) -> None:
    default = default or versions[-1].version
    record = DeploymentRecord(name=name, versions=versions, default_version=default, aliases={"live": default})
    await store.put(keys.deployment(name), records.to_json(record))


def version(number: int, *, replicas: int = 1, memory: int = 10 * MIB, retiring: bool = False) -> WantedVersion:
    digest = f"sha256:{number:064d}"
    return WantedVersion(
        version=number, replicas=replicas, memory_bytes=memory, manifest_digest=digest, engine="onnx", retiring=retiring
    )


def on_demand(number: int, *, most: int = 1, memory: int = 60 * MIB, **more: float) -> WantedVersion:
    wanted = version(number, replicas=0, memory=memory)
    wanted.scaling.CopyFrom(Scaling(max_replicas=most, **more))  # type: ignore[arg-type]
    return wanted


async def join(store: Etcd, *workers: str, draining: bool = False) -> None:
    operations = [
        Put(
            keys.worker(name),
            records.to_json(WorkerRecord(id=name, memory_bytes=100 * MIB, engines=["onnx"], draining=draining)),
        )
        for name in workers
    ]
    await store.txn([], operations)


async def vanish(store: Etcd, *workers: str) -> None:
    await store.txn([], [Delete(keys.worker(name)) for name in workers])


async def say(store: Etcd, worker: str, name: str, number: int, state: pb.ReplicaState.ValueType) -> None:
    record = ReplicaRecord(worker=worker, name=name, version=number, state=state)
    await store.put(keys.replica(worker, name, number), records.to_json(record))


async def test_an_assignment_appears_and_moves_when_its_worker_is_lost(store: Etcd) -> None:
    async with running(store, Scheduler(store, "s1")) as assignments:
        await join(store, "w1", "w2", "w3")
        await deploy(store, "digits", version(3, replicas=2))
        await assignments.become({"w1": ["digits@3"], "w2": ["digits@3"]})
        leader = await store.get(keys.LEADER)
        assert leader is not None and assignments.term("w1") == leader.create_revision
        await vanish(store, "w1")
        await assignments.become({"w2": ["digits@3"], "w3": ["digits@3"]})
        await store.delete(keys.deployment("digits"))
        await assignments.become({"w2": [], "w3": []})


async def test_a_version_is_replaced_only_when_the_next_is_ready(store: Etcd) -> None:
    async with running(store, Scheduler(store, "s1")) as assignments:
        await join(store, "w1")
        await deploy(store, "digits", version(1))
        await assignments.become({"w1": ["digits@1"]})
        await say(store, "w1", "digits", 1, pb.REPLICA_STATE_READY)
        await deploy(store, "digits", version(1, retiring=True), version(2))
        await assignments.become({"w1": ["digits@1", "digits@2"]})
        await say(store, "w1", "digits", 2, pb.REPLICA_STATE_READY)
        await assignments.become({"w1": ["digits@2"]})


async def test_of_two_schedulers_one_leads_and_the_other_follows_it(store: Etcd) -> None:
    second = Scheduler(store, "s2")
    async with running(store, second) as assignments:
        async with asyncio.TaskGroup() as group:
            first_task = group.create_task(Scheduler(store, "s1").run())
            await join(store, "w1")
            await deploy(store, "a", version(1))
            await assignments.become({"w1": ["a@1"]})
            leader = await store.get(keys.LEADER)
            assert leader is not None
            first_task.cancel()
        await deploy(store, "b", version(1))
        await assignments.become({"w1": ["a@1", "b@1"]})
        now = await store.get(keys.LEADER)
        assert now is not None and records.from_json(LeaderRecord, now.value).id == "s2"
        assert assignments.term("w1") == now.create_revision >= leader.create_revision


async def test_half_of_the_workers_vanishing_together_keep_their_assignments_for_a_grace(store: Etcd) -> None:
    async with running(store, Scheduler(store, "s1", grace=1.5)) as assignments:
        await join(store, "w1", "w2", "w3", "w4")
        for name in "abcd":
            await deploy(store, name, version(1))
        everything = {"w1": ["a@1"], "w2": ["b@1"], "w3": ["c@1"], "w4": ["d@1"]}
        await assignments.changed.until(lambda: len(assignments.now) == 4)
        placed = assignments.now
        assert sorted(placed) == sorted(everything)
        started = asyncio.get_running_loop().time()
        await vanish(store, "w1", "w2", "w3")
        await assignments.changed.until(lambda: set(assignments.now) == {"w4"})
        assert asyncio.get_running_loop().time() - started > 1.4
        assert assignments.now == {"w4": ["a@1", "b@1", "c@1", "d@1"]}


async def test_workers_that_come_back_within_the_grace_find_their_assignments(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1", grace=30)
    async with running(store, scheduler) as assignments:
        await join(store, "w1", "w2")
        await deploy(store, "a", version(1, replicas=2))
        await assignments.become({"w1": ["a@1"], "w2": ["a@1"]})
        before = (await store.range(keys.ASSIGNMENTS)).items
        await vanish(store, "w1", "w2")
        await scheduler.knows("w1", there=False)
        await deploy(store, "b", version(1))
        await join(store, "w1", "w2", "w3")
        await assignments.changed.until(lambda: "w3" in assignments.now)
        assert assignments.now == {"w1": ["a@1"], "w2": ["a@1"], "w3": ["b@1"]}
        assert (await store.range(keys.ASSIGNMENTS)).items[:2] == before


async def test_an_emptied_store_takes_nothing_from_workers_that_run(etcd: EtcdProcess) -> None:
    """The registry is slow to write deployments again; meanwhile no worker is told to drop what it runs."""
    store = Etcd([etcd.endpoint])
    scheduler = Scheduler(store, "s1", grace=30)
    async with running(store, scheduler) as assignments:
        await join(store, "w1")
        await deploy(store, "a", version(1))
        await deploy(store, "b", version(1))
        await assignments.become({"w1": ["a@1", "b@1"]})
        await asyncio.to_thread(etcd.wipe)
        await assignments.changed.until(lambda: assignments.mirror.rewinds)
        await say(store, "w1", "a", 1, pb.REPLICA_STATE_READY)
        await say(store, "w1", "b", 1, pb.REPLICA_STATE_READY)
        await join(store, "w1", "w2")
        await scheduler.knows("w2")
        await deploy(store, "b", version(1))
        # That c is placed shows that the scheduler has looked since b is back and a is not.
        await deploy(store, "c", version(1))
        await assignments.become({"w2": ["c@1"]})
        await deploy(store, "a", version(1))
        await assignments.become({"w1": ["a@1", "b@1"], "w2": ["c@1"]})
        found = await store.get(keys.assignment("w1"))
        assert found is not None and found.create_revision == found.mod_revision
    await store.close()


async def test_a_leader_sees_what_it_wrote_before_it_decides_again(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(store, "s1")
    # Its watch of assignments tells it nothing, as if it were late.
    monkeypatch.setattr(scheduler.view.assignments, "_apply_event", lambda event: False)
    async with running(store, scheduler) as assignments:
        await join(store, "w1")
        await deploy(store, "a", version(1))
        await assignments.become({"w1": ["a@1"]})
        record = WorkerRecord(id="w0", memory_bytes=1000 * MIB, engines=["onnx"])
        await store.put(keys.worker("w0"), records.to_json(record))
        await scheduler.knows("w0")
        await deploy(store, "b", version(1))
        await assignments.become({"w0": ["b@1"], "w1": ["a@1"]})


@asynccontextmanager
async def served(
    store: Etcd, scheduler: Scheduler
) -> AsyncIterator[tuple[ClusterService, rpc.ClusterServiceAsyncStub]]:
    service = ClusterService(scheduler.view, store)
    server = grpc.aio.server()
    rpc.add_ClusterServiceServicer_to_server(service, server)

    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service, rpc.ClusterServiceStub(channel)
    await server.stop(0)


async def test_status_joins_everything_and_any_scheduler_answers(store: Etcd) -> None:
    leading, following = Scheduler(store, "s1"), Scheduler(store, "s2")
    membership = Membership(store, 5)
    await join(store, "w1", "w2")
    await deploy(store, "digits", version(1, replicas=3), version(2, memory=200 * MIB), default=1)
    async with running(store, leading, following) as assignments, served(store, following) as (_, stub):
        await assignments.become({"w1": ["digits@1"], "w2": ["digits@1"]})
        await say(store, "w1", "digits", 1, pb.REPLICA_STATE_READY)

        def complete(status: pb.ClusterStatus) -> bool:
            return bool(status.versions) and status.versions[0].ready == 1 and status.workers[1].reserved_bytes > 0

        status = await watch_until(stub, complete)
        leader = await store.get(keys.LEADER)
        assert leader is not None
        assert status.leader in ("s1", "s2") and status.term == leader.create_revision
        first, second = status.versions
        assert (first.wanted, first.ready, first.default_version, list(first.aliases)) == (3, 1, True, ["live"])
        assert [(r.worker, r.state) for r in first.replicas] == [
            ("w1", pb.REPLICA_STATE_READY),
            ("w2", pb.REPLICA_STATE_ASSIGNED),
        ]
        assert "ask for fewer or add workers" in first.unplaced_reason
        assert "each needs 200 MiB; w1 has 90 MiB free of 100 MiB" in second.unplaced_reason
        assert [(w.id, w.memory_bytes, w.reserved_bytes) for w in status.workers] == [
            ("w1", 100 * MIB, 10 * MIB),
            ("w2", 100 * MIB, 10 * MIB),
        ]
        other = await stub.GetStatus(pb.GetStatusRequest(name="other"))
        assert not other.status.versions and len(other.status.workers) == 2
    await membership.leave()


async def test_a_decision_is_explained_by_any_scheduler(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    await join(store, "w1")
    await join(store, "w2", draining=True)
    await deploy(store, "digits", version(1), version(2, memory=200 * MIB), default=1)
    async with running(store, scheduler) as assignments, served(store, scheduler) as (_, stub):
        await assignments.become({"w1": ["digits@1"]})
        await watch_until(stub, lambda status: status.workers[0].reserved_bytes > 0)
        first, second = (await stub.ExplainPlacement(pb.ExplainPlacementRequest(name="digits"))).versions
        assert [(v.worker, v.outcome) for v in first.workers] == [
            ("w1", pb.PLACEMENT_OUTCOME_HERE),
            ("w2", pb.PLACEMENT_OUTCOME_NOT_HERE),
        ]
        assert first.workers[0].reason.startswith("kept") and first.workers[1].obstacle == "draining"
        assert (second.placed, second.workers[0].obstacle, second.workers[0].lacking_bytes) == (0, "memory", 110 * MIB)
        assert "free 110 MiB on w1" in second.remedies
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.ExplainPlacement(pb.ExplainPlacementRequest(name="digits", version=9))
        assert "not deployed" in str(unknown.value)


async def test_what_a_replica_turned_out_to_take_is_remembered_after_it_has_gone(store: Etcd) -> None:
    async with running(store, Scheduler(store, "s1")) as assignments:
        await join(store, "w1")
        await deploy(store, "digits", version(1))
        await assignments.become({"w1": ["digits@1"]})
        record = ReplicaRecord(
            worker="w1", name="digits", version=1, state=pb.REPLICA_STATE_READY, measured_bytes=50 * MIB + 1
        )
        await store.put(keys.replica("w1", "digits", 1), records.to_json(record))
        await assignments.changed.until(lambda: assignments.reserved("w1") == [64 * MIB])
        await store.delete(keys.replica("w1", "digits", 1))
        await vanish(store, "w1")
        await join(store, "w2")
        await assignments.become({"w2": ["digits@1"]})
        assert assignments.reserved("w2") == [64 * MIB]
        assert len(assignments.learned.records) == 1
        await store.delete(keys.deployment("digits"))
        await assignments.become({"w2": []})
        await assignments.changed.until(lambda: not assignments.learned.records)


async def test_a_watch_shows_changes_and_ends_when_the_scheduler_stops(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    async with running(store, scheduler), served(store, scheduler) as (service, stub):
        call = stub.WatchStatus(pb.WatchStatusRequest(), wait_for_ready=True)

        async def until(condition: Callable[[pb.ClusterStatus], bool]) -> None:
            async with asyncio.timeout(30):
                async for answer in call:
                    if condition(answer.status):
                        return

        await until(lambda status: status.leader == "s1")
        await join(store, "w1")
        await until(lambda status: len(status.workers) == 1)
        await service.close()
        with pytest.raises(grpc.aio.AioRpcError):
            async with asyncio.timeout(30):
                async for _ in call:
                    pass


async def test_a_drain_is_written_down_once_and_taken_back(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    async with running(store, scheduler) as assignments, served(store, scheduler) as (service, stub):
        await join(store, "w1", "w2")
        await deploy(store, "a", version(1))
        await assignments.become({"w1": ["a@1"]})
        await watch_until(stub, lambda status: len(status.workers) == 2)
        assert (await stub.DrainWorker(pb.DrainWorkerRequest(worker="w1"))).replicas == 1
        # By now it may have been carried out.
        assert (await stub.DrainWorker(pb.DrainWorkerRequest(worker="w1"))).replicas <= 1
        # Nobody has said that it runs there, so nothing is lost by moving it at once.
        await assignments.become({"w1": [], "w2": ["a@1"]})
        await watch_until(stub, lambda status: status.workers[0].draining and not status.workers[1].draining)
        (item,) = (await store.range(keys.DRAINS)).items
        assert records.from_json(DrainRecord, item.value).worker == "w1"
        for _ in range(2):
            await stub.UndrainWorker(pb.UndrainWorkerRequest(worker="w1"))
        await watch_until(stub, lambda status: not status.workers[0].draining)
        assert not (await store.range(keys.DRAINS)).items
        # Without the kit's gate around it the error comes as it is.
        with pytest.raises(NotFound, match="none is called 'w/9'; there are w1, w2"):
            await service.DrainWorker(pb.DrainWorkerRequest(worker="w/9"), None)
        with pytest.raises(NotFound, match="none is called 'w9'"):
            await service.UndrainWorker(pb.UndrainWorkerRequest(worker="w9"), None)


async def test_the_leader_forgets_a_drain_of_a_worker_that_is_gone_for_good(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.scheduler.view.Drains", lambda: Drains(patience=0.5))
    await store.put(keys.drain("w9"), records.to_json(DrainRecord(worker="w9")))
    await store.put(keys.drain("w1"), records.to_json(DrainRecord(worker="w1")))
    await join(store, "w1")
    seen = Changed()
    mirror = Mirror(store, keys.DRAINS, DrainRecord, seen)
    async with running(store, Scheduler(store, "s1")), asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run())
        await seen.until(lambda: set(mirror.records) == {keys.drain("w1")})
        following.cancel()


async def test_reservations_are_told_by_setting(store: Etcd, clean_etcd: str) -> None:
    """Whoever is no tenant is placed only where enough is open to all."""
    seen = Assignments(store)
    kept = WorkerRecord(id="w1", memory_bytes=200 * MIB, engines=["onnx"], labels={"zone": "a"})
    await store.put(keys.worker("w1"), records.to_json(kept))
    await join(store, "w2")
    await deploy(store, "a", version(1, memory=60 * MIB))
    tenants = version(1, memory=150 * MIB)
    tenants.tenant = "acme"
    await deploy(store, "b", tenants)
    free = ("--port=0", "--admin-port=0", f"--etcd={clean_etcd}")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(seen.mirror.run())
        async with started("services.scheduler", *free, "--reservations=acme memory=150MiB on zone=a"):
            await seen.become({"w1": ["b@1"], "w2": ["a@1"]})
        following.cancel()
    async with started("services.scheduler", *free, "--reservations=acme 150MiB") as process:
        assert await process.ended() == 2


async def test_a_name_that_cannot_be_one_is_refused(store: Etcd) -> None:
    service = ClusterService(Scheduler(store, "s1").view, store)
    with pytest.raises(InvalidArgument):
        await service.GetStatus(pb.GetStatusRequest(name="../x"), None)


async def test_status_shows_devices_and_that_one_is_cordoned(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    record = WorkerRecord(id="w1", memory_bytes=100 * MIB, engines=["onnx"])
    for index in (1, 0):
        record.devices.add(index=index, kind="gpu", name="H200", memory_bytes=80 * MIB)
    await store.put(keys.worker("w1"), records.to_json(record))
    async with running(store, scheduler), served(store, scheduler) as (_, stub):
        status = await watch_until(stub, lambda status: len(status.workers) == 1)
        devices = status.workers[0].devices
        assert [(each.index, each.kind, each.name, each.cordoned) for each in devices] == [
            (0, "gpu", "H200", False),
            (1, "gpu", "H200", False),
        ]
        record.devices[0].cordoned = True
        await store.put(keys.worker("w1"), records.to_json(record))
        status = await watch_until(stub, lambda status: any(each.cordoned for each in status.workers[0].devices))
        assert [each.index for each in status.workers[0].devices if each.cordoned] == [1]


async def watch_until(
    stub: rpc.ClusterServiceAsyncStub, condition: Callable[[pb.ClusterStatus], bool]
) -> pb.ClusterStatus:
    async with asyncio.timeout(30):
        async for answer in stub.WatchStatus(pb.WatchStatusRequest(), wait_for_ready=True):
            if condition(answer.status):
                return answer.status
    raise AssertionError("the watch ended")
