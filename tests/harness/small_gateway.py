"""A gateway in one process for tests of the SDK and the command: real gRPC, a store in memory, faults on demand.

Inference echoes: every input comes back as an output of the same name. Uploads are really hashed. What is deployed is
ready at once, unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import yaml

from penstock import errors
from penstock.channel import OPTIONS, error_trailer, status_of
from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2_grpc, cluster_pb2_grpc, models_pb2_grpc, storage_pb2_grpc, tenants_pb2_grpc
from penstock.v1 import cluster_pb2 as cluster
from penstock.v1 import models_pb2 as pb
from penstock.wire import Answer, Call
from tests.harness.grpcio_service import service_handler
from tests.harness.small_builds import Builds, Storage, Tenants

SPECS = {"x": ("FP32", [-1, 3]), "text": ("BYTES", [-1, 1]), "n": ("INT64", [-1, 2]), "whole": ("INT32", [4])}


async def fail(context: Any, error: errors.PenstockError) -> None:
    """Ends a call as a service does."""
    await context.abort(status_of(error), error.message, trailing_metadata=(error_trailer(error, "r-1"),))


class Inference:
    """The protocol's side. failures: raised by the next calls of ModelInfer, one each."""

    def __init__(self) -> None:
        self.failures: list[errors.PenstockError] = []
        self.calls: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.requests: list[oip.ModelInferRequest] = []
        self.hold: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.typed_answers = False
        self.statistics = oip.ModelStatisticsResponse(model_stats=[oip.ModelStatistics(name="echo", inference_count=3)])

    def handler(self) -> grpc.GenericRpcHandler:
        """The gRPC service."""
        names = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig")
        unary = {name: self._simple for name in (*names, "ModelStatistics")}
        return service_handler({**unary, "ModelInfer": self._infer}, stream_infer=self._infer, default_timeout=30)

    async def _infer(self, call: Call) -> Answer:
        self.calls["ModelInfer"] += 1
        self.headers.append(dict(call.headers))
        request = oip.ModelInferRequest.FromString(call.payload)
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        if self.hold is not None:
            self.arrived.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.model_name == "missing":
            raise errors.NotFound("no model is called 'missing'", field="model_name")
        response = oip.ModelInferResponse(model_name=request.model_name, model_version="7", id=request.id)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if self.typed_answers:
                output.contents.fp32_contents.extend([1.5] * 3)
            else:
                response.raw_output_contents.append(raw)
        trailers = {"penstock-worker": "w-1", "penstock-batch-size": "4", "penstock-queue-us": "120"}
        return Answer(response.SerializeToString(), trailers)

    async def _simple(self, call: Call) -> Answer:
        self.calls[call.method] += 1
        message: Any
        if call.method == "ServerLive":
            message = oip.ServerLiveResponse(live=True)
        elif call.method == "ServerReady":
            message = oip.ServerReadyResponse(ready=True)
        elif call.method == "ServerMetadata":
            message = oip.ServerMetadataResponse(name="small", version="0", extensions=["binary_tensor_data"])
        elif call.method == "ModelReady":
            name = oip.ModelReadyRequest.FromString(call.payload).name
            message = oip.ModelReadyResponse(ready=name != "missing")
        elif call.method == "ModelMetadata":
            message = oip.ModelMetadataResponse(name="echo", versions=["7"], platform="echo")
            for name, (datatype, shape) in SPECS.items():
                message.inputs.add(name=name, datatype=datatype, shape=shape)
        elif call.method == "ModelConfig":
            message = oip.ModelConfigResponse(config=oip.ModelConfig(name="echo", max_batch_size=8))
        else:
            message = self.statistics
        return Answer(message.SerializeToString())


