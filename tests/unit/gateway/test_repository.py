"""Index, load and unload over a registry that writes down what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from google.protobuf.message import Message

from penstock.errors import DeadlineExceeded, InvalidArgument, NotFound, PenstockError, Unavailable, Unsupported
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord
from penstock.oip import inference_pb2 as oip
from penstock.v1 import models_pb2 as pb
from tests.unit.gateway.doubles import Gateway, call
from tests.unit.gateway.records import DRAINING, FAILED, LOADING, deployment, keyed, replica


class FakeRegistry:
    """Answers by method name; `asked` keeps the requests."""

    def __init__(self, **answers: Callable[[Any], Message]) -> None:
        self.answers = answers
        self.asked: list[Message] = []
        self.reached = asyncio.Event()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[Any],
        *,
        timeout: float,
        headers: Mapping[str, str],
    ) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        self.asked.append(copy)
        self.reached.set()
        answer = self.answers[method](request)
        assert isinstance(answer, response_class)
        return answer


def away(_: Message) -> Message:
    raise Unavailable("the registry cannot be reached; serving goes on")


def gateway(
    deployments: list[DeploymentRecord], replicas: list[ReplicaRecord], **answers: Callable[[Any], Message]
) -> tuple[Gateway, FakeRegistry]:
    registry = FakeRegistry(**answers)
    return Gateway(deployments, replicas, registry), registry


async def ask(it: Gateway, method: str, request: Message, timeout: float = 30.0) -> bytes:
    made = call(method, request.SerializeToString(), timeout)
    return bytes((await it.inference.handlers()[method](made)).payload)


async def index(it: Gateway, ready: bool = False) -> list[tuple[str, str, str, str]]:
    payload = await ask(it, "RepositoryIndex", oip.RepositoryIndexRequest(ready=ready))
    models = oip.RepositoryIndexResponse.FromString(payload).models
    return [(row.name, row.version, row.state, row.reason) for row in models]


def two_pages(request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    if request.page_token:
        return pb.ListModelsResponse(models=[pb.Model(name="zebra", latest_version=4)])
    models = [pb.Model(name="digits", latest_version=3), pb.Model(name="alpha", latest_version=1)]
    return pb.ListModelsResponse(models=models, next_page_token="more")


DEPLOYED = [deployment("digits", 1, 2), deployment("minilm", 1)]
PRESENT = [replica("w1"), replica("w1", FAILED, version=2, reason="no memory"), replica("w1", DRAINING, name="minilm")]
ROWS = [
    ("digits", "1", "READY", ""),
    ("digits", "2", "UNAVAILABLE", "could not be loaded: no memory"),
    ("minilm", "1", "UNLOADING", "is being unloaded where it ran"),
]


async def test_index_merges_what_is_published() -> None:
    it, _ = gateway(DEPLOYED, PRESENT, ListModels=two_pages)
    assert await index(it) == [
        ("alpha", "1", "UNAVAILABLE", "is not deployed"),
        *ROWS[:2],
        ("digits", "3", "UNAVAILABLE", "is not deployed"),
        ROWS[2],
        ("zebra", "4", "UNAVAILABLE", "is not deployed"),
    ]


async def test_index_without_a_registry_tells_what_the_routes_know() -> None:
    it, _ = gateway(DEPLOYED, PRESENT, ListModels=away)
    assert await index(it) == ROWS


async def test_index_of_ready_models_needs_no_registry() -> None:
    it, registry = gateway(DEPLOYED, PRESENT)
    assert await index(it, ready=True) == ROWS[:1]
    assert registry.asked == []


def load_request(name: str = "digits", repository: str = "", /, **parameters: Any) -> oip.RepositoryModelLoadRequest:
    request = oip.RepositoryModelLoadRequest(model_name=name, repository_name=repository)
    for key, value in parameters.items():
        field = {int: "int64_param", str: "string_param", bytes: "bytes_param"}[type(value)]
        setattr(request.parameters[key], field, value)
    return request


def deployed(version: int) -> Callable[[Any], Message]:
    return lambda request: pb.DeployResponse(deployment=pb.Deployment(name=request.name, default_version=version))


async def test_load_waits_until_the_version_is_ready() -> None:
    it, registry = gateway([], [], Deploy=deployed(3))
    loading = asyncio.create_task(ask(it, "RepositoryModelLoad", load_request()))
    await registry.reached.wait()
    it.deployments.records = {"digits": deployment("digits", 3)}
    it.rebuild()
    it.replicas.records = keyed(replica("w1", LOADING, version=3))
    it.rebuild()
    await asyncio.sleep(0)
    assert not loading.done()
    it.replicas.records = keyed(replica("w1", version=3))
    it.rebuild()
    await asyncio.wait_for(loading, 30)
    assert registry.asked == [pb.DeployRequest(name="digits", keep_options=True)]


async def test_load_of_what_is_ready_ends_at_once_and_keeps_what_was_said_of_it() -> None:
    it, registry = gateway([deployment("digits", 1)], [replica("w1")], Deploy=deployed(1))
    await ask(it, "RepositoryModelLoad", load_request())
    assert registry.asked == [pb.DeployRequest(name="digits", keep_options=True)]


async def test_load_of_what_is_loaded_on_demand_ends_at_once() -> None:
    it, _ = gateway([deployment("digits", 1, on_demand=[1])], [], Deploy=deployed(1))
    await ask(it, "RepositoryModelLoad", load_request())


@pytest.mark.parametrize(("value", "text"), [(7, "7"), ("7", "7"), ("best", "best")])
async def test_load_of_a_named_version(value: int | str, text: str) -> None:
    it, registry = gateway([deployment("digits", 7)], [replica("w1", version=7)], Deploy=deployed(7))
    await ask(it, "RepositoryModelLoad", load_request(version=value))
    assert registry.asked == [pb.DeployRequest(name="digits", version=text, keep_options=True)]


async def test_load_in_the_dialect_of_kserve() -> None:
    it, registry = gateway([deployment("digits", 1)], [replica("w1")], Deploy=deployed(1))
    await ask(it, "RepositoryModelLoad", load_request("", "digits"))
    assert registry.asked == [pb.DeployRequest(name="digits", keep_options=True)]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (load_request(config="{}"), Unsupported),
        (load_request("digits", "", **{"file:1/model.onnx": b"x"}), Unsupported),
        (load_request(other="x"), Unsupported),
        (load_request(version=b"1"), InvalidArgument),
        (load_request("", ""), InvalidArgument),
        (load_request("digits", "elsewhere"), Unsupported),
    ],
)
async def test_load_refused_before_anything_is_asked(
    request_: oip.RepositoryModelLoadRequest, error: type[PenstockError]
) -> None:
    it, registry = gateway([], [])
    with pytest.raises(error):
        await ask(it, "RepositoryModelLoad", request_)
    assert registry.asked == []


async def test_load_that_fails_says_why() -> None:
    it, _ = gateway([deployment("digits", 1)], [replica("w1", FAILED, reason="bad graph")], Deploy=deployed(1))
    with pytest.raises(Unavailable, match="could not be loaded: bad graph"):
        await ask(it, "RepositoryModelLoad", load_request())


async def test_load_that_takes_too_long_says_how_far_it_is() -> None:
    it, _ = gateway([deployment("digits", 1)], [replica("w1", LOADING)], Deploy=deployed(1))
    with pytest.raises(DeadlineExceeded, match=r"version 1 of model 'digits' is loading .*goes on loading"):
        await ask(it, "RepositoryModelLoad", load_request(), timeout=0.5)


async def test_errors_of_the_registry_pass() -> None:
    def unknown(_: Message) -> Message:
        raise NotFound("no model 'digits'")

    it, _ = gateway([], [], Deploy=unknown, Undeploy=away)
    with pytest.raises(NotFound, match="no model 'digits'"):
        await ask(it, "RepositoryModelLoad", load_request())
    with pytest.raises(Unavailable, match="serving goes on"):
        await ask(it, "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="digits"))


async def test_unload_waits_until_no_worker_has_it() -> None:
    it, registry = gateway([deployment("digits", 1)], [replica("w1")], Undeploy=lambda _: pb.UndeployResponse())
    request = oip.RepositoryModelUnloadRequest(model_name="digits")
    request.parameters["unload_dependents"].bool_param = False
    unloading = asyncio.create_task(ask(it, "RepositoryModelUnload", request))
    await registry.reached.wait()
    await asyncio.sleep(0)
    assert not unloading.done()
    it.deployments.records = {}
    it.rebuild()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not unloading.done(), "a worker still has it: loading it again now would find the old replica"
    it.replicas.records = keyed(replica("w1", DRAINING))
    it.rebuild()
    it.replicas.records = {}
    it.rebuild()
    await asyncio.wait_for(unloading, 30)
    assert registry.asked == [pb.UndeployRequest(name="digits")]


async def test_unload_of_what_is_not_there() -> None:
    it, _ = gateway([], [], Undeploy=lambda _: pb.UndeployResponse())
    await ask(it, "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="digits"))


async def test_bytes_that_are_no_message() -> None:
    it, _ = gateway([], [])
    for method in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
        with pytest.raises(InvalidArgument):
            await it.inference.handlers()[method](call(method, b"\xff\xff"))
