"""Pools of workers over a real etcd: schedulers that decide, workers that are only records, providers that remember."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from penstock.cluster import Election, Etcd, Mirror, keys, records
from penstock.cluster.kv import Delete, Put
from penstock.errors import PermissionDenied
from penstock.internal.v1.records_pb2 import AssignmentRecord, LeaderRecord, PoolRecord, WorkerRecord
from penstock.kit.metrics import exposition
from services.scheduler.absence import Absences
from services.scheduler.controller import Controller
from services.scheduler.fleet import Fleet
from services.scheduler.machines import Pace, Pool
from services.scheduler.metrics import ControllerMetrics, FleetMetrics
from services.scheduler.status import cluster_status
from services.scheduler.view import ClusterView
from tests.harness.processes import started
from tests.harness.waiting import Changed
from tests.integration.test_scheduler import MIB, deploy, version

PACE = Pace(rise_seconds=0.0, fall_seconds=1.5)


class Machines:
    """A provider that only remembers, and says what happens to it. size_now: what the pool has."""

    def __init__(self, size: int) -> None:
        self.size_now = size
        self.refuses = False
        self.orders: list[tuple[int, tuple[str, ...]]] = []
        self.changed = Changed()

    async def size(self, pool: str) -> int:
        return self.size_now

    async def resize(self, pool: str, count: int, leaving: Sequence[str]) -> None:
        if self.refuses:
            self.changed()
            raise PermissionDenied("no more machines for you", detail="quota")
        self.orders.append((count, tuple(leaving)))
        self.size_now = count
        self.changed()


class Scheduler:
    """One scheduler with a fleet, without its chassis."""

    def __init__(self, store: Etcd, name: str, machines: Machines | None) -> None:
        self.view = ClusterView(store, Absences(window=2.0, grace=30.0, settle=0.1), grace=30.0)
        self.fleet = Fleet([Pool("cpu", 1, 3)], PACE, machines, lambda: self.view.pools.records, FleetMetrics())
        election = Election(store, LeaderRecord(id=name, address="127.0.0.1:1"), 10.0)
        self.controller = Controller(self.view, election, ControllerMetrics(), self.fleet)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for part in (self.view, self.fleet, self.controller):
                group.create_task(part.run())


class Pools:
    """What is written of the pool, as it comes about."""

    def __init__(self, store: Etcd) -> None:
        self.changed = Changed()
        self.mirror = Mirror(store, keys.POOLS, PoolRecord, self.changed)

    @property
    def cpu(self) -> PoolRecord:
        return self.mirror.records.get(keys.pool("cpu"), PoolRecord())


@asynccontextmanager
async def running(store: Etcd, *schedulers: Scheduler) -> AsyncIterator[tuple[Pools, list[asyncio.Task[None]]]]:
    pools = Pools(store)
    async with asyncio.TaskGroup() as group:
        mirror = group.create_task(pools.mirror.run())
        tasks = [group.create_task(scheduler.run()) for scheduler in schedulers]
        await pools.mirror.synced()
        yield pools, tasks
        for task in (mirror, *tasks):
            task.cancel()


async def join(store: Etcd, *names: str) -> None:
    operations = [
        Put(
            keys.worker(name),
            records.to_json(WorkerRecord(id=name, memory_bytes=100 * MIB, engines=["onnx"], labels={"pool": "cpu"})),
        )
        for name in names
    ]
    await store.txn([], operations)


async def test_workers_are_ordered_for_what_has_no_place_and_sent_away_after(store: Etcd) -> None:
    machines = Machines(1)
    await join(store, "w1")
    await deploy(store, "a", version(1, memory=80 * MIB))
    await deploy(store, "b", version(1, memory=80 * MIB))
    scheduler = Scheduler(store, "s1", machines)
    async with running(store, scheduler) as (pools, _):
        await machines.changed.until(lambda: machines.orders)
        assert machines.orders == [(2, ())]
        # It was written down before.
        await pools.changed.until(lambda: pools.cpu.count == 2)
        assert 'penstock_scheduler_pool_workers_wanted{pool="cpu"} 2.0' in exposition().decode()
        await join(store, "w2")
        await pools.changed.until(lambda: "full" in pools.cpu.reason)
        await store.delete(keys.deployment("b"))
        await machines.changed.until(lambda: len(machines.orders) == 2)
        assert machines.orders[1] == (1, ("w2",))
        await pools.changed.until(lambda: pools.cpu.leaving == ["w2"])
        (shown,) = cluster_status(scheduler.view.picture()).pools
        assert (shown.name, shown.workers, shown.wanted, shown.problem) == ("cpu", 1, 1, "")
    assert "penstock_scheduler_pool_workers_wanted{" not in exposition().decode(), "nobody leads, so nobody says"


async def test_a_provider_that_refuses_is_shown_and_asked_again_and_keeps_nobody_from_being_placed(store: Etcd) -> None:
    machines = Machines(1)
    machines.refuses = True
    await join(store, "w1")
    await deploy(store, "a", version(1, memory=80 * MIB))
    await deploy(store, "b", version(1, memory=80 * MIB))
    async with running(store, Scheduler(store, "s1", machines)) as (pools, _):
        await pools.changed.until(lambda: pools.cpu.problem == "no more machines for you")
        assert pools.cpu.count == 2 and machines.size_now == 1
        assert 'penstock_scheduler_pool_failures_total{pool="cpu"}' in exposition().decode()
        await deploy(store, "c", version(1, memory=10 * MIB))
        found = Changed()
        told = Mirror(store, keys.ASSIGNMENTS, AssignmentRecord, found)
        watching = asyncio.create_task(told.run())
        await found.until(lambda: any(r.name == "c" for a in told.records.values() for r in a.replicas))
        watching.cancel()
        machines.refuses = False
        await machines.changed.until(lambda: machines.orders)
        await pools.changed.until(lambda: not pools.cpu.problem)
        assert machines.orders == [(2, ())]


async def test_the_next_leader_goes_on_and_the_last_one_orders_nothing_more(store: Etcd) -> None:
    first, second = Machines(3), Machines(3)
    await join(store, "w1", "w2", "w3")
    await deploy(store, "a", version(1, memory=80 * MIB))
    one = Scheduler(store, "s1", first)
    async with running(store, one) as (pools, _):
        await first.changed.until(lambda: first.orders)
        assert first.orders == [(2, ("w3",))]
        await pools.changed.until(lambda: pools.cpu.count == 2)
    # It had been told, and w3 is on its way out when the next one begins.
    second.size_now = 2
    ordered = list(first.orders)
    async with running(store, Scheduler(store, "s2", second)) as (pools, _):
        await pools.changed.until(lambda: "waits for w3" in pools.cpu.reason)
        await store.txn([], [Delete(keys.worker("w3"))])
        await second.changed.until(lambda: second.orders)
        assert second.orders == [(1, ("w2",))]
    assert first.orders == ordered


async def test_a_number_that_somebody_raised_by_hand_falls_slowly(store: Etcd) -> None:
    machines = Machines(1)
    await join(store, "w1")
    async with running(store, Scheduler(store, "s1", machines)) as (pools, _):
        await pools.changed.until(lambda: pools.cpu.count == 1)
        await store.delete(keys.pool("cpu"))
    machines.size_now = 3
    await join(store, "w2", "w3")
    async with running(store, Scheduler(store, "s2", machines)) as (pools, _):
        await pools.changed.until(lambda: pools.cpu.count == 3)
        await machines.changed.until(lambda: machines.orders)
        assert machines.orders == [(2, ("w3",))]


async def test_a_pool_that_is_configured_no_more_is_forgotten(store: Etcd) -> None:
    await store.put(keys.pool("gone"), records.to_json(PoolRecord(name="gone", count=7)))
    await join(store, "w1")
    async with running(store, Scheduler(store, "s1", None)) as (pools, _):
        await pools.changed.until(lambda: list(pools.mirror.records) == [keys.pool("cpu")])
        assert pools.cpu.count == 1


async def test_keda_reads_what_is_wanted_over_http(store: Etcd, clean_etcd: str) -> None:
    await join(store, "w1")
    await deploy(store, "a", version(1, memory=80 * MIB))
    await deploy(store, "b", version(1, memory=80 * MIB))
    flags = (f"--etcd={clean_etcd}", "--port=0", "--provider=metric", "--pools=cpu:1:3", "--pool-rise-seconds=0")
    async with started("services.scheduler", *flags) as service:
        admin = (await service.event("started"))["admin"]
        assert (await service.event("pool_decided"))["workers"] == 2

        def scraped() -> dict[str, str]:
            with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

        wanted = 'penstock_scheduler_pool_workers_wanted{pool="cpu"}'
        assert (await asyncio.to_thread(scraped))[wanted] == "2.0"
        async with started("services.scheduler", *flags) as other:
            admin = (await other.event("started"))["admin"]
            assert wanted not in await asyncio.to_thread(scraped), "who does not lead says nothing"