class Catalogue(
    models_pb2_grpc.ModelServiceServicer,
    models_pb2_grpc.ArtifactServiceServicer,
    models_pb2_grpc.DeploymentServiceServicer,
    cluster_pb2_grpc.ClusterServiceServicer,
):
    """Registry and scheduler. breaks: bytes after which the next uploads break, one each; refusals: uploads refused;
    stays: what cannot leave a drained w-1."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytearray] = {}
        self.complete: set[str] = set()
        self.published: dict[tuple[str, int], pb.ModelVersion] = {}
        self.by_key: dict[str, pb.ModelVersion] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.deployed: dict[str, pb.Deployment] = {}
        self.breaks: list[int] = []
        self.refusals = 0
        self.offsets: list[int] = []
        self.get_artifact_unknown: errors.PenstockError | None = None
        self.pages = 0
        self.ready = True
        self.replica_state = cluster.REPLICA_STATE_LOADING
        self.reason = ""
        self.drained = False
        self.stays = ""
        self.watches = 0
        self.break_watches = 0
        self._changes = 0
        self._changed = asyncio.Condition()

    async def change(self) -> None:
        """Tells the watchers."""
        async with self._changed:
            self._changes += 1
            self._changed.notify_all()

    # ArtifactService

    async def GetArtifact(self, request: Any, context: Any) -> pb.GetArtifactResponse:
        if request.digest not in self.blobs and self.get_artifact_unknown is not None:
            await fail(context, self.get_artifact_unknown)
        return pb.GetArtifactResponse(
            complete=request.digest in self.complete, received_bytes=len(self.blobs.get(request.digest, b""))
        )

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        header = (await anext(request_iterator)).header
        self.offsets.append(header.offset)
        if self.refusals:
            self.refusals -= 1
            await fail(context, errors.Unavailable("the registry is busy"))
        if header.digest in self.complete:
            return pb.UploadArtifactResponse(artifact=pb.Artifact(digest=header.digest), existed=True)
        blob = self.blobs.setdefault(header.digest, bytearray())
        if header.offset != len(blob):
            await fail(context, errors.Conflict("offset is not where the upload ended"))
        limit = self.breaks.pop(0) if self.breaks else None
        async for message in request_iterator:
            blob += message.data
            if limit is not None and len(blob) >= limit:
                await fail(context, errors.Unavailable("the registry restarts"))
        if len(blob) != header.size_bytes or f"sha256:{hashlib.sha256(blob).hexdigest()}" != header.digest:
            del self.blobs[header.digest]
            await fail(context, errors.InvalidArgument("the content does not match its digest"))
        self.complete.add(header.digest)
        return pb.UploadArtifactResponse(artifact=pb.Artifact(digest=header.digest, size_bytes=len(blob)))

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[pb.DownloadArtifactResponse]:
        yield pb.DownloadArtifactResponse(data=bytes(self.blobs[request.digest][request.offset :]))

    # ModelService

    async def PublishVersion(self, request: Any, context: Any) -> pb.PublishVersionResponse:
        if request.request_key in self.by_key:
            return pb.PublishVersionResponse(version=self.by_key[request.request_key])
        content = yaml.safe_load(request.manifest)
        name = content["name"]
        number = request.version or 1 + max((n for m, n in self.published if m == name), default=0)
        if (name, number) in self.published:
            await fail(context, errors.AlreadyExists(f"{name}@{number} exists"))
        if content.get("format") not in (None, "onnx"):
            await fail(context, errors.InvalidManifest("format: use onnx", field="format"))
        version = pb.ModelVersion(name=name, version=number, publisher="tests")
        version.manifest.name = name
        version.manifest.format = "onnx"
        version.create_time.FromJsonString("2026-01-02T03:04:05Z")
        for role, digest in request.digests.items():
            if digest not in self.complete:
                await fail(context, errors.NotFound(f"artifact of role {role} was not uploaded"))
            version.artifacts[role].digest = digest
            version.artifacts[role].size_bytes = len(self.blobs[digest])
        self.published[name, number] = self.by_key[request.request_key] = version
        return pb.PublishVersionResponse(version=version)

    async def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:
        if not any(name == request.name for name, _ in self.published):
            await fail(context, errors.NotFound(f"no model is called {request.name!r}"))
        return pb.GetModelResponse(model=self._model(request.name))

    async def GetVersion(self, request: Any, context: Any) -> pb.GetVersionResponse:
        number = await self._resolve(request.name, request.version, context)
        version = pb.ModelVersion()
        version.CopyFrom(self.published[request.name, number])
        version.aliases.extend(sorted(a for (m, a), n in self.aliases.items() if (m, n) == (request.name, number)))
        return pb.GetVersionResponse(version=version)

    async def ListVersions(self, request: Any, context: Any) -> pb.ListVersionsResponse:
        found = [version for (name, _), version in self.published.items() if name == request.name]
        if not found:
            await fail(context, errors.NotFound(f"no model is called {request.name!r}"))
        page, token = self._page(sorted(found, key=lambda v: -v.version), request)
        return pb.ListVersionsResponse(versions=page, next_page_token=token)

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        names = sorted({name for name, _ in self.published if all(word in name for word in request.query.split())})
        page, token = self._page(names, request)
        return pb.ListModelsResponse(models=[self._model(name) for name in page], next_page_token=token)

    async def DeleteVersion(self, request: Any, context: Any) -> pb.DeleteVersionResponse:
        if (request.name, request.version) not in self.published:
            await fail(context, errors.NotFound(f"there is no {request.name}@{request.version}"))
        deployment = self.deployed.get(request.name)
        if deployment and any(v.version == request.version for v in deployment.versions):
            await fail(context, errors.InUse(f"{request.name}@{request.version} is deployed"))
        del self.published[request.name, request.version]
        return pb.DeleteVersionResponse()

    async def SetAlias(self, request: Any, context: Any) -> pb.SetAliasResponse:
        now = self.aliases.get((request.name, request.alias), 0)
        if request.HasField("expected_version") and request.expected_version != now:
            await fail(context, errors.Conflict(f"{request.alias} points at {now}, not {request.expected_version}"))
        if (request.name, request.version) not in self.published:
            await fail(context, errors.NotFound(f"there is no {request.name}@{request.version}"))
        self.aliases[request.name, request.alias] = request.version
        return pb.SetAliasResponse(previous_version=now)

    async def DeleteAlias(self, request: Any, context: Any) -> pb.DeleteAliasResponse:
        if self.aliases.pop((request.name, request.alias), None) is None:
            await fail(context, errors.NotFound(f"no alias {request.alias}"))
        return pb.DeleteAliasResponse()

    # DeploymentService

    async def Deploy(self, request: Any, context: Any) -> pb.DeployResponse:
        number = await self._resolve(request.name, request.version, context)
        deployment = self.deployed.setdefault(request.name, pb.Deployment(name=request.name))
        others = [v for v in deployment.versions if request.keep_others and v.version != number]
        before = {v.version: v for v in deployment.versions}
        wanted = pb.DeployedVersion(replicas=request.replicas or 1, tenant=request.tenant)
        if request.keep_options:
            wanted.MergeFrom(before.get(number) or before.get(deployment.default_version) or wanted)
        if request.HasField("scaling"):
            wanted.scaling.CopyFrom(request.scaling)
            wanted.replicas = request.scaling.min_replicas
        if request.HasField("placement"):
            wanted.placement.CopyFrom(request.placement)
        wanted.version = number
        del deployment.versions[:]
        deployment.versions.extend([*others, wanted])
        if not request.keep_others or not deployment.default_version:
            deployment.default_version = number
        deployment.generation += 1
        await self.change()
        return pb.DeployResponse(deployment=deployment)

    async def Undeploy(self, request: Any, context: Any) -> pb.UndeployResponse:
        if request.name in self.deployed:
            left = [v for v in self.deployed[request.name].versions if request.version not in (0, v.version)]
            del self.deployed[request.name].versions[:]
            self.deployed[request.name].versions.extend(left)
            if not left:
                del self.deployed[request.name]
        await self.change()
        return pb.UndeployResponse()

    async def ListDeployments(self, request: Any, context: Any) -> pb.ListDeploymentsResponse:
        return pb.ListDeploymentsResponse(deployments=[self.deployed[name] for name in sorted(self.deployed)])

    # ClusterService

    async def GetStatus(self, request: Any, context: Any) -> cluster.GetStatusResponse:
        return cluster.GetStatusResponse(status=self._picture(request.name))

    async def WatchStatus(self, request: Any, context: Any) -> AsyncIterator[cluster.WatchStatusResponse]:
        self.watches += 1
        while True:
            shown = self._changes
            yield cluster.WatchStatusResponse(status=self._picture(request.name))
            if self.break_watches:
                self.break_watches -= 1
                await fail(context, errors.Unavailable("another scheduler leads now"))
            # What changed while that was being sent counts too: whoever has it may have changed something since.
            async with self._changed:
                while self._changes == shown:
                    await self._changed.wait()

    async def ExplainPlacement(self, request: Any, context: Any) -> cluster.ExplainPlacementResponse:
        if request.name not in self.deployed:
            await fail(context, errors.NotFound(f"{request.name} is not deployed"))
        answer = cluster.ExplainPlacementResponse()
        for version in self.deployed[request.name].versions:
            if request.version in (0, version.version):
                entry = answer.versions.add(name=request.name, version=version.version, wanted=version.replicas)
                entry.needs = "1 GiB and engine onnx"
                verdict = entry.workers.add(worker="w-1", outcome=cluster.PLACEMENT_OUTCOME_NOT_HERE)
                verdict.reason, verdict.obstacle, verdict.lacking_bytes = (
                    "has 1 MiB free of 1 GiB",
                    "memory",
                    1023 << 20,
                )
                entry.remedies.append("free 1023 MiB on w-1")
        return answer

    async def DrainWorker(self, request: Any, context: Any) -> cluster.DrainWorkerResponse:
        return cluster.DrainWorkerResponse(replicas=await self._drain(request.worker, True, context))

    async def UndrainWorker(self, request: Any, context: Any) -> cluster.UndrainWorkerResponse:
        await self._drain(request.worker, False, context)
        return cluster.UndrainWorkerResponse()

    async def _drain(self, worker: str, wanted: bool, context: Any) -> int:
        if worker != "w-1":
            await fail(context, errors.NotFound(f"worker: none is called {worker!r}; there are w-1"))
        self.drained = wanted
        await self.change()
        return sum(len(deployment.versions) for deployment in self.deployed.values())

    def _picture(self, name: str) -> cluster.ClusterStatus:
        status = cluster.ClusterStatus(leader="s-1", term=5)
        status.workers.add(
            id="w-1", address="127.0.0.1:9", memory_bytes=1 << 30, engines=["onnx"], draining=self.drained
        )
        status.services.add(service="scheduler", id="s-1", address="127.0.0.1:8")
        for deployment in self.deployed.values():
            for version in deployment.versions if name in ("", deployment.name) else ():
                entry = status.versions.add(name=deployment.name, version=version.version, wanted=version.replicas)
                entry.default_version = version.version == deployment.default_version
                state = cluster.REPLICA_STATE_READY if self.ready else self.replica_state
                moves = self.drained and deployment.name != self.stays
                entry.unplaced_reason = "" if moves or not self.drained else "no other worker has room"
                for _ in range(version.replicas):
                    entry.replicas.add(
                        worker="w-2" if moves else "w-1", state=state, reason="" if self.ready else self.reason
                    )
                entry.ready = version.replicas if self.ready else 0
        return status

    async def _resolve(self, name: str, version: str, context: Any) -> int:
        numbers = [number for model, number in self.published if model == name]
        number = int(version) if version.isdecimal() else self.aliases.get((name, version), 0)
        number = number if version else max(numbers, default=0)
        if number not in numbers:
            await fail(context, errors.NotFound(f"there is no {name}@{version or 'newest'}"))
        return number

    def _model(self, name: str) -> pb.Model:
        numbers = [number for model, number in self.published if model == name]
        model = pb.Model(name=name, latest_version=max(numbers), version_count=len(numbers), format="onnx")
        for (owner, alias), number in self.aliases.items():
            if owner == name:
                model.aliases[alias] = number
        return model

    def _page(self, items: Sequence[Any], request: Any) -> tuple[Sequence[Any], str]:
        self.pages += 1
        start, size = int(request.page_token or 0), request.page_size or 100
        end = start + size
        return items[start:end], str(end) if end < len(items) else ""


class SmallGateway:
    """The server; `address` once it is started."""

    def __init__(self) -> None:
        self.inference = Inference()
        self.catalogue = Catalogue()
        self.builds = Builds()
        self.address = ""


@contextlib.asynccontextmanager
async def small_gateway() -> AsyncIterator[SmallGateway]:
    """Runs a small gateway on a free port."""
    gateway = SmallGateway()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((gateway.inference.handler(),))
    for add in (
        models_pb2_grpc.add_ModelServiceServicer_to_server,
        models_pb2_grpc.add_ArtifactServiceServicer_to_server,
        models_pb2_grpc.add_DeploymentServiceServicer_to_server,
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server,
    ):
        add(gateway.catalogue, server)
    builds_pb2_grpc.add_BuildServiceServicer_to_server(gateway.builds, server)
    storage_pb2_grpc.add_StorageServiceServicer_to_server(Storage(), server)
    tenants_pb2_grpc.add_TenantServiceServicer_to_server(Tenants(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gateway.address = f"127.0.0.1:{port}"
    try:
        yield gateway
    finally:
        await server.stop(None)


def manifest(name: str = "digits", files: dict[str, str] | None = None) -> str:
    """A manifest as JSON (which is YAML too)."""
    return json.dumps(
        {"schema": "penstock/v1", "name": name, "format": "onnx", "files": files or {"model": "model.onnx"}}
    )
