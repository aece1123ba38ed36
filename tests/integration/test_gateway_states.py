"""Statuses tell the truth: every state that a version can be in, over gRPC and REST, through a real gateway."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import grpc
import httpx
import pytest

from penstock import errors
from penstock.cluster import keys, records
from penstock.internal.v1 import demand_pb2
from penstock.internal.v1.records_pb2 import ReplicaRecord, ServiceRecord, TenantRecord
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as pb
from penstock.wire.call import Call
from services.gateway.ejection import Gray
from tests.harness.etcd import EtcdProcess
from tests.integration.gateway_harness import EchoWorker, Running, gateway, hang, workers
from tests.integration.scheduler_double import SchedulerDouble, scheduler


def fails(error: errors.PenstockError) -> Callable[[Call], Awaitable[None]]:
    async def fail(call: Call) -> None:
        raise error

    return fail


@dataclass(frozen=True)
class State:
    """One row. replica: its state and what the record says besides; worker: what it does with a request; estimate: what
    the scheduler says; tenant: what every caller may do, spent: one request of that is; after: seconds of Retry-After,
    None for none."""

    name: str
    status: int
    code: str
    words: str
    version: str = ""
    deployed: bool = True
    on_demand: bool = False
    replica: pb.ReplicaState.ValueType | None = None
    reason: str = ""
    retry: int = 0
    worker: Callable[[Call], Awaitable[None]] | None = None
    estimate: demand_pb2.LoadEstimate | None = None
    tenant: TenantRecord | None = None
    spent: bool = False
    after: int | None = None
    timeout: float = 20.0


def told(seconds: float = 0.0, obstacle: str = "") -> demand_pb2.LoadEstimate:
    return demand_pb2.LoadEstimate(name="digits", version=1, seconds=seconds, obstacle=obstacle)


LOADING, FAILED, READY = pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_FAILED, pb.REPLICA_STATE_READY
DRAINING = pb.REPLICA_STATE_DRAINING
FULL = errors.ResourceExhausted("the model's queue is full (8 requests wait)", retry_after=2.5)
SOON = 4.0
"""Seconds that a request has which is to wait in vain."""

OTHERS = TenantRecord(name="default", models=["letters", "digits-*"])
THESE = TenantRecord(name="default", models=["dig*"], rate=1e6, burst=9, concurrent=9)
SLOWLY = TenantRecord(name="default", models=["*"], rate=0.02, burst=1)

STATES = (
    State("unknown model", 404, "NOT_FOUND", "is not deployed", deployed=False),
    State("unknown version", 404, "NOT_FOUND", "version 7 of model 'digits' is not deployed", version="7"),
    State("no version at all", 400, "INVALID_ARGUMENT", "neither a positive integer nor an alias", version="new"),
    State("not placed", 503, "UNAVAILABLE", "is not placed on a worker yet", after=1),
    State("loading", 503, "UNAVAILABLE", "is loading (1 replica on the way)", replica=LOADING, after=1),
    State("unloading", 503, "UNAVAILABLE", "is being unloaded", replica=DRAINING, after=1),
    State("failed", 503, "UNAVAILABLE", "could not be loaded: bad file", replica=FAILED, reason="bad file", after=None),
    State("failed, tried again", 503, "UNAVAILABLE", "bad", replica=FAILED, reason="bad", retry=8, after=8),
    State("cold", 503, "UNAVAILABLE", "not ready before the deadline", on_demand=True, timeout=SOON),
    State(
        "cold, known when", 503, "UNAVAILABLE", "it should be ready in about", on_demand=True, timeout=SOON,
        estimate=told(seconds=30.0), after=30,
    ),
    State(
        "cold, no room", 503, "UNAVAILABLE", "no worker has room", on_demand=True, timeout=SOON,
        estimate=told(obstacle="no worker has room for it"),
    ),
    State(
        "cold, loading too long", 503, "UNAVAILABLE", "is loading (1 replica on the way)", on_demand=True, timeout=SOON,
        replica=LOADING,
    ),
    State(
        "cold, failed", 503, "UNAVAILABLE", "could not be loaded: bad file", on_demand=True, replica=FAILED,
        reason="bad file", retry=4, after=4,
    ),
    State("ready", 200, "OK", "", replica=READY),
    State("ready, on demand", 200, "OK", "", replica=READY, on_demand=True),
    State("queue full", 429, "RESOURCE_EXHAUSTED", "queue is full", replica=READY, worker=fails(FULL), after=3),
    State(
        "queue full, who knows for how long", 429, "RESOURCE_EXHAUSTED", "full", replica=READY,
        worker=fails(errors.ResourceExhausted("full")), after=1,
    ),
    State("not allowed", 403, "PERMISSION_DENIED", "may not call model 'digits'", replica=READY, tenant=OTHERS),
    State("not allowed, unknown", 403, "PERMISSION_DENIED", "call model 'digits'", deployed=False, tenant=OTHERS),
    State("not allowed, cold", 403, "PERMISSION_DENIED", "call model 'digits'", on_demand=True, tenant=OTHERS),
    State("allowed, unknown", 404, "NOT_FOUND", "is not deployed", deployed=False, tenant=THESE),
    State("allowed", 200, "OK", "", replica=READY, tenant=THESE),
    State(
        "over its rate", 429, "RESOURCE_EXHAUSTED", "may send 0.02 requests a second, 1 at once", replica=READY,
        tenant=SLOWLY, spent=True, after=50,
    ),
    State("late while served", 504, "DEADLINE_EXCEEDED", "eadline", replica=READY, worker=hang, timeout=0.3),
    State("late while served, on demand", 504, "DEADLINE_EXCEEDED", "eadline", replica=READY, worker=hang,
          timeout=0.3, on_demand=True),
    State(
        "replica leaves", 503, "UNAVAILABLE", "is no longer on this worker", replica=READY,
        worker=fails(errors.Unavailable("model 'digits' version 1 is no longer on this worker")),
    ),
)  # fmt: skip


async def reach(it: Running, one: EchoWorker, boss: SchedulerDouble, state: State) -> None:
    """Brings the gateway there."""
    boss.estimates = [state.estimate] if state.estimate is not None else []
    await it.put_scheduler(boss.record)
    one.before = state.worker
    if state.deployed:
        await it.put_deployment(1, default=1, on_demand=[1] if state.on_demand else [])
        await it.until(lambda: "digits" in it.routes.table.models)
    if state.replica is not None:
        record = ReplicaRecord()
        record.CopyFrom(one.replica(1, state.replica))
        record.reason, record.retry_seconds = state.reason, state.retry
        known = it.routes.table.models["digits"].versions[1]
        await it.put_replica(record)
        await it.until(lambda: it.routes.table.models["digits"].versions[1] != known)
    if state.tenant is not None:
        await it.put_tenant(state.tenant)


async def by_grpc(it: Running, state: State) -> tuple[str, str, float | None]:
    try:
        await it.infer(state.version, timeout=state.timeout)
    except errors.PenstockError as error:
        return error.code.name, error.message, error.retry_after
    return "OK", "", None


async def by_rest(url: str, state: State) -> httpx.Response:
    version = f"/versions/{state.version}" if state.version else ""
    tensor = {"name": "x", "shape": [4], "datatype": "UINT8", "data": [1, 2, 3, 4]}
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.post(
            f"{url}/v2/models/digits{version}/infer",
            json={"inputs": [tensor]},
            headers={"penstock-timeout-ms": str(int(state.timeout * 1000))},
        )


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_what_a_caller_is_told(clean_etcd: str, state: State) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss, it.rest() as url:
        await reach(it, one, boss, state)
        if state.spent:
            assert (await by_grpc(it, state))[0] == "OK" and (await by_rest(url, state)).status_code == 200
        (code, message, after), reply = await asyncio.gather(by_grpc(it, state), by_rest(url, state))
        assert (code, reply.status_code) == (state.code, state.status)
        assert state.words in message
        if state.status != 200:
            assert state.words in reply.json()["error"]
        if state.after is None:
            assert "retry-after" not in reply.headers
            assert after is None or state.status == 429
        else:
            # An estimate runs down while the request waits.
            assert state.after - 6 <= int(reply.headers["retry-after"]) <= state.after
            assert after is None or state.after - 6 <= math.ceil(after) <= state.after


async def test_the_room_is_full(clean_etcd: str) -> None:
    state = State("", 429, "RESOURCE_EXHAUSTED", "2 requests wait for version 1 of model 'digits'", on_demand=True)
    async with gateway(clean_etcd, waiting=2) as it, workers(1) as (one,), scheduler() as boss, it.rest() as url:
        await reach(it, one, boss, state)
        waits = [asyncio.create_task(it.infer()) for _ in range(2)]
        await boss.changed.until(lambda: any(told.waiting == 2 for told in boss.of("digits")))
        (code, message, after), reply = await asyncio.gather(by_grpc(it, state), by_rest(url, state))
        assert (code, after) == ("RESOURCE_EXHAUSTED", 1.0)
        assert state.words in message
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        await it.put_replica(one.replica())
        await asyncio.gather(*waits)


async def test_a_herd_waits_for_one_load_and_all_are_answered(clean_etcd: str) -> None:
    """By gRPC, as messages of a stream, and by REST; the scheduler hears of all of them as one."""
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss, it.rest() as url:
        state = State("", 200, "OK", "", on_demand=True)
        await reach(it, one, boss, state)
        unary = [asyncio.create_task(it.infer()) for _ in range(30)]
        rest = [asyncio.create_task(by_rest(url, state)) for _ in range(5)]
        stream = it.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )(timeout=20)
        for number in range(5):
            request = oip.ModelInferRequest(model_name="digits", id=str(number), raw_input_contents=[b"abcd"])
            request.inputs.add(name="x", datatype="UINT8", shape=[4])
            await stream.write(request)
        await boss.changed.until(lambda: any(told.waiting == 40 for told in boss.of("digits")))
        first = next(report for report in boss.reports if any(told.waiting for told in report.versions))
        assert first.source == "gateway-1"
        await it.put_replica(one.replica())
        assert all(response.raw_output_contents == [b"abcd"] for response, _ in await asyncio.gather(*unary))
        assert [reply.status_code for reply in await asyncio.gather(*rest)] == [200] * 5
        await stream.done_writing()
        answers = [answer async for answer in stream]
        assert [(answer.error_message, answer.infer_response.id) for answer in answers] == [
            ("", str(number)) for number in range(5)
        ]
        assert await stream.code() is grpc.StatusCode.OK
        await boss.changed.until(lambda: boss.of("digits")[-1].outstanding == 0)
        assert sum(told.requests for told in boss.of("digits")) == 40
        assert len(one.calls) == 40


async def test_who_leaves_the_waiting_room_is_told_of_no_more(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss:
        await reach(it, one, boss, State("", 200, "OK", "", on_demand=True))
        request = asyncio.create_task(it.infer())
        await boss.changed.until(lambda: any(told.waiting for told in boss.of("digits")))
        request.cancel()
        await boss.changed.until(lambda: not boss.of("digits")[-1].waiting)
        assert len(it.room) == 0


async def test_gray_replicas_are_reported(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(2) as (one, two), scheduler() as boss:
        await reach(it, one, boss, State("", 200, "OK", "", replica=READY))
        await it.put_replica(two.replica())
        await it.routed(replicas=2)
        while not {one.address, two.address} <= set(it.upstreams._known):
            await it.infer()
        it.upstreams._known[two.address].gray["digits", 1] = Gray("slow", asyncio.get_running_loop().time())
        await boss.changed.until(lambda: boss.reports and boss.reports[-1].gray)
        gray = boss.reports[-1].gray[0]
        assert (gray.worker, gray.name, gray.version, gray.reason) == ("w2", "digits", 1, "slow")


@pytest.mark.parametrize("leaves", ["gRPC", "REST"])
async def test_a_place_comes_back_when_a_caller_leaves(clean_etcd: str, leaves: str) -> None:
    """Both come as the same caller, who may have one request under way."""
    state = State("", 429, "RESOURCE_EXHAUSTED", "may have 1 request under way at a time", replica=READY, worker=hang)
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss, it.rest(caller="local") as url:
        await reach(it, one, boss, state)
        await it.put_tenant(TenantRecord(name="local", models=["*"], concurrent=1))
        for _ in range(2):
            one.reached.clear()
            one.cancelled.clear()
            asking = it.infer() if leaves == "gRPC" else by_rest(url, state)
            held: asyncio.Task[object] = asyncio.create_task(asking)
            await one.reached.wait()
            (code, message, after), reply = await asyncio.gather(by_grpc(it, state), by_rest(url, state))
            assert (code, after, state.words in message) == ("RESOURCE_EXHAUSTED", 1.0, True)
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
            assert state.words in reply.json()["error"]
            held.cancel()
            await one.cancelled.wait()
            assert it.tenants.under_way == 0
        one.before = None
        assert (await by_grpc(it, state))[0] == "OK" and (await by_rest(url, state)).status_code == 200


async def test_a_place_comes_back_at_the_deadline_and_when_a_connection_breaks(clean_etcd: str) -> None:
    state = State("", 504, "DEADLINE_EXCEEDED", "eadline", replica=READY, worker=hang, timeout=0.3)
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss, it.rest(caller="local") as url:
        await reach(it, one, boss, state)
        await it.put_tenant(TenantRecord(name="local", models=["*"], concurrent=1))
        assert (await by_grpc(it, state))[0] == "DEADLINE_EXCEEDED"
        assert (await by_rest(url, state)).status_code == 504
        assert it.tenants.under_way == 0
        one.reached.clear()
        held = asyncio.create_task(by_grpc(it, replace(state, timeout=20.0)))
        await one.reached.wait()
        await one.kill()
        assert (await held)[0] == "UNAVAILABLE"
        assert it.tenants.under_way == 0


async def test_each_message_of_a_stream_is_a_request(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it, workers(1) as (one,), scheduler() as boss:
        await reach(it, one, boss, State("", 200, "OK", "", replica=READY))
        await it.put_tenant(TenantRecord(name="local", models=["dig*"], rate=0.001, burst=2))
        stream = it.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )(timeout=20)
        for model in ("digits", "letters", "digits", "digits"):
            request = oip.ModelInferRequest(model_name=model, raw_input_contents=[b"abcd"])
            request.inputs.add(name="x", datatype="UINT8", shape=[4])
            await stream.write(request)
        await stream.done_writing()
        said = [answer.error_message async for answer in stream]
        assert said[0] == said[2] == "" and len(one.calls) == 2
        assert "may not call model 'letters'" in said[1] and "may send 0.001 requests a second" in said[3]


async def test_what_holds_stays_while_etcd_is_away_and_after_it_lost_everything(etcd: EtcdProcess) -> None:
    state = State("", 403, "PERMISSION_DENIED", "may not call", replica=READY, tenant=OTHERS)
    async with gateway(etcd.endpoint) as it, workers(1) as (one,), scheduler() as boss:
        await reach(it, one, boss, state)
        await asyncio.to_thread(etcd.kill)
        assert (await by_grpc(it, state))[0] == "PERMISSION_DENIED"
        await asyncio.to_thread(etcd.start)
        await asyncio.to_thread(etcd.wipe)
        it.tenants.heard.clear()
        await it.tenants.heard.wait()
        assert (await by_grpc(it, state))[0] == "PERMISSION_DENIED"
        # Deleting one that is there is another matter.
        await it.put_tenant(THESE)
        await it.store.delete(keys.tenant("default"))
        await it.tenants.until(lambda: not it.tenants.admission.guarded)


async def test_gateways_divide_what_a_tenant_may_do(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it:
        await it.put_tenant(TenantRecord(name="local", models=["*"], rate=10.0, burst=4, concurrent=5))
        for number in range(3):
            record = ServiceRecord(service="gateway", id=f"gateway-{number}")
            await it.store.put(keys.service("gateway", record.id), records.to_json(record))
        await it.tenants.until(lambda: gateways(it) == 3)
        terms = it.tenants.terms("local")
        assert terms is not None and terms.concurrent == 2
        await it.store.delete(keys.service("gateway", "gateway-1"))
        await it.tenants.until(lambda: gateways(it) == 2)


def gateways(it: Running) -> int:
    """Among how many `local` is divided."""
    terms = it.tenants.terms("local")
    return terms.gateways if terms is not None else 0
