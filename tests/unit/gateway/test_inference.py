"""A request's life over doubles: where it goes, what goes with it, when it is tried again, what the caller is told."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PenstockError,
    ResourceExhausted,
    TooLarge,
    Unavailable,
)
from penstock.internal.v1.records_pb2 import ReplicaRecord
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer
from penstock.wire.client import ConnectionLost
from tests.unit.gateway.doubles import Gateway, Sent, call, echo, failing, request
from tests.unit.gateway.records import LOADING, deployment, replica

LOST = ConnectionLost("the connection to 10.0.0.1:4711 was lost", detail="10.0.0.1:4711")


@pytest.fixture(params=["by a task", "straight"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roads of a request keep the same promises."""
    monkeypatch.setattr(Gateway, "straight", request.param == "straight")


def gateway(*replicas: ReplicaRecord, max_body_bytes: int = 1 << 20) -> Gateway:
    records = list(replicas) or [replica("w1"), replica("w2")]
    made = Gateway([deployment("digits", 1, 2, default=1, aliases={"best": 2})], records, max_body_bytes=max_body_bytes)
    made.workers.behaviours = {record.address: echo for record in records}
    return made


async def test_bytes_pass_unchanged_with_the_headers_of_the_next_hop() -> None:
    it = gateway(replica("w1"))
    made = request(**{"x-request-id": "r1", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-00"})
    made.headers = {**made.headers, "authorization": "Bearer secret", "penstock-version": "99", "cookie": "x"}
    answer = await it.infer(made)
    (sent,) = it.workers.sent
    assert answer.payload == sent.payload == made.payload
    assert answer.trailers == {"penstock-worker": "w1:1"}
    assert sent.method == "ModelInfer"
    assert sent.deadline == pytest.approx(made.deadline, abs=1.0)
    assert sent.headers == {
        "penstock-version": "1",
        "x-request-id": "r1",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-00",
    }


async def test_without_a_trace_the_next_hop_is_told_not_to_begin_one() -> None:
    it = gateway(replica("w1"))
    await it.infer(request())
    assert "traceparent" not in it.workers.sent[0].headers
    assert "penstock-version" in it.workers.sent[0].headers, "which says that the decision was made"


@pytest.mark.parametrize(("text", "version"), [("", "1"), ("2", "2"), ("best", "2")])
async def test_the_version_is_resolved_here(text: str, version: str) -> None:
    it = gateway(replica("w1"), replica("w1", version=2))
    await it.infer(request(version=text))
    assert it.workers.sent[0].headers["penstock-version"] == version


@pytest.mark.parametrize(
    "first", [LOST, Unavailable("the replica is draining"), ResourceExhausted("the queue is full")]
)
async def test_tried_once_more_elsewhere(first: Exception) -> None:
    it = gateway()
    it.workers.behaviours["w1:1"] = failing(first)
    answer = await it.infer(request())
    assert it.workers.addresses == ["w1:1", "w2:1"]
    assert answer.trailers == {"penstock-worker": "w2:1"}


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("shape"), NotFound("input x"), Internal("bug"), DeadlineExceeded("late"), TooLarge("big")],
)
async def test_not_tried_again(error: PenstockError) -> None:
    it = gateway()
    it.workers.behaviours["w1:1"] = failing(error)
    with pytest.raises(type(error)) as caught:
        await it.infer(request())
    assert caught.value is error
    assert it.workers.addresses == ["w1:1"]


async def test_once_and_not_twice() -> None:
    it = gateway(replica("w1"), replica("w2"), replica("w3"))
    it.workers.behaviours = dict.fromkeys(["w1:1", "w2:1", "w3:1"], failing(LOST))
    with pytest.raises(Unavailable):
        await it.infer(request())
    assert len(set(it.workers.addresses)) == len(it.workers.addresses) == 2


async def test_the_only_replica_that_breaks() -> None:
    it = gateway(replica("w1"))
    it.workers.behaviours["w1:1"] = failing(LOST)
    with pytest.raises(Unavailable, match="stopped answering") as caught:
        await it.infer(request())
    assert type(caught.value) is Unavailable
    assert caught.value.code.retryable and caught.value.retry_after == 1.0
    assert "4711" not in caught.value.message
    assert it.workers.addresses == ["w1:1"]


async def test_the_second_refusal_is_the_one_told() -> None:
    it = gateway()
    it.workers.behaviours = {"w1:1": failing(LOST), "w2:1": failing(ResourceExhausted("the queue is full"))}
    with pytest.raises(ResourceExhausted, match="queue is full"):
        await it.infer(request())


