"""Management, passed on: penstock.v1 services of the registry and the scheduler, reachable through the gateway's port.

Messages travel as bytes, whatever they hold: the methods and their shapes come from the service descriptors, so an RPC
added to the protos is passed on without a line here. Deadlines, cancellation, request ids, traces and credentials go
onward; status, text and error trailers come back as they are. A call is never repeated once it has been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from penstock.channel import ERROR_TRAILER, error_info, error_of
from penstock.kit.log import REQUEST_ID_OF_CALL
from penstock.v1 import builds_pb2, cluster_pb2, models_pb2, storage_pb2
from penstock.wire.call import REQUEST_ID, TRACEPARENT
from penstock.wire.client import ConnectionLost

from .backend import Backend
from .sending import send

M = TypeVar("M", bound=Message)

AUTHORIZATION = "authorization"
CHUNK_BYTES = 1 << 20
"""Largest piece of an upload that `Control.upload` sends in one message."""

REGISTRY_SERVICES = ("ModelService", "ArtifactService", "DeploymentService", "BuildService", "StorageService")
SCHEDULER_SERVICES = ("ClusterService",)


def services() -> dict[str, ServiceDescriptor]:
    """Descriptor of every service that is passed on, by its short name."""
    files = (models_pb2.DESCRIPTOR, builds_pb2.DESCRIPTOR, storage_pb2.DESCRIPTOR, cluster_pb2.DESCRIPTOR)
    known = {name: service for file in files for name, service in file.services_by_name.items()}
    return {name: known[name] for name in (*REGISTRY_SERVICES, *SCHEDULER_SERVICES)}


class Control:
    """The way to the registry and the scheduler, for gRPC callers, the REST bridge and the gateway itself."""

    def __init__(
        self, registry: Backend, scheduler: Backend, *, token: str = "", default_timeout: float = 60.0
    ) -> None:
        """token: presented where the caller brought no credential; default_timeout: seconds for a unary call that
        brings no deadline."""
        self._backends = {name: registry for name in REGISTRY_SERVICES} | {
            name: scheduler for name in SCHEDULER_SERVICES
        }
        self._services = services()
        self._token = token
        self._default_timeout = default_timeout

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
        """One unary call, such as ("ModelService", "ListModels"); timeout in seconds; headers: the caller's, of which
        credential, request id and trace are passed on. Raises the PenstockError of the service, or Unavailable."""
        backend, path = self._find(service, method)
        remote = await backend.method("unary_unary", path)
        with _raising(backend):
            call = remote(request.SerializeToString(), timeout=timeout, metadata=tuple(self._onward(headers).items()))
            return response_class.FromString(await call)

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
        """A server-streaming call, such as ("ClusterService", "WatchStatus") or ("ArtifactService",
        "DownloadArtifact"). Iterate inside `contextlib.aclosing`; leaving it cancels the call. Raises as `call`."""
        backend, path = self._find(service, method)
        remote = await backend.method("unary_stream", path)
        with _raising(backend):
            call = remote(request.SerializeToString(), timeout=timeout, metadata=tuple(self._onward(headers).items()))
            try:
                async for payload in call:
                    yield response_class.FromString(payload)
            finally:
                call.cancel()

    async def upload(
        self,
        header: models_pb2.UploadHeader,
        data: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> models_pb2.UploadArtifactResponse:
        """Streams an artifact into the registry, as fast as it takes it. data: pieces of any size. Raises as `call`."""
        backend, path = self._find("ArtifactService", "UploadArtifact")
        deadline = math.inf if timeout is None else asyncio.get_running_loop().time() + timeout
        async with backend.peer() as peer:
            try:
                response, _ = await send(
                    peer,
                    path,
                    _upload_messages(header, data),
                    deadline=deadline,
                    headers=self._onward(headers),
                )
            except ConnectionLost:
                raise backend.lost() from None
        return models_pb2.UploadArtifactResponse.FromString(response)

    def generic_handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """The services as this process serves them."""
        return [
            grpc.method_handlers_generic_handler(
                service.full_name,
                {method.name: self._handler(self._backends[name], method) for method in service.methods},
            )
            for name, service in self._services.items()
        ]

    def service_names(self) -> tuple[str, ...]:
        """Full names, for reflection."""
        return tuple(service.full_name for service in self._services.values())

    def _find(self, service: str, method: str) -> tuple[Backend, str]:
        short = service.rpartition(".")[2]
        described = self._services[short].methods_by_name[method]
        return self._backends[short], _path(described)

    def _handler(self, backend: Backend, method: MethodDescriptor) -> Any:
        passing = _Passing(backend, _path(method), self._onward, self._default_timeout)
        if not method.client_streaming and not method.server_streaming:
            return grpc.unary_unary_rpc_method_handler(passing.unary_unary)
        if not method.client_streaming:
            return grpc.unary_stream_rpc_method_handler(passing.unary_stream)
        if not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(passing.stream_unary)
        raise ValueError(f"{method.full_name}: methods that stream both ways are not passed on")

    def _onward(self, headers: Mapping[str, str]) -> dict[str, str]:
        credential = headers.get(AUTHORIZATION) or (f"Bearer {self._token}" if self._token else "")
        request_id = REQUEST_ID_OF_CALL.get() or headers.get(REQUEST_ID, "")
        onward = {
            AUTHORIZATION: credential,
            REQUEST_ID: request_id,
            TRACEPARENT: headers.get(TRACEPARENT, ""),
        }
        return {name: value for name, value in onward.items() if value}


class _Passing:
    """One method, passed on. Each behaviour has the shape that grpc.aio expects of a servicer's method."""

    def __init__(
        self,
        backend: Backend,
        path: str,
        onward: Callable[[Mapping[str, str]], dict[str, str]],
        default_timeout: float,
    ) -> None:
        self._backend = backend
        self._path = path
        self._onward = onward
        self._default_timeout = default_timeout

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        remote = await self._backend.method("unary_unary", self._path)
        remaining = context.time_remaining()
        timeout = self._default_timeout if remaining is None else remaining
        call = remote(request, timeout=timeout, metadata=tuple(self._headers(context).items()))
        async with self._passing(call, context):
            return bytes(await call)
        raise AssertionError("a failed call is aborted")

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else asyncio.get_running_loop().time() + remaining
        headers = self._headers(context)
        async with self._backend.peer() as peer:
            try:
                response, trailers = await send(peer, self._path, requests, deadline=deadline, headers=headers)
            except ConnectionLost:
                raise self._backend.lost() from None
        context.set_trailing_metadata(_textual(trailers.items()))
        return response

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        remote = await self._backend.method("unary_stream", self._path)
        call = remote(request, timeout=context.time_remaining(), metadata=tuple(self._headers(context).items()))
        async with self._passing(call, context):
            async for message in call:
                yield message

    def _headers(self, context: Any) -> dict[str, str]:
        return self._onward(
            {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        )

    @contextlib.asynccontextmanager
    async def _passing(self, call: Any, context: Any) -> AsyncIterator[None]:
        """Around the exchange of messages: ends the other side when this one ends, and passes on how it ended."""
        # A caller who leaves between two messages of a stream leaves the generator suspended; this still hears of it.
        context.add_done_callback(lambda _: call.cancel())
        try:
            yield
            context.set_trailing_metadata(_textual(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as failure:
            if _is_transport(failure):
                raise self._backend.lost() from None
            trailers = _textual(failure.trailing_metadata() or ())
            await context.abort(failure.code(), failure.details() or "", trailing_metadata=trailers)
        finally:
            call.cancel()


async def _upload_messages(header: models_pb2.UploadHeader, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield models_pb2.UploadArtifactRequest(header=header).SerializeToString()
    async for piece in data:
        for begin in range(0, len(piece), CHUNK_BYTES):
            chunk = piece[begin : begin + CHUNK_BYTES]
            yield models_pb2.UploadArtifactRequest(data=bytes(chunk)).SerializeToString()


@contextlib.contextmanager
def _raising(backend: Backend) -> Iterator[None]:
    """Turns a gRPC failure into the PenstockError that the service raised, or one that names no address."""
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise (backend.lost() if _is_transport(failure) else error_of(failure)) from None


def _is_transport(failure: grpc.aio.AioRpcError) -> bool:
    """UNAVAILABLE without an ErrorInfo comes from gRPC itself; its text names addresses."""
    return failure.code() is grpc.StatusCode.UNAVAILABLE and error_info(failure.trailing_metadata() or ()) is None


def _textual(trailers: Iterable[tuple[str, str | bytes]]) -> tuple[tuple[str, str | bytes], ...]:
    """Trailers of the application; those of gRPC itself are made anew on each hop."""
    return tuple((key, value) for key, value in trailers if key == ERROR_TRAILER or not key.startswith("grpc-"))


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"
