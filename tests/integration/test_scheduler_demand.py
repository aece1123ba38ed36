"""Demand reported to real schedulers over gRPC moves assignments in a real etcd; gateways and workers are records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from penstock.cluster import Etcd, keys
from penstock.cluster.reports import MOST_PARTS, MOST_VERSIONS
from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1 import demand_pb2_grpc as rpc
from penstock.v1 import cluster_pb2 as cluster
from services.scheduler.reports import DemandService

from .test_scheduler import MIB, Scheduler, deploy, join, on_demand, running, say, served, version, watch_until


@asynccontextmanager
async def listening(*schedulers: Scheduler) -> AsyncIterator[list[rpc.DemandServiceAsyncStub]]:
    """Where schedulers take reports."""
    server = [grpc.aio.server() for _ in schedulers]
    stubs = []
    for one, scheduler in zip(server, schedulers, strict=True):
        rpc.add_DemandServiceServicer_to_server(DemandService(scheduler.view), one)
        port = one.add_insecure_port("127.0.0.1:0")
        await one.start()
        stubs.append(rpc.DemandServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{port}")))
    yield stubs
    for one in server:
        await one.stop(0)


def report(name: str, *, source: str = "g1", **said: Any) -> pb.ReportDemandRequest:
    said = {"requests": 1, "outstanding": 1.0, **said}
    return pb.ReportDemandRequest(source=source, seconds=1.0, versions=[pb.VersionDemand(name=name, version=1, **said)])


async def test_a_cold_version_is_loaded_for_who_waits_and_status_says_why(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    async with (
        running(store, scheduler) as assignments,
        listening(scheduler) as (stub,),
        served(store, scheduler) as (
            _,
            status,
        ),
    ):
        await join(store, "w1")
        await deploy(store, "a", on_demand(1))
        await deploy(store, "b", version(1))
        await assignments.become({"w1": ["b@1"]})
        cold = await watch_until(status, lambda found: len(found.versions) == 2)
        assert (cold.versions[0].wanted, cold.versions[0].scaling.max_replicas) == (0, 1)
        await stub.ReportDemand(report("a", waiting=2, outstanding=2.0))
        await assignments.become({"w1": ["a@1", "b@1"]})
        woken = await watch_until(status, lambda found: found.versions[0].wanted == 1)
        assert woken.versions[0].scaling.reason


async def test_one_of_two_models_that_do_not_fit_together_makes_room_or_the_other_is_told_why(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    async with running(store, scheduler) as assignments, listening(scheduler) as (stub,):
        await join(store, "w1")
        await deploy(store, "a", on_demand(1))
        await deploy(store, "b", on_demand(1, memory=200 * MIB))
        await deploy(store, "c", version(1))
        await assignments.become({"w1": ["c@1"]})
        await stub.ReportDemand(report("a", waiting=1))
        await assignments.become({"w1": ["a@1", "c@1"]})
        answer = await stub.ReportDemand(report("b", waiting=1))
        (estimate,) = answer.estimates
        assert (estimate.name, estimate.version) == ("b", 1) and "no worker has room" in estimate.obstacle
        assert "w1" not in estimate.obstacle


async def test_who_leads_next_knows_the_demand_and_takes_nothing_away(store: Etcd) -> None:
    first, second = Scheduler(store, "s1"), Scheduler(store, "s2")
    async with running(store, first, second) as assignments, listening(first, second) as stubs:
        await join(store, "w1", "w2", "w3")
        await deploy(store, "a", on_demand(1, most=3, outstanding=2.0))
        await deploy(store, "z", version(1))
        await assignments.changed.until(lambda: bool(assignments.now))
        for stub in stubs:
            await stub.ReportDemand(report("a", outstanding=6.0))
        await assignments.changed.until(lambda: str(assignments.now).count("a@1") == 3)
        before = assignments.now
        held = await store.get(keys.LEADER)
        await store.delete(keys.LEADER)
        await deploy(store, "y", version(1))
        await assignments.changed.until(lambda: str(assignments.now).count("y@1") == 1)
        now = await store.get(keys.LEADER)
        assert held is not None and now is not None and now.create_revision > held.create_revision
        assert str(assignments.now).count("a@1") == 3 == str(before).count("a@1")


async def test_a_replica_that_is_gray_leaves_once_another_is_ready(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.scheduler.shunning.HELD", 0.0)
    scheduler = Scheduler(store, "s1")
    async with (
        running(store, scheduler) as assignments,
        listening(scheduler) as (stub,),
        served(store, scheduler) as (_, status),
    ):
        await join(store, "w1", "w2")
        await deploy(store, "a", version(1))
        await assignments.become({"w1": ["a@1"]})
        await say(store, "w1", "a", 1, cluster.REPLICA_STATE_READY)
        # A report may overtake what the store tells.
        await watch_until(status, lambda found: any(each.ready for each in found.versions))
        gray = report("a")
        gray.gray.add(worker="w1", name="a", version=1, reason="silent")
        await stub.ReportDemand(gray)
        await assignments.become({"w1": ["a@1"], "w2": ["a@1"]})
        await say(store, "w2", "a", 1, cluster.REPLICA_STATE_READY)
        await assignments.become({"w1": [], "w2": ["a@1"]})


@pytest.mark.parametrize(
    "broken",
    [
        pb.ReportDemandRequest(source="", seconds=1),
        pb.ReportDemandRequest(source="g" * 129, seconds=1),
        pb.ReportDemandRequest(source="g1", seconds=0),
        pb.ReportDemandRequest(source="g1", seconds=float("nan")),
        pb.ReportDemandRequest(source="g1", seconds=61),
        pb.ReportDemandRequest(source="g1", seconds=1, versions=[pb.VersionDemand()] * (MOST_VERSIONS + 1)),
        report("../x"),
        report("a", requests=-1),
        report("a", outstanding=float("inf")),
        report("a", busy_seconds=float("nan")),
        pb.ReportDemandRequest(source="g1", seconds=1, gray=[pb.GrayReplica(worker="w1", name="a")]),
        pb.ReportDemandRequest(source="g1", seconds=1, parts=MOST_PARTS + 1),
        pb.ReportDemandRequest(source="g1", seconds=1, parts=2, part=2),
        pb.ReportDemandRequest(source="g1", seconds=1, part=-1),
    ],
)
async def test_a_report_that_none_of_ours_would_send_is_refused(store: Etcd, broken: pb.ReportDemandRequest) -> None:
    async with listening(Scheduler(store, "s1")) as (stub,):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ReportDemand(broken)


async def test_what_is_waited_for_in_any_part_of_a_report_is_answered_with_the_last(store: Etcd) -> None:
    scheduler = Scheduler(store, "s1")
    async with running(store, scheduler) as assignments, listening(scheduler) as (stub,):
        await join(store, "w1")
        await deploy(store, "a", on_demand(1))
        await deploy(store, "b", version(1))
        await assignments.become({"w1": ["b@1"]})
        first, last = report("a", waiting=2, outstanding=2.0), report("b")
        for number, part in enumerate((first, last)):
            part.parts, part.part = 2, number
        assert not (await stub.ReportDemand(first)).estimates
        assert [found.name for found in (await stub.ReportDemand(last)).estimates] == ["a"]
        await assignments.become({"w1": ["a@1", "b@1"]})