async def test_no_second_attempt_after_the_deadline() -> None:
    it = gateway()
    late = request()

    async def break_late(sent: Sent) -> Answer:
        late.deadline = asyncio.get_running_loop().time() - 1
        raise LOST

    it.workers.behaviours["w1:1"] = break_late
    with pytest.raises(DeadlineExceeded):
        await it.infer(late)
    assert it.workers.addresses == ["w1:1"]


async def test_nothing_is_sent_for_a_request_that_is_late() -> None:
    it = gateway()
    late = request()
    late.deadline = asyncio.get_running_loop().time() - 1
    with pytest.raises(DeadlineExceeded):
        await it.infer(late)
    assert it.workers.sent == []


async def test_an_ejected_worker_is_passed_over_until_its_pause_ends() -> None:
    it = gateway()
    it.workers.behaviours["w1:1"] = failing(LOST)
    await it.infer(request())
    it.workers.behaviours["w1:1"] = echo
    await it.infer(request())
    assert it.workers.addresses == ["w1:1", "w2:1", "w2:1"]
    it.now += 10
    await it.infer(request())
    assert it.workers.addresses[-1] == "w1:1"


async def test_the_table_may_change_between_the_attempts() -> None:
    """A version that moved to another worker while the first attempt was out is found there."""
    it = gateway(replica("w1"))

    async def move(sent: Sent) -> Answer:
        it.replicas.records = {"w9": replica("w9")}
        it.rebuild()
        raise LOST

    it.workers.behaviours = {"w1:1": move, "w9:1": echo}
    answer = await it.infer(request())
    assert answer.trailers == {"penstock-worker": "w9:1"}


async def test_a_cancelled_caller_cancels_the_worker() -> None:
    it, reached, cancelled = gateway(), asyncio.Event(), asyncio.Event()

    async def hang(sent: Sent) -> Answer:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    it.workers.behaviours["w1:1"] = hang
    task = asyncio.create_task(it.infer(request()))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
    assert it.upstreams.in_flight == 0
    assert it.workers.addresses == ["w1:1"]


async def test_what_never_reaches_a_worker() -> None:
    it = gateway(replica("w1", LOADING), max_body_bytes=100)
    for made, error in (
        (request("nobody"), NotFound),
        (request(version="9"), NotFound),
        (request(version="a/b"), InvalidArgument),
        (request(), Unavailable),
        (call("ModelInfer", b"\xff\xff\xff"), InvalidArgument),
        (call("ModelInfer", bytes(101)), TooLarge),
    ):
        with pytest.raises(error):
            await it.infer(made)
    assert it.workers.sent == []


async def ask(it: Gateway, method: str, payload: bytes = b"") -> bytes:
    return bytes((await it.inference.handlers()[method](call(method, payload))).payload)


async def test_server_methods() -> None:
    it = gateway()
    assert oip.ServerLiveResponse.FromString(await ask(it, "ServerLive")).live
    assert oip.ServerReadyResponse.FromString(await ask(it, "ServerReady")).ready
    it.routes.synced = False
    assert not oip.ServerReadyResponse.FromString(await ask(it, "ServerReady")).ready
    metadata = oip.ServerMetadataResponse.FromString(await ask(it, "ServerMetadata"))
    assert metadata.name == "penstock" and "model_repository" in metadata.extensions


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("digits", "", True), ("digits", "2", False), ("digits", "7", False), ("nobody", "", False)],
)
async def test_model_ready(name: str, version: str, ready: bool) -> None:
    payload = oip.ModelReadyRequest(name=name, version=version).SerializeToString()
    assert oip.ModelReadyResponse.FromString(await ask(gateway(), "ModelReady", payload)).ready is ready


async def test_metadata_lists_the_versions_that_are_ready_anywhere() -> None:
    it = gateway(replica("w1"), replica("w2", version=2))

    async def describe(sent: Sent) -> Answer:
        name = oip.ModelMetadataRequest.FromString(sent.payload).name
        described = oip.ModelMetadataResponse(name=name, versions=["1"], platform="onnx")
        return Answer(described.SerializeToString())

    it.workers.behaviours = {"w1:1": describe, "w2:1": describe}
    payload = oip.ModelMetadataRequest(name="digits").SerializeToString()
    response = oip.ModelMetadataResponse.FromString(await ask(it, "ModelMetadata", payload))
    assert (response.platform, list(response.versions)) == ("onnx", ["1", "2"])
    assert it.workers.sent[0].headers["penstock-version"] == "1"
