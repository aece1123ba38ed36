"""Management through a real gateway server: bytes, deadlines, cancellation and errors pass between a caller and
servicers that stand for the registry and the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from penstock.channel import error_info, raising
from penstock.cluster import keys, records
from penstock.errors import Conflict, InvalidManifest, NotFound, Unavailable, Unsupported
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.kit.identity import Authenticator
from penstock.kit.server import build_server
from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2, cluster_pb2, cluster_pb2_grpc, storage_pb2
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from penstock.wire.client import SERVICE
from services.gateway.control import REGISTRY_SERVICES, SCHEDULER_SERVICES, Control, services
from tests.integration.gateway_harness import Running, gateway

DIGEST = "sha256:" + "0" * 64


class Registry(rpc.ModelServiceServicer, rpc.ArtifactServiceServicer, rpc.DeploymentServiceServicer):
    """Answers what the test needs and notes what it saw."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.remaining: float | None = None
        self.received: list[bytes] = []
        self.reached = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls = 0

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.remaining = context.time_remaining()
        context.set_trailing_metadata((("penstock-served-by", "registry-1"),))
        return pb.GetVersionResponse(version=pb.ModelVersion(name=request.name, version=3))

    async def PublishVersion(self, request: pb.PublishVersionRequest, context: Any) -> pb.PublishVersionResponse:
        raise InvalidManifest("inputs[0].shape: -7 is not a size", field="inputs[0].shape")

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=pb.Model(name=request.name))

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        raise Conflict("the alias points at version 2")

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        await self._hang()
        raise AssertionError

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.DeleteAliasResponse:
        self.calls += 1
        await self._hang()
        raise AssertionError

    async def UploadArtifact(
        self, requests: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        size = 0
        async for message in requests:
            if message.HasField("header"):
                if message.header.size_bytes == 0:
                    return pb.UploadArtifactResponse(existed=True)  # without reading on
                if message.header.offset:
                    raise Conflict("the upload continues elsewhere")
            self.received.append(message.data)
            size += len(message.data)
        return pb.UploadArtifactResponse(artifact=pb.Artifact(digest=DIGEST, size_bytes=size))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        for chunk in (b"one", b"two"):
            yield pb.DownloadArtifactResponse(data=chunk)
        if request.offset:
            raise NotFound("the artifact has no more")

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.DeployResponse:
        self.metadata = dict(context.invocation_metadata())
        return pb.DeployResponse(deployment=pb.Deployment(name=request.name, default_version=1))

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        raise Unsupported("this stand-in does not list versions")

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Any) -> pb.DeleteVersionResponse:
        raise RuntimeError("/secret/path: a bug")

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> pb.GetArtifactResponse:
        return pb.GetArtifactResponse(received_bytes=5)

    async def Undeploy(self, request: pb.UndeployRequest, context: Any) -> pb.UndeployResponse:
        return pb.UndeployResponse()

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Any) -> pb.ListDeploymentsResponse:
        return pb.ListDeploymentsResponse()

    async def _hang(self) -> None:
        self.reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Scheduler(cluster_pb2_grpc.ClusterServiceServicer):
    """Watches for ever."""

    def __init__(self) -> None:
        self.watching = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def WatchStatus(
        self, request: cluster_pb2.WatchStatusRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        context.add_done_callback(lambda _: self.cancelled.set())
        yield cluster_pb2.WatchStatusResponse(status=cluster_pb2.ClusterStatus(leader="s1"))
        self.watching.set()
        await asyncio.Event().wait()

    async def GetStatus(self, request: cluster_pb2.GetStatusRequest, context: Any) -> cluster_pb2.GetStatusResponse:
        return cluster_pb2.GetStatusResponse(status=cluster_pb2.ClusterStatus(leader="s1"))

    async def ExplainPlacement(
        self, request: cluster_pb2.ExplainPlacementRequest, context: Any
    ) -> cluster_pb2.ExplainPlacementResponse:
        """Nobody asks."""
        raise NotImplementedError

    async def DrainWorker(
        self, request: cluster_pb2.DrainWorkerRequest, context: Any
    ) -> cluster_pb2.DrainWorkerResponse:
        """Nobody asks."""
        raise NotImplementedError

    async def UndrainWorker(
        self, request: cluster_pb2.UndrainWorkerRequest, context: Any
    ) -> cluster_pb2.UndrainWorkerResponse:
        """Nobody asks."""
        raise NotImplementedError


class Instance:
    """One process's worth of a control service, on the kit's server."""

    def __init__(self, service: str, name: str, servicer: Any) -> None:
        self.record = ServiceRecord(service=service, id=name)
        self.servicer = servicer
        self.server, _ = build_server(Authenticator(""))
        if service == "registry":
            rpc.add_ModelServiceServicer_to_server(servicer, self.server)
            rpc.add_ArtifactServiceServicer_to_server(servicer, self.server)
            rpc.add_DeploymentServiceServicer_to_server(servicer, self.server)
        else:
            cluster_pb2_grpc.add_ClusterServiceServicer_to_server(servicer, self.server)

    async def start(self, it: Running) -> None:
        self.record.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        await it.store.put(keys.service(self.record.service, self.record.id), records.to_json(self.record))


@asynccontextmanager
async def managed(endpoint: str) -> AsyncIterator[tuple[Running, Registry, Scheduler, Instance]]:
    async with gateway(endpoint) as it:
        registry, scheduler = Registry(), Scheduler()
        instances = [Instance("registry", "registry-1", registry), Instance("scheduler", "scheduler-1", scheduler)]
        try:
            for instance in instances:
                await instance.start(it)
            await until_known(it, 1, 1)
            yield it, registry, scheduler, instances[0]
        finally:
            for instance in instances:
                await instance.server.stop(None)


async def until_known(it: Running, registries: int, schedulers: int) -> None:
    """Waits until the gateway's mirrors show so many instances. Mirrors tell the table of every change."""
    async with asyncio.timeout(10):
        while [len(mirror.records) for mirror in it.services.values()] != [registries, schedulers]:
            it.told.clear()
            await it.told.wait()


def models(it: Running) -> rpc.ModelServiceAsyncStub:
    return rpc.ModelServiceStub(it.channel)


async def test_unary_with_its_metadata_and_deadline(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, _):
        metadata = (("authorization", "Bearer t"), ("x-request-id", "r1"), ("traceparent", "00-x"), ("cookie", "c"))
        call = models(it).GetVersion(pb.GetVersionRequest(name="digits"), metadata=metadata, timeout=7)
        response = await call
        assert response.version == pb.ModelVersion(name="digits", version=3)
        assert dict(await call.trailing_metadata())["penstock-served-by"] == "registry-1"
        seen = registry.metadata
        assert (seen["authorization"], seen["x-request-id"], seen["traceparent"]) == ("Bearer t", "r1", "00-x")
        assert "cookie" not in seen
        assert registry.remaining is not None and 5 < registry.remaining <= 7.5


async def test_without_a_deadline_there_is_one(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, _):
        await models(it).GetVersion(pb.GetVersionRequest(name="digits"))
        assert registry.remaining is not None and 50 < registry.remaining <= 61
        assert registry.metadata["authorization"] == "Bearer of-the-gateway"
        assert registry.metadata["x-request-id"]


async def test_errors_pass_as_they_are(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, _, _, instance):
        direct = grpc.aio.insecure_channel(instance.record.address)
        seen = []
        for channel in (direct, it.channel):
            stub: Any = rpc.ModelServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.PublishVersion(pb.PublishVersionRequest(), metadata=(("x-request-id", "r9"),))
            info = error_info(caught.value.trailing_metadata())
            seen.append((caught.value.code(), caught.value.details(), info))
        assert seen[0] == seen[1]
        assert seen[1][2] is not None and seen[1][2].field == "inputs[0].shape" and seen[1][2].request_id == "r9"
        with pytest.raises(Conflict, match="version 2"), raising():
            await models(it).SetAlias(pb.SetAliasRequest())
        for ask, code in (
            (models(it).ListVersions(pb.ListVersionsRequest()), grpc.StatusCode.UNIMPLEMENTED),
            (models(it).DeleteVersion(pb.DeleteVersionRequest()), grpc.StatusCode.INTERNAL),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await ask
            assert failed.value.code() is code
            assert "secret" not in (failed.value.details() or "")
        await direct.close()


def upload_messages(size: int, offset: int = 0, pieces: int = 3) -> list[pb.UploadArtifactRequest]:
    header = pb.UploadHeader(digest=DIGEST, size_bytes=size, offset=offset)
    data = [pb.UploadArtifactRequest(data=bytes([piece]) * (1 << 20)) for piece in range(pieces)]
    return [pb.UploadArtifactRequest(header=header), *data]


async def test_client_streaming(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, _):
        stub: Any = rpc.ArtifactServiceStub(it.channel)
        response = await stub.UploadArtifact(iter(upload_messages(3 << 20)))
        assert response.artifact.size_bytes == 3 << 20
        assert registry.received[1:] == [bytes([piece]) * (1 << 20) for piece in range(3)]
        with pytest.raises(Conflict, match="elsewhere"), raising():
            await stub.UploadArtifact(iter(upload_messages(3 << 20, offset=5, pieces=0)))


async def test_an_upload_that_is_refused_while_it_is_sent(clean_etcd: str) -> None:
    """grpc.aio would misquote the status now and then (grpc#36066)."""
    async with managed(clean_etcd) as (it, _, _, _):
        refused = pb.UploadHeader(digest=DIGEST, size_bytes=1 << 30, offset=5)
        there = pb.UploadHeader(digest=DIGEST)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(64 << 10)

        for _ in range(60):
            with pytest.raises(Conflict, match="elsewhere"):
                await it.control.upload(refused, endless(), headers={})
            assert (await it.control.upload(there, endless(), headers={})).existed


async def test_an_upload_that_is_answered_early(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, _, _, _):
        stub: Any = rpc.ArtifactServiceStub(it.channel)

        async def endless() -> AsyncIterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=DIGEST))
            await asyncio.Event().wait()

        response = await asyncio.wait_for(stub.UploadArtifact(endless()), 5)
        assert response.existed


