"""What is told of the demand: every request once, time under way exactly, and its end for a while."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1.records_pb2 import DeploymentRecord, WantedVersion
from penstock.oip import inference_pb2 as oip
from penstock.v1 import models_pb2
from penstock.wire.client import ConnectionLost
from services.gateway.demand import TOLD, Demand, inherited
from services.gateway.route_table import RouteTable, view_of
from tests.unit.gateway.doubles import Gateway, call, echo, failing, request
from tests.unit.gateway.records import LOADING, deployment, replica

EMPTY = RouteTable()


def told(demand: Demand, now: float) -> dict[str, pb.VersionDemand]:
    report = demand.taken(now, EMPTY)
    return {version.name: version for version in report.versions}


def test_nothing_is_told_of_what_nobody_asked_for() -> None:
    demand = Demand(0.0)
    demand.flow(("m", 1))
    report = demand.taken(2.5, EMPTY)
    assert (report.seconds, list(report.versions)) == (2.5, [])


def test_requests_are_told_once_and_time_under_way_as_a_mean() -> None:
    demand = Demand(10.0)
    flow = demand.flow(("m", 3))
    flow.began(11.0)
    flow.began(11.0)
    flow.ended(11.5)
    first = told(demand, 12.0)["m"]
    assert (first.version, first.requests, first.idle_seconds) == (3, 2, 0.0)
    assert first.outstanding == pytest.approx((1.0 + 0.5) / 2.0)
    flow.ended(13.0)
    second = told(demand, 14.0)["m"]
    assert second.requests == 0
    assert second.outstanding == pytest.approx(1.0 / 2.0)


def test_that_nobody_asks_any_more_is_told_for_a_while() -> None:
    demand = Demand(0.0)
    flow = demand.flow(("m", 1))
    flow.began(0.5)
    flow.ended(0.6)
    assert told(demand, 1.0)["m"].requests == 1
    later = told(demand, 5.0)["m"]
    assert (later.requests, later.outstanding) == (0, 0.0)
    assert 4.0 <= later.idle_seconds <= 5.0
    assert told(demand, 1.0 + TOLD + 1.0) == {}


def test_a_request_that_is_sent_again_is_one_request() -> None:
    demand = Demand(0.0)
    flow = demand.flow(("m", 1))
    for _ in range(3):
        flow.began(0.1)
        flow.ended(0.2)
    flow.repeated()
    flow.repeated()
    assert told(demand, 1.0)["m"].requests == 1


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 5)), max_size=20),
    st.lists(st.floats(0.5, 14), min_size=1, max_size=6, unique=True),
)
def test_no_time_is_lost_or_told_twice(spans: list[tuple[float, float]], looks: list[float]) -> None:
    """However the time is cut into intervals, all of it together is what the requests took."""
    demand = Demand(0.0)
    flow = demand.flow(("m", 1))
    events = [(at, flow.began) for at, _ in spans] + [(at + took, flow.ended) for at, took in spans]
    events.sort(key=lambda event: (event[0], event[1] == flow.ended))
    last, requests, seconds = 0.0, 0, 0.0
    for look in [*sorted(looks), 15.0]:
        while events and events[0][0] <= look:
            at, act = events.pop(0)
            act(at)
        report = demand.taken(look, EMPTY)
        for version in report.versions:
            requests += version.requests
            seconds += version.outstanding * (look - last)
        last = look
    assert requests == len(spans)
    assert seconds == pytest.approx(sum(took for _, took in spans), abs=1e-6)


def on_demand(*, retiring_ready: bool) -> RouteTable:
    record = DeploymentRecord(
        name="m",
        versions=[
            WantedVersion(version=1, replicas=1, retiring=True),
            WantedVersion(version=2, scaling=models_pb2.Scaling(min_replicas=0, max_replicas=2)),
        ],
        default_version=2,
    )
    replicas = [replica("w1", name="m", version=1)] if retiring_ready else [replica("w1", name="m", version=2)]
    view = view_of(record, replicas)
    assert view is not None
    return RouteTable({"m": view})


def test_what_retires_asks_for_its_heir() -> None:
    table = on_demand(retiring_ready=True)
    assert table.resolve("m", "").version == 1
    made = inherited([pb.VersionDemand(name="m", version=1, requests=5, outstanding=0.5)], table)
    assert [(each.version, each.requests, each.outstanding) for each in made] == [(1, 5, 0.5), (2, 5, 0.5)]
    waits = pb.VersionDemand(name="m", version=2, requests=1, waiting=1)
    made = inherited([waits, pb.VersionDemand(name="m", version=1, requests=5)], table)
    assert {each.version: (each.requests, each.waiting) for each in made} == {1: (5, 0), 2: (6, 1)}


def test_an_heir_that_is_there_is_not_asked_for() -> None:
    made = inherited([pb.VersionDemand(name="m", version=1, requests=5)], on_demand(retiring_ready=False))
    assert [each.version for each in made] == [1]


class TestThroughTheGateway:
    """The counters are touched on every road of a request, and only by requests."""

    @pytest.fixture(params=["by a task", "straight"], autouse=True)
    def road(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gateway, "straight", request.param == "straight")

    @staticmethod
    def taken(it: Gateway) -> dict[tuple[str, int], int]:
        it.now += 1.0
        report = it.upstreams.demand.taken(it.now, it.routes.table)
        return {(each.name, each.version): each.requests for each in report.versions}

    async def test_each_request_counts_once_however_often_it_is_tried(self) -> None:
        it = Gateway([deployment("digits", 1)], [replica("w1"), replica("w2")])
        it.workers.behaviours = {"w1:1": failing(ConnectionLost("x")), "w2:1": echo}
        await it.infer(request())
        assert len(it.workers.sent) == 2
        assert self.taken(it) == {("digits", 1): 1}

    async def test_who_leaves_is_not_under_way(self) -> None:
        it, reached = Gateway([deployment("digits", 1)], [replica("w1")]), asyncio.Event()

        async def hang(sent: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        it.workers.behaviours["w1:1"] = hang  # type: ignore[assignment]
        task = asyncio.create_task(it.infer(request()))
        await reached.wait()
        assert it.upstreams.demand.flow(("digits", 1)).outstanding == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.upstreams.demand.flow(("digits", 1)).outstanding == 0

    async def test_questions_are_no_demand(self) -> None:
        it = Gateway([deployment("digits", 1)], [replica("w1")])

        async def answer(sent: object) -> object:
            return (await echo(sent)).__class__(oip.ModelStatisticsResponse().SerializeToString())  # type: ignore[arg-type]

        it.workers.behaviours["w1:1"] = answer  # type: ignore[assignment]
        payload = oip.ModelStatisticsRequest(name="digits").SerializeToString()
        await it.inference.handlers()["ModelStatistics"](call("ModelStatistics", payload))
        assert len(it.workers.sent) == 1
        assert self.taken(it) == {}

    async def test_a_version_out_of_order_is_asked_for_by_nobody_it_could_serve(self) -> None:
        it = Gateway([deployment("digits", 1)], [replica("w1", LOADING)])
        with pytest.raises(Exception, match="is loading"):
            await it.infer(request())
        assert self.taken(it) == {}
