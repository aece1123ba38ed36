"""What stands behind the bridge in its tests: a model that echoes, models that fail, a catalogue that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.message import Message

from penstock import errors
from penstock.errors import NotFound, Unauthenticated
from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2, cluster_pb2, models_pb2, storage_pb2, tenants_pb2
from penstock.wire.call import BATCH_SIZE, QUEUE_MICROSECONDS, WORKER, Answer, Call, Done, Handler, Pending

M = TypeVar("M", bound=Message)

TOKEN: Mapping[str, str] = MappingProxyType({"authorization": "Bearer good"})
"""Cannot change: tritonclient writes into the headers that it is given."""


def authenticate(headers: Mapping[str, str]) -> str:
    if headers.get("authorization") != "Bearer good":
        raise Unauthenticated("this needs a token")
    return "tester"


class EchoInference:
    """`echo` answers with its inputs; `fail.<code>` raises that error, `crash` something else; `slow` waits for
    `release`. Every call is kept in `calls`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelReady": self.model_ready,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "ModelInfer": self.infer,
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }

    def direct(self, call: Call, done: Done) -> Pending | None:
        """Nothing goes without a task here."""
        return None

    async def infer(self, call: Call) -> Answer:
        self.calls.append(call)
        request = oip.ModelInferRequest.FromString(call.payload)
        await self._behave(request.model_name)
        response = oip.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version or "1", id=request.id
        )
        wanted = {output.name for output in request.outputs}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if not wanted or tensor.name in wanted:
                response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                response.raw_output_contents.append(raw)
        trailers = {WORKER: "w1", BATCH_SIZE: "3", QUEUE_MICROSECONDS: "17", "secret": "no", "x": "a\nb"}
        return Answer(response.SerializeToString(), trailers)

    async def _behave(self, model: str) -> None:
        if model.startswith("fail."):
            name = model.removeprefix("fail.").upper().replace("-", "_")
            raise errors.BY_NAME[name]("what is wrong", detail="/secret/path")
        if model == "crash":
            raise RuntimeError("/secret/path")
        if model == "slow":
            self.started.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def server_metadata(self, call: Call) -> Answer:
        return _answer(oip.ServerMetadataResponse(name="penstock", version="1", extensions=["binary_tensor_data"]))

    async def model_metadata(self, call: Call) -> Answer:
        request = oip.ModelMetadataRequest.FromString(call.payload)
        _known(request.name)
        response = oip.ModelMetadataResponse(name=request.name, versions=["1"], platform="echo")
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return _answer(response)

    async def model_ready(self, call: Call) -> Answer:
        return _answer(oip.ModelReadyResponse(ready=oip.ModelReadyRequest.FromString(call.payload).name == "echo"))

    async def model_config(self, call: Call) -> Answer:
        request = oip.ModelConfigRequest.FromString(call.payload)
        _known(request.name)
        config = oip.ModelConfig(name=request.name, platform="echo", max_batch_size=8)
        config.input.add(name="x", data_type=oip.TYPE_FP32, dims=[-1])
        return _answer(oip.ModelConfigResponse(config=config))

    async def model_statistics(self, call: Call) -> Answer:
        request = oip.ModelStatisticsRequest.FromString(call.payload)
        response = oip.ModelStatisticsResponse()
        stats = response.model_stats.add(name=request.name or "every", version=request.version, inference_count=2**60)
        stats.inference_stats.success.count = 2
        return _answer(response)

    async def index(self, call: Call) -> Answer:
        request = oip.RepositoryIndexRequest.FromString(call.payload)
        response = oip.RepositoryIndexResponse()
        response.models.add(name="echo", version="1", state="READY")
        if not request.ready:
            response.models.add(name="never")
        return _answer(response)

    async def load(self, call: Call) -> Answer:
        self.calls.append(call)
        _known(oip.RepositoryModelLoadRequest.FromString(call.payload).model_name)
        return _answer(oip.RepositoryModelLoadResponse())

    async def unload(self, call: Call) -> Answer:
        self.calls.append(call)
        _known(oip.RepositoryModelUnloadRequest.FromString(call.payload).model_name)
        return _answer(oip.RepositoryModelUnloadResponse())


class FakeControl:
    """Records what is asked and answers with `answers[method]`; uploads are kept whole."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Message, dict[str, str]]] = []
        self.answers: dict[str, Message | errors.PenstockError] = {}
        self.uploads: list[tuple[models_pb2.UploadHeader, bytes]] = []
        self.refuse_uploads: errors.PenstockError | None = None
        self.coming: asyncio.Queue[Message | errors.PenstockError | None] = asyncio.Queue()
        self.watched, self.left = asyncio.Event(), asyncio.Event()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[M],
        *,
        timeout: float,
        headers: Mapping[str, str],
    ) -> M:
        assert 0 < timeout <= 60
        modules: dict[str, Any] = {
            "ClusterService": cluster_pb2,
            "BuildService": builds_pb2,
            "StorageService": storage_pb2,
            "TenantService": tenants_pb2,
        }
        module = modules.get(service.rpartition(".")[2], models_pb2)
        described = module.DESCRIPTOR.services_by_name[service.removeprefix("penstock.v1.")].methods_by_name[method]
        assert described.input_type is type(request).DESCRIPTOR
        assert described.output_type is response_class.DESCRIPTOR
        self.asked.append((service, method, request, dict(headers)))
        answer = self.answers.get(method, response_class())
        if isinstance(answer, errors.PenstockError):
            raise answer
        assert isinstance(answer, response_class)
        return answer

    async def watch(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[M],
        *,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> AsyncGenerator[M, None]:
        """Gives what is put into `coming`, until that is None, and raises what is an error."""
        self.asked.append((service, method, request, dict(headers)))
        try:
            while True:
                self.watched.set()
                answer = await self.coming.get()
                if answer is None:
                    return
                if isinstance(answer, errors.PenstockError):
                    raise answer
                assert isinstance(answer, response_class)
                yield answer
        finally:
            self.left.set()

    async def upload(
        self,
        header: models_pb2.UploadHeader,
        data: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> models_pb2.UploadArtifactResponse:
        if self.refuse_uploads is not None:
            raise self.refuse_uploads
        pieces = [piece async for piece in data]
        self.uploads.append((header, b"".join(pieces)))
        artifact = models_pb2.Artifact(digest=header.digest, size_bytes=header.size_bytes)
        return models_pb2.UploadArtifactResponse(artifact=artifact)


def _known(model: str) -> None:
    if model != "echo":
        raise NotFound(f"there is no model {model!r}")


def _answer(message: Message) -> Answer:
    return Answer(message.SerializeToString())