async def test_server_streaming(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, _, _, _):
        stub: Any = rpc.ArtifactServiceStub(it.channel)
        chunks = [message.data async for message in stub.DownloadArtifact(pb.DownloadArtifactRequest(digest=DIGEST))]
        assert chunks == [b"one", b"two"]
        chunks = []
        with pytest.raises(NotFound, match="no more"), raising():
            async for message in stub.DownloadArtifact(pb.DownloadArtifactRequest(digest=DIGEST, offset=9)):
                chunks.append(message.data)
        assert chunks == [b"one", b"two"]


async def test_cancellation_reaches_the_service(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, scheduler, _):
        call = models(it).ListModels(pb.ListModelsRequest())
        async with asyncio.timeout(5):
            await registry.reached.wait()
            call.cancel()
            await registry.cancelled.wait()
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(it.channel)
        watch = stub.WatchStatus(cluster_pb2.WatchStatusRequest())
        async with asyncio.timeout(5):
            first = await watch.read()
            assert first.status.leader == "s1"
            await scheduler.watching.wait()
            watch.cancel()
            await scheduler.cancelled.wait()


async def test_a_deadline_that_passes(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models(it).ListModels(pb.ListModelsRequest(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await registry.cancelled.wait()


async def test_no_registry(clean_etcd: str) -> None:
    async with gateway(clean_etcd) as it:
        with pytest.raises(Unavailable, match="the registry cannot be reached; serving goes on"), raising():
            await models(it).GetVersion(pb.GetVersionRequest(name="digits"))
        stub: Any = cluster_pb2_grpc.ClusterServiceStub(it.channel)
        with pytest.raises(Unavailable, match="the scheduler cannot be reached; serving goes on"), raising():
            await stub.WatchStatus(cluster_pb2.WatchStatusRequest()).read()


async def test_an_instance_that_is_dead_is_passed_over(clean_etcd: str) -> None:
    """Its record may outlive it by a lease."""
    async with managed(clean_etcd) as (it, registry, _, instance):
        dead = ServiceRecord(service="registry", id="registry-0", address="127.0.0.1:1")
        await it.store.put(keys.service("registry", "registry-0"), records.to_json(dead))
        await until_known(it, 2, 1)
        for _ in range(3):
            await models(it).GetVersion(pb.GetVersionRequest(name="digits"))
        assert registry.calls == 3
        await instance.server.stop(None)
        with pytest.raises(Unavailable, match="cannot be reached") as caught, raising():
            await models(it).GetVersion(pb.GetVersionRequest(name="digits"))
        assert "127.0.0.1" not in caught.value.message


async def test_a_call_that_was_sent_is_never_repeated(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, instance):
        other = Instance("registry", "registry-2", Registry())
        await other.start(it)
        await until_known(it, 2, 1)
        call = asyncio.ensure_future(models(it).DeleteAlias(pb.DeleteAliasRequest()))
        async with asyncio.timeout(5):
            waits = [asyncio.ensure_future(each.reached.wait()) for each in (registry, other.servicer)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        first, second = (instance, other) if registry.reached.is_set() else (other, instance)
        await first.server.stop(None)
        with pytest.raises(Unavailable, match="whether the call was done is not known"), raising():
            await call
        assert second.servicer.calls == 0
        await models(it).GetVersion(pb.GetVersionRequest(name="digits"))  # the next one goes to the other
        assert second.servicer.calls == 1
        await other.server.stop(None)


async def test_the_python_face(clean_etcd: str) -> None:
    """What the REST bridge calls."""
    async with managed(clean_etcd) as (it, registry, _, _):
        control: Control = it.control
        headers = {"authorization": "Bearer x", "x-request-id": "r2", "host": "h"}
        request = pb.GetVersionRequest(name="digits")
        for service in ("ModelService", "penstock.v1.ModelService"):
            response = await control.call(
                service, "GetVersion", request, pb.GetVersionResponse, timeout=5, headers=headers
            )
            assert response.version.version == 3
        assert registry.metadata["authorization"] == "Bearer x"
        assert "host" not in registry.metadata
        with pytest.raises(InvalidManifest) as caught:
            await control.call(
                "ModelService",
                "PublishVersion",
                pb.PublishVersionRequest(),
                pb.PublishVersionResponse,
                timeout=5,
                headers=headers,
            )
        assert caught.value.field == "inputs[0].shape"

        async def data() -> AsyncIterator[bytes]:
            yield bytes(3 << 20)
            yield b"end"

        header = pb.UploadHeader(digest=DIGEST, size_bytes=(3 << 20) + 3)
        uploaded = await control.upload(header, data(), headers=headers)
        assert uploaded.artifact.size_bytes == (3 << 20) + 3
        assert max(map(len, registry.received)) == 1 << 20

        async def broken() -> AsyncIterator[bytes]:
            yield b"x"
            raise LookupError("the caller's body ended early")

        with pytest.raises(LookupError):
            await control.upload(header, broken(), headers=headers)
        download = pb.DownloadArtifactRequest(digest=DIGEST)
        async with aclosing(
            control.watch("ArtifactService", "DownloadArtifact", download, pb.DownloadArtifactResponse, headers={})
        ) as stream:
            assert [message.data async for message in stream] == [b"one", b"two"]


async def test_repository_load_deploys_and_waits(clean_etcd: str) -> None:
    async with managed(clean_etcd) as (it, registry, _, _):
        load: Any = it.channel.unary_unary(f"/{SERVICE}/RepositoryModelLoad")
        request = oip.RepositoryModelLoadRequest(model_name="digits").SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(request, timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert registry.metadata["authorization"] == "Bearer of-the-gateway"


def test_every_method_is_passed_on() -> None:
    described = services()
    assert set(described) == {*REGISTRY_SERVICES, *SCHEDULER_SERVICES}
    files = (pb.DESCRIPTOR, builds_pb2.DESCRIPTOR, storage_pb2.DESCRIPTOR, cluster_pb2.DESCRIPTOR)
    everything = {name for file in files for name in file.services_by_name}
    assert set(described) == everything
    assert not [
        method.full_name
        for service in described.values()
        for method in service.methods
        if method.client_streaming and method.server_streaming
    ]
