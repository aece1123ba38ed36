"""Who is let in on both roads of a request, that each request counts once, and that its place comes back however it
ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from penstock.errors import (
    Cancelled,
    InvalidArgument,
    NotFound,
    PenstockError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from penstock.internal.v1.records_pb2 import ReplicaRecord, TenantRecord
from penstock.oip import inference_pb2 as oip
from penstock.v1 import models_pb2
from penstock.wire.call import Answer, Call
from penstock.wire.client import ConnectionLost
from services.gateway.access import AccessLog
from services.gateway.admission import Admission
from tests.unit.gateway.doubles import Gateway, Sent, call, echo, failing, request
from tests.unit.gateway.records import deployment, replica

LOST = ConnectionLost("the connection was lost")


@pytest.fixture(params=["by a task", "straight"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "straight", request.param == "straight")


@dataclass
class Door:
    """A gateway of two models, and what was said of its callers."""

    gateway: Gateway
    admission: Admission
    reasons: list[str] = field(default_factory=list)
    logged: list[dict[str, object]] = field(default_factory=list)
    log: AccessLog | None = None

    def say(self, *records: TenantRecord) -> None:
        self.admission.say(records, 1, asyncio.get_running_loop().time())

    @property
    def under_way(self) -> int:
        return sum(account.under_way for account in self.admission._accounts.values())

    async def infer(self, model: str = "digits", caller: str = "team", version: str = "") -> Answer:
        return await self.gateway.infer(request(model, version, caller))


def door(*records: TenantRecord, replicas: tuple[ReplicaRecord, ...] = ()) -> Door:
    reasons: list[str] = []
    logged: list[dict[str, object]] = []
    log = AccessLog(1.0, write=lambda event, **fields: logged.append(fields))
    admission = Admission(told=reasons.append)
    found = list(replicas) or [replica("w1"), replica("w2"), replica("w1", name="letters")]
    gateway = Gateway([deployment("digits", 1), deployment("letters", 1)], found, access=log, admission=admission)
    gateway.workers.behaviours = {record.address: echo for record in found}
    made = Door(gateway, admission, reasons, logged, log)
    made.say(*records)
    return made


def tenant(*models: str, name: str = "team", rate: float = 0.0, burst: int = 0, concurrent: int = 0) -> TenantRecord:
    return TenantRecord(name=name, models=models or ["*"], rate=rate, burst=burst, concurrent=concurrent)


async def test_who_may_not_call_a_model_does_not_learn_whether_it_is_there() -> None:
    it = door(tenant("digits", "gone-*"))
    assert (await it.infer()).payload
    said = []
    for model in ("letters", "no-such-model"):
        with pytest.raises(PermissionDenied) as raised:
            await it.infer(model, version="7")
        said.append(raised.value.message.replace(model, ""))
    assert said[0] == said[1]
    with pytest.raises(NotFound):
        await it.infer("gone-1")
    assert len(it.gateway.workers.sent) == 1 and it.under_way == 0
    assert await it.infer("letters", caller="somebody else")


async def test_a_refusal_is_counted_logged_and_no_demand() -> None:
    it = door(tenant("digits", rate=0.001, burst=1))
    await it.infer()
    with pytest.raises(ResourceExhausted):
        await it.infer()
    with pytest.raises(PermissionDenied):
        await it.infer("letters")
    assert it.reasons == ["rate", "model"] and it.log is not None
    it.log.flush()
    assert [(entry["code"], entry["model"], entry["caller"]) for entry in it.logged] == [
        ("OK", "digits", "team"),
        ("RESOURCE_EXHAUSTED", "digits", "team"),
        ("PERMISSION_DENIED", "letters", "team"),
    ]
    assert it.gateway.upstreams.demand.flow(("digits", 1)).requests == 1
    assert it.gateway.upstreams.demand.flow(("letters", 1)).requests == 0
    assert it.gateway.upstreams.in_flight == 0


@pytest.mark.parametrize("first", [LOST, Unavailable("leaving"), ResourceExhausted("full")])
async def test_a_retry_elsewhere_counts_once(first: PenstockError) -> None:
    it = door(tenant(rate=0.001, burst=2, concurrent=1))
    it.gateway.workers.behaviours["w1:1"] = failing(first)
    await it.infer()
    assert len(it.gateway.workers.sent) == 2 and it.under_way == 0
    it.gateway.workers.behaviours["w1:1"] = echo
    await it.infer()
    with pytest.raises(ResourceExhausted, match="try again in"):
        await it.infer()


@pytest.mark.parametrize("error", [InvalidArgument("shape"), RuntimeError("a fault"), LOST, Cancelled("gone")])
async def test_a_place_comes_back_when_a_request_fails(error: Exception) -> None:
    it = door(tenant(concurrent=1), replicas=(replica("w1"),))
    it.gateway.workers.behaviours["w1:1"] = failing(error)
    for _ in range(3):
        with pytest.raises((PenstockError, RuntimeError)) as raised:
            await it.infer()
        assert not isinstance(raised.value, ResourceExhausted)
        assert it.under_way == 0


async def reached(it: Door, ask: Callable[[], Awaitable[object]]) -> asyncio.Task[object]:
    """A request that hangs at its worker."""
    there = asyncio.Event()

    async def hang(sent: Sent) -> Answer:
        there.set()
        await asyncio.Event().wait()
        raise AssertionError

    it.gateway.workers.behaviours = dict.fromkeys(it.gateway.workers.behaviours, hang)

    async def asking() -> object:
        return await ask()

    task = asyncio.create_task(asking())
    await there.wait()
    return task


async def test_a_place_comes_back_when_its_caller_leaves() -> None:
    it = door(tenant(concurrent=1))
    for _ in range(2):
        task = await reached(it, it.infer)
        assert it.under_way == 1
        with pytest.raises(ResourceExhausted, match="under way"):
            await it.infer()
        task.cancel()
        await asyncio.wait([task])
        assert it.under_way == 0


async def test_a_place_comes_back_when_its_caller_leaves_during_the_second_attempt() -> None:
    it = door(tenant(concurrent=1))
    it.gateway.workers.behaviours["w1:1"] = failing(Unavailable("leaving"))
    there = asyncio.Event()

    async def hang(sent: Sent) -> Answer:
        there.set()
        await asyncio.Event().wait()
        raise AssertionError

    it.gateway.workers.behaviours["w2:1"] = hang
    task = asyncio.create_task(it.infer())
    await there.wait()
    assert it.under_way == 1
    task.cancel()
    await asyncio.wait([task])
    assert it.under_way == 0


async def test_one_that_cannot_go_straight_counts_once() -> None:
    """The straight road lets it in, finds no connection, and leaves it to a task."""
    it = door(tenant(rate=0.001, burst=1, concurrent=1))
    connect = it.gateway.upstreams._connect

    def without_room(address: str) -> object:
        made = connect(address)
        made.begin = lambda *args, **more: None  # type: ignore[method-assign]
        return made

    it.gateway.upstreams._connect = without_room  # type: ignore[assignment]
    assert (await it.infer()).payload
    assert it.under_way == 0 and it.reasons == []
    with pytest.raises(ResourceExhausted, match="try again"):
        await it.infer()


async def test_one_that_an_avoided_replica_gets_counts_once() -> None:
    it = door(tenant(rate=0.001, burst=1), replicas=(replica("w1"),))
    it.gateway.upstreams.judge("w1:1", it.gateway.upstreams._opened("w1:1"), ("digits", 1), Unavailable("no"))
    assert (await it.infer()).payload
    assert it.under_way == 0 and it.reasons == []


async def test_before_tenants_are_read_nobody_is_served() -> None:
    it = door()
    it.admission._read, it.admission.guarded = False, True
    with pytest.raises(Unavailable, match="has not been read"):
        await it.infer()
    ready = it.gateway.inference.handlers()["ModelReady"]
    assert not oip.ModelReadyResponse.FromString((await ready(question("ModelReady", "digits"))).payload).ready
    it.say()
    assert await it.infer()
    assert oip.ModelReadyResponse.FromString((await ready(question("ModelReady", "digits"))).payload).ready


def question(method: str, model: str) -> Call:
    return call(method, oip.ModelReadyRequest(name=model).SerializeToString(), caller="team")


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_questions_about_a_model(method: str) -> None:
    """Refused for a model that is not theirs, there or not; not counted for one that is."""
    it = door(tenant("digits", rate=0.001, burst=1, concurrent=1))
    handler = it.gateway.inference.handlers()[method]
    for model in ("letters", "no-such-model"):
        with pytest.raises(PermissionDenied, match=f"may not call model '{model}'"):
            await handler(question(method, model))
    it.gateway.workers.behaviours = dict.fromkeys(it.gateway.workers.behaviours, described)
    for _ in range(3):
        await handler(question(method, "digits"))
    await it.infer()


async def described(sent: Sent) -> Answer:
    """As a worker that has both models."""
    if sent.method == "ModelStatistics":
        response = oip.ModelStatisticsResponse()
        for name in ("digits", "letters"):
            response.model_stats.add(name=name, version="1", inference_count=1)
        return Answer(response.SerializeToString())
    return Answer(b"")


async def test_statistics_of_all_models_are_of_those_that_the_caller_may_call() -> None:
    it = door(tenant("digits"))
    it.gateway.workers.behaviours = dict.fromkeys(it.gateway.workers.behaviours, described)
    handler = it.gateway.inference.handlers()["ModelStatistics"]
    answer = oip.ModelStatisticsResponse.FromString((await handler(question("ModelStatistics", ""))).payload)
    assert [each.name for each in answer.model_stats] == ["digits"]


class Catalogue:
    """A registry that lists one model more."""

    async def call(self, service: str, method: str, request: object, response_class: type, **more: object) -> object:
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(name="more", latest_version=1)])


@pytest.mark.parametrize(
    ("models", "listed"), [(["digits"], ["digits"]), (["more"], ["more"]), (["*"], ["digits", "letters", "more"])]
)
async def test_the_index_lists_what_the_caller_may_call(models: list[str], listed: list[str]) -> None:
    it = door(tenant(*models))
    it.gateway.inference._repository._registry = Catalogue()  # type: ignore[assignment]
    handler = it.gateway.inference.handlers()["RepositoryIndex"]
    answer = await handler(call("RepositoryIndex", b"", caller="team"))
    assert [row.name for row in oip.RepositoryIndexResponse.FromString(answer.payload).models] == listed
