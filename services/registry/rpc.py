"""ModelService, ArtifactService and DeploymentService over gRPC: checks names, translates, decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import grpc

from penstock import names
from penstock.errors import DeadlineExceeded, InvalidArgument, PenstockError, TooLarge
from penstock.kit.identity import caller
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc

from . import deploy_options
from .blobs import BlobStore
from .build.overrides import Override
from .catalog import Catalog
from .metrics import TransferMetrics

MAX_CHUNK: Final = 2 << 20
DRAIN_BYTES: Final = 32 << 20
DRAIN_SECONDS: Final = 1.0

Context = grpc.aio.ServicerContext[Any, Any]
Published = Callable[[pb.ModelVersion, str], Awaitable[str]]


def register(
    server: grpc.aio.Server,
    catalog: Catalog,
    blobs: BlobStore,
    *,
    upload_idle: float,
    published: Published | None = None,
) -> tuple[str, ...]:
    """Adds the three services and returns their full names.

    upload_idle: seconds that an upload may pause; published: asks for the job of a version that was just published,
    and gives its id.
    """
    rpc.add_ModelServiceServicer_to_server(Models(catalog, published), server)
    rpc.add_ArtifactServiceServicer_to_server(Artifacts(blobs, idle=upload_idle), server)
    rpc.add_DeploymentServiceServicer_to_server(Deployments(catalog), server)
    return tuple(pb.DESCRIPTOR.services_by_name[name].full_name for name in pb.DESCRIPTOR.services_by_name)


class Models(rpc.ModelServiceServicer):
    """The catalogue."""

    def __init__(self, catalog: Catalog, published: Published | None = None) -> None:
        self._catalog = catalog
        self._published = published

    async def PublishVersion(self, request: pb.PublishVersionRequest, context: Context) -> pb.PublishVersionResponse:
        _text(request.request_key, "request_key", 128)
        _at_least(request.version, 0, "version")
        version = await self._catalog.publish(request, publisher=caller())
        build = await self._published(version, caller()) if self._published else ""
        return pb.PublishVersionResponse(version=version, build_id=build)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=await self._catalog.get_model(names.model(request.name)))

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.GetVersionResponse:
        name, version = names.model(request.name), _version(request.version)
        return pb.GetVersionResponse(version=await self._catalog.get(name, version))

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        name = names.model(request.name)
        versions, token = await self._catalog.list_versions(name, request.page_size, request.page_token)
        return pb.ListVersionsResponse(versions=versions, next_page_token=token)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        query = _text(request.query, "query", 256)
        if len(request.tags) > 64:
            raise InvalidArgument("tags: at most 64 can be asked for", field="tags")
        tags = {_text(key, "tags", 64): _text(value, "tags", 256) for key, value in request.tags.items()}
        models, token = await self._catalog.list_models(query, tags, request.page_size, request.page_token)
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        await self._catalog.delete(names.model(request.name), _at_least(request.version, 1, "version"))
        return pb.DeleteVersionResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        name, alias = names.model(request.name), names.alias(request.alias)
        number = _at_least(request.version, 1, "version")
        previous = await self._catalog.set_alias(name, alias, number, _expected(request))
        return pb.SetAliasResponse(previous_version=previous)

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        await self._catalog.delete_alias(names.model(request.name), names.alias(request.alias), _expected(request))
        return pb.DeleteAliasResponse()


class Artifacts(rpc.ArtifactServiceServicer):
    """Files by content. idle: seconds that an upload may pause before its stream is ended."""

    def __init__(self, blobs: BlobStore, *, idle: float) -> None:
        self._blobs = blobs
        self._idle = idle
        self._metrics = TransferMetrics()

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> pb.GetArtifactResponse:
        stat = await self._blobs.stat(names.digest(request.digest))
        return pb.GetArtifactResponse(complete=stat.complete, received_bytes=stat.received)

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Context
    ) -> pb.UploadArtifactResponse:
        outcome = "broken"
        try:
            answer = await self._receive(request_iterator)
            outcome = "existed" if answer.existed else "stored"
            return answer
        except PenstockError:
            outcome = "refused"
            await _drain(request_iterator)
            raise
        finally:
            self._metrics.upload_ended(outcome)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        digest = names.digest(request.digest)
        async with aclosing(self._blobs.read(digest, _at_least(request.offset, 0, "offset"))) as chunks:
            async for chunk in chunks:
                yield pb.DownloadArtifactResponse(data=chunk)
                self._metrics.sent.inc(len(chunk))

    async def _receive(self, messages: AsyncIterator[pb.UploadArtifactRequest]) -> pb.UploadArtifactResponse:
        first = await self._next(messages)
        if first is None or not first.HasField("header"):
            raise InvalidArgument("header: the first message of an upload names the artifact", field="header")
        header = first.header
        digest = names.digest(header.digest, "header.digest")
        _at_least(header.size_bytes, 0, "header.size_bytes")
        stat = await self._blobs.stat(digest)
        if stat.complete:
            artifact = pb.Artifact(digest=digest, size_bytes=stat.received)
            await _drain(messages)
            return pb.UploadArtifactResponse(artifact=artifact, existed=True)
        async with self._blobs.writer(digest, header.size_bytes, header.offset) as writer:
            while (message := await self._next(messages)) is not None:
                if message.HasField("header"):
                    raise InvalidArgument("header: only the first message carries it", field="header")
                if len(message.data) > MAX_CHUNK:
                    raise TooLarge(
                        f"data: {len(message.data)} bytes; at most {MAX_CHUNK} go into one message", field="data"
                    )
                await writer.write(message.data)
                self._metrics.received.inc(len(message.data))
            await writer.commit()
        return pb.UploadArtifactResponse(artifact=pb.Artifact(digest=digest, size_bytes=header.size_bytes))

    async def _next(self, messages: AsyncIterator[pb.UploadArtifactRequest]) -> pb.UploadArtifactRequest | None:
        """The next message, None at the end. A caller that falls silent must not keep the artifact from others."""
        try:
            async with asyncio.timeout(self._idle):
                return await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(f"the upload paused for more than {self._idle:g} s; go on in a new stream") from None


class Deployments(rpc.DeploymentServiceServicer):
    """What should run."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def Deploy(self, request: pb.DeployRequest, context: Context) -> pb.DeployResponse:
        name, version = names.model(request.name), _version(request.version)
        wanted = deploy_options.wanted(request)
        override = Override(_text(request.override_gate, "override_gate", 512), caller())
        deployment = await self._catalog.deploy(
            name, version, wanted, keep_others=request.keep_others, override=override
        )
        return pb.DeployResponse(deployment=deployment)

    async def Undeploy(self, request: pb.UndeployRequest, context: Context) -> pb.UndeployResponse:
        await self._catalog.undeploy(names.model(request.name), _at_least(request.version, 0, "version"))
        return pb.UndeployResponse()

    async def ListDeployments(self, request: pb.ListDeploymentsRequest, context: Context) -> pb.ListDeploymentsResponse:
        return pb.ListDeploymentsResponse(deployments=await self._catalog.deployments())


async def _drain(messages: AsyncIterator[pb.UploadArtifactRequest]) -> None:
    """Takes what the caller still sends, within bounds, before an answer that comes early.

    A caller of grpc.aio whose write is cut off by the answer may see INTERNAL instead of it.
    """
    left = DRAIN_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for message in messages:
                left -= len(message.data)
                if left < 0:
                    return


def _version(text: str) -> int | str | None:
    return names.version_or_alias(text) if text else None


def _expected(request: pb.SetAliasRequest | pb.DeleteAliasRequest) -> int | None:
    if not request.HasField("expected_version"):
        return None
    return _at_least(request.expected_version, 0, "expected_version")


def _at_least(number: int, least: int, field: str) -> int:
    if number < least:
        raise InvalidArgument(f"{field}: {number} is less than {least}", field=field)
    return number


def _text(text: str, field: str, limit: int) -> str:
    if len(text) > limit or not text.isprintable():
        raise InvalidArgument(f"{field}: use at most {limit} printable characters", field=field)
    return text
