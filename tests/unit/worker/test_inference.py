"""The protocol's methods over a directory of replicas."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from penstock.errors import InvalidArgument, NotFound, PenstockError, Unavailable, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb
from penstock.wire.call import VERSION, Answer, Call
from services.worker.codec import Schema
from services.worker.inference import Inference
from services.worker.metrics import ReplicaMetrics
from services.worker.serving import Serving, Standing
from services.worker.statistics import Statistics
from tests.unit.worker.doubles import EchoEngine, batcher

READY = cluster_pb2.REPLICA_STATE_READY
MANIFEST = pb.Manifest(
    name="m",
    format="onnx",
    inputs=[pb.TensorSpec(name="x", datatype="UINT8", shape=[2])],
    outputs=[pb.TensorSpec(name="y", datatype="UINT8", shape=[2])],
    batching=pb.Batching(max_batch_size=4),
)


class Shelf:
    """Replicas that a test puts there."""

    def __init__(self) -> None:
        self.standings: dict[tuple[str, int], Standing] = {}
        self.serving: list[asyncio.Future[None]] = []

    def put(self, name: str, version: int, state: cluster_pb2.ReplicaState.ValueType = READY, reason: str = "") -> None:
        serving = None
        if state in (READY, cluster_pb2.REPLICA_STATE_DRAINING):
            statistics, metrics = Statistics(), ReplicaMetrics(name, version)
            queue = batcher(EchoEngine(), statistics=statistics)
            self.serving.append(asyncio.ensure_future(queue.run()))
            schema = Schema(name, version, MANIFEST)
            serving = Serving(name, version, MANIFEST, schema, queue, statistics, metrics, lambda: 77)
        self.standings[(name, version)] = Standing(name, version, state, reason, serving)

    def find(self, name: str, version: int) -> Standing | None:
        return self.standings.get((name, version))

    def versions(self, name: str) -> Sequence[Standing]:
        return [standing for standing in self.everything() if standing.name == name]

    def everything(self) -> Sequence[Standing]:
        return [self.standings[key] for key in sorted(self.standings)]


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    made = Shelf()
    yield made
    for task in made.serving:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture(params=["by a task", "direct", "direct, its head known"], autouse=True)
def road(request: pytest.FixtureRequest) -> str:
    """ModelInfer keeps its promises on every road."""
    _road[0] = request.param
    return str(request.param)


_road = [""]


async def ask(shelf: Shelf, method: str, message: Any, version: str = "") -> Answer:
    inference = Inference("worker-1", shelf, lambda: None)
    deadline = asyncio.get_running_loop().time() + 10
    headers = {VERSION: version} if version else {}
    call = Call(method, message.SerializeToString(), deadline, headers)
    if method != "ModelInfer" or _road[0] == "by a task":
        return await inference.handlers[method](call)
    if _road[0] == "direct, its head known":
        with suppress(PenstockError):
            await directly(inference, call)
    return await directly(inference, call)


async def directly(inference: Inference, call: Call) -> Answer:
    """What `direct` answers."""
    end: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def done(answer: Answer | None, problem: BaseException | None) -> None:
        assert not end.done(), "a call ends once"
        if answer is not None:
            end.set_result(answer)
        else:
            assert problem is not None
            end.set_exception(problem)

    assert inference.direct(call, done) is not None
    return await end


def infer(name: str = "m", version: str = "", data: bytes = b"ab") -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[1, 2])
    return oip.ModelInferRequest(
        model_name=name, model_version=version, id="7", inputs=[tensor], raw_input_contents=[data]
    )


async def served_version(shelf: Shelf, message: oip.ModelInferRequest, header: str = "") -> str:
    answer = await ask(shelf, "ModelInfer", message, header)
    return oip.ModelInferResponse.FromString(answer.payload).model_version


async def refused(shelf: Shelf, kind: type[PenstockError], message: oip.ModelInferRequest, version: str = "") -> str:
    with pytest.raises(kind) as caught:
        await ask(shelf, "ModelInfer", message, version)
    assert type(caught.value) is kind
    return caught.value.message


async def test_a_request_gets_its_answer_and_the_trailers(shelf: Shelf) -> None:
    shelf.put("m", 3)
    answer = await ask(shelf, "ModelInfer", infer())
    response = oip.ModelInferResponse.FromString(answer.payload)
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "7")
    assert list(response.raw_output_contents) == [b"ab"]
    assert answer.trailers["penstock-worker"] == "worker-1"
    assert answer.trailers["penstock-batch-size"] == "1"
    assert answer.trailers["penstock-queue-depth"] == "0"
    assert int(answer.trailers["penstock-queue-us"]) >= 0


async def test_the_header_goes_before_the_message_and_that_before_the_highest_ready(shelf: Shelf) -> None:
    for version in (1, 2, 10):
        shelf.put("m", version)
    shelf.put("m", 11, cluster_pb2.REPLICA_STATE_LOADING)
    assert await served_version(shelf, infer()) == "10"
    assert await served_version(shelf, infer(version="2")) == "2"
    assert await served_version(shelf, infer(version="2"), "1") == "1"
    # The gateway has resolved an alias; the message still names it.
    assert await served_version(shelf, infer(version="production"), "1") == "1"


async def test_a_draining_replica_still_takes_stragglers(shelf: Shelf) -> None:
    shelf.put("m", 1, cluster_pb2.REPLICA_STATE_DRAINING)
    assert await served_version(shelf, infer(), "1") == "1"


async def test_what_is_not_here_is_not_found_unless_a_gateway_believed_otherwise(shelf: Shelf) -> None:
    shelf.put("m", 1)
    assert "'other' is not on this worker" in await refused(shelf, NotFound, infer("other"))
    assert "version 2 is not on this worker" in await refused(shelf, NotFound, infer(version="2"))
    assert "no longer on this worker" in await refused(shelf, Unavailable, infer(), "2")
    await refused(shelf, NotFound, infer("../../etc/passwd"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (cluster_pb2.REPLICA_STATE_ASSIGNED, "is about to be loaded"),
        (cluster_pb2.REPLICA_STATE_PULLING, "is being pulled"),
        (cluster_pb2.REPLICA_STATE_LOADING, "is being loaded: waits"),
        (cluster_pb2.REPLICA_STATE_FAILED, "could not be loaded: waits"),
    ],
)
async def test_what_does_not_serve_yet_says_the_truth(
    shelf: Shelf, state: cluster_pb2.ReplicaState.ValueType, words: str
) -> None:
    shelf.put("m", 1, state, "waits" if words.endswith("waits") else "")
    assert await refused(shelf, Unavailable, infer()) == f"model 'm' version 1 {words}"


@pytest.mark.parametrize("version", ["-1", "0", "1.5", "x" * 64, " 1"])
async def test_a_version_that_is_none_is_refused(shelf: Shelf, version: str) -> None:
    shelf.put("m", 1)
    await refused(shelf, InvalidArgument, infer(version=version))


async def test_an_alias_is_the_gateways_business(shelf: Shelf) -> None:
    shelf.put("m", 1)
    assert "gateway" in await refused(shelf, InvalidArgument, infer(version="production"))


async def test_bytes_that_are_no_message_are_refused_by_every_method_that_reads_one(shelf: Shelf) -> None:
    inference = Inference("w", shelf, lambda: None)
    for method in ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"):
        with pytest.raises(InvalidArgument):
            await inference.handlers[method](Call(method, b"\xff\xff", 1e9))


async def test_liveness_and_readiness(shelf: Shelf) -> None:
    alive = await ask(shelf, "ServerLive", oip.ServerLiveRequest())
    assert oip.ServerLiveResponse.FromString(alive.payload).live
    reasons = iter([None, "draining"])
    inference = Inference("w", shelf, lambda: next(reasons))
    for expected in (True, False):
        answer = await inference.handlers["ServerReady"](Call("ServerReady", b"", 1e9))
        assert oip.ServerReadyResponse.FromString(answer.payload).ready is expected


async def test_model_ready_is_true_for_ready_replicas_alone(shelf: Shelf) -> None:
    shelf.put("m", 1)
    shelf.put("m", 2, cluster_pb2.REPLICA_STATE_LOADING)

    async def ready(name: str, version: str, header: str = "") -> bool:
        answer = await ask(shelf, "ModelReady", oip.ModelReadyRequest(name=name, version=version), header)
        return oip.ModelReadyResponse.FromString(answer.payload).ready

    assert await ready("m", "")
    assert await ready("m", "1")
    assert not await ready("m", "2")
    assert not await ready("m", "3")
    assert not await ready("m", "", "3")
    assert not await ready("other", "")


async def test_metadata_and_configuration_are_of_the_chosen_version(shelf: Shelf) -> None:
    shelf.put("m", 1)
    shelf.put("m", 4)
    answer = await ask(shelf, "ModelMetadata", oip.ModelMetadataRequest(name="m"))
    metadata = oip.ModelMetadataResponse.FromString(answer.payload)
    assert (metadata.name, list(metadata.versions)) == ("m", ["1", "4"])
    assert list(metadata.inputs[0].shape) == [-1, 2]
    answer = await ask(shelf, "ModelConfig", oip.ModelConfigRequest(name="m", version="1"))
    assert oip.ModelConfigResponse.FromString(answer.payload).config.max_batch_size == 4


async def test_statistics_of_one_version_of_a_model_and_of_everything(shelf: Shelf, road: str) -> None:
    for name, version in (("a", 1), ("m", 1), ("m", 2)):
        shelf.put(name, version)
    await ask(shelf, "ModelInfer", infer(version="2"))

    async def statistics(name: str = "", version: str = "") -> list[tuple[str, str, int]]:
        answer = await ask(shelf, "ModelStatistics", oip.ModelStatisticsRequest(name=name, version=version))
        stats = oip.ModelStatisticsResponse.FromString(answer.payload).model_stats
        assert all(each.memory_usage[0].byte_size == 77 for each in stats)
        return [(each.name, each.version, each.inference_count) for each in stats]

    served = 2 if road == "direct, its head known" else 1
    assert await statistics() == [("a", "1", 0), ("m", "1", 0), ("m", "2", served)]
    assert await statistics("m") == [("m", "1", 0), ("m", "2", served)]
    assert await statistics("m", "1") == [("m", "1", 0)]
    with pytest.raises(NotFound):
        await statistics("other")


async def test_the_index_lists_own_replicas(shelf: Shelf) -> None:
    shelf.put("a", 1)
    shelf.put("b", 2, cluster_pb2.REPLICA_STATE_FAILED, "no engine")

    async def index(ready: bool) -> list[tuple[str, str, str, str]]:
        answer = await ask(shelf, "RepositoryIndex", oip.RepositoryIndexRequest(ready=ready))
        models = oip.RepositoryIndexResponse.FromString(answer.payload).models
        return [(each.name, each.version, each.state, each.reason) for each in models]

    assert await index(False) == [("a", "1", "READY", ""), ("b", "2", "UNAVAILABLE", "no engine")]
    assert await index(True) == [("a", "1", "READY", "")]


async def test_loading_and_unloading_are_the_gateways_business(shelf: Shelf) -> None:
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        with pytest.raises(Unsupported, match="ask the gateway"):
            await ask(shelf, method, oip.RepositoryModelLoadRequest(model_name="m"))


async def test_what_a_known_head_does_not_excuse(shelf: Shelf) -> None:
    """The contents are checked each time, and a head is known for one load of one version only."""
    shelf.put("m", 1)
    inference = Inference("worker-1", shelf, lambda: None)

    async def given(*contents: bytes) -> list[bytes]:
        message = infer()
        message.raw_input_contents[:] = contents
        deadline = asyncio.get_running_loop().time() + 10
        answer = await directly(inference, Call("ModelInfer", message.SerializeToString(), deadline, {VERSION: "1"}))
        return list(oip.ModelInferResponse.FromString(answer.payload).raw_output_contents)

    assert await given(b"ab") == [b"ab"]
    assert await given(b"cd") == [b"cd"]
    for contents, problem in (((b"abc",), "3 bytes"), ((), "unable to find data"), ((b"ab", b"cd"), "2 buffers")):
        with pytest.raises(InvalidArgument, match=problem):
            await given(*contents)
    shelf.put("m", 1, cluster_pb2.REPLICA_STATE_FAILED, "it broke")
    with pytest.raises(Unavailable, match="it broke"):
        await given(b"ab")
    shelf.put("m", 1)
    assert await given(b"ef") == [b"ef"]
    shelf.standings.clear()
    with pytest.raises(Unavailable, match="no longer on this worker"):
        await given(b"ab")


async def test_a_request_that_is_over_keeps_nothing_of_its_payload(shelf: Shelf) -> None:
    """Large payloads are views of buffers, which are used again when nobody looks at them: without the collector."""
    shelf.put("m", 1)
    inference = Inference("worker-1", shelf, lambda: None)
    gc.disable()
    try:
        for _ in range(2):
            buffer = bytearray(infer().SerializeToString())
            deadline = asyncio.get_running_loop().time() + 10
            payload: Any = memoryview(buffer).toreadonly()
            await directly(inference, Call("ModelInfer", payload, deadline, {VERSION: "1"}))
            del payload
            await asyncio.sleep(0)
            buffer.clear()  # BufferError while there is a view of it
    finally:
        gc.enable()
