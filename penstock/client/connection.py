"""One client's connection: the channel, its stubs, and what every call has in common.

Deadline, credential, trace and retry are added here and nowhere else; failures leave as PenstockErrors.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from penstock.channel import OPTIONS, dial, raising
from penstock.client.retry import Budget, pause_before_retry
from penstock.client.tls import Tls
from penstock.errors import InvalidArgument, PenstockError, Unavailable
from penstock.oip import inference_pb2_grpc as oip_rpc
from penstock.v1 import builds_pb2_grpc as builds_rpc
from penstock.v1 import cluster_pb2_grpc as cluster_rpc
from penstock.v1 import models_pb2_grpc as models_rpc
from penstock.v1 import storage_pb2_grpc as storage_rpc
from penstock.v1 import tenants_pb2_grpc as tenants_rpc
from penstock.wire.call import TRACEPARENT

if TYPE_CHECKING:
    from penstock.oip.inference_pb2_grpc import GRPCInferenceServiceAsyncStub
    from penstock.v1.builds_pb2_grpc import BuildServiceAsyncStub
    from penstock.v1.cluster_pb2_grpc import ClusterServiceAsyncStub
    from penstock.v1.models_pb2_grpc import (
        ArtifactServiceAsyncStub,
        DeploymentServiceAsyncStub,
        ModelServiceAsyncStub,
    )
    from penstock.v1.storage_pb2_grpc import StorageServiceAsyncStub
    from penstock.v1.tenants_pb2_grpc import TenantServiceAsyncStub

DEFAULT_ADDRESS: Final = "127.0.0.1:8001"
DEFAULT_TIMEOUT: Final = 60.0

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services behind a gateway."""

    inference: GRPCInferenceServiceAsyncStub
    models: ModelServiceAsyncStub
    artifacts: ArtifactServiceAsyncStub
    deployments: DeploymentServiceAsyncStub
    builds: BuildServiceAsyncStub
    storage: StorageServiceAsyncStub
    tenants: TenantServiceAsyncStub
    cluster: ClusterServiceAsyncStub

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> Stubs:
        """Stubs on a channel."""
        return cls(
            inference=oip_rpc.GRPCInferenceServiceStub(channel),
            models=models_rpc.ModelServiceStub(channel),
            artifacts=models_rpc.ArtifactServiceStub(channel),
            deployments=models_rpc.DeploymentServiceStub(channel),
            builds=builds_rpc.BuildServiceStub(channel),
            storage=storage_rpc.StorageServiceStub(channel),
            tenants=tenants_rpc.TenantServiceStub(channel),
            cluster=cluster_rpc.ClusterServiceStub(channel),
        )


class Connection:
    """The channel opens with the first call, on the event loop that makes it."""

    def __init__(
        self,
        address: str | None,
        token: str | None,
        timeout: float | None,
        retries: int,
        trace_context: Callable[[], str | None],
        tls: Tls,
    ) -> None:
        self.address = address or os.environ.get("PENSTOCK_ADDRESS") or DEFAULT_ADDRESS
        self.timeout = timeout
        self.retries = retries
        self.budget = Budget()
        self._token = os.environ.get("PENSTOCK_TOKEN", "") if token is None else token
        self._trace_context = trace_context
        self._credentials = tls.credentials()
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._closed = False
        if "://" in self.address or not self.address.rpartition(":")[2].isdecimal():
            raise InvalidArgument(f"address: {self.address!r} is not host:port", field="address")

    @property
    def stubs(self) -> Stubs:
        """The stubs; opens the channel when there is none yet."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._stubs is None:
            # The credential travels as metadata of each call (`headers`), which spares every call an interceptor.
            self._channel = dial(self.address, credentials=self._credentials)
            self._stubs = Stubs.on(self._channel)
        return self._stubs

    def open_blocking(self) -> grpc.Channel:
        """A second channel to the same place for a call that runs on gRPC's threads; the caller closes it."""
        if self._credentials is not None:
            return grpc.secure_channel(self.address, self._credentials, options=OPTIONS)
        return grpc.insecure_channel(self.address, options=OPTIONS)

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        self._closed = True
        if self._channel is not None:
            channel, self._channel, self._stubs = self._channel, None, None
            await channel.close()

    def headers(self, more: Mapping[str, str] | None = None) -> grpc.aio.Metadata:
        """Metadata of one call: credential, trace, and `more`."""
        pairs = list((more or {}).items())
        if self._token:
            pairs.append(("authorization", f"Bearer {self._token}"))
        if traceparent := self._trace_context():
            pairs.append((TRACEPARENT, traceparent))
        return grpc.aio.Metadata(*pairs)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Response:
        """One unary call; raises PenstockError. retries: only for calls that change nothing twice."""
        response, _ = await self.call_with_trailers(method, request, timeout=timeout, retries=retries)
        return response

    async def read_only(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float | None
    ) -> Response:
        """As `call`, tried again as often as the client allows."""
        return await self.call(method, request, timeout=timeout, retries=self.retries)

    async def call_with_trailers(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float | None = None,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Response, dict[str, str]]:
        """As `call`, with the answer's text trailers."""
        loop = asyncio.get_running_loop()
        seconds = self.timeout if timeout is None else timeout
        deadline = None if seconds is None else loop.time() + seconds
        metadata = self.headers(headers)
        attempt = 0
        while True:
            left = None if deadline is None else deadline - loop.time()
            try:
                answer = await self._once(method, request, left, metadata)
            except PenstockError as error:
                if not isinstance(error, Unavailable):
                    self.budget.answered()
                left = None if deadline is None else deadline - loop.time()
                pause = pause_before_retry(error, attempt, retries, self.budget, left)
                if pause is None:
                    raise
                attempt += 1
                await asyncio.sleep(pause)
            else:
                self.budget.answered()
                return answer

    async def read(
        self, stream: grpc.aio.UnaryStreamCall[Any, Response] | grpc.aio.StreamStreamCall[Any, Response]
    ) -> AsyncGenerator[Response]:
        """The messages of a stream, which is cancelled when the reader leaves; raises PenstockError."""
        try:
            with raising():
                async for message in stream:
                    yield message
        finally:
            stream.cancel()

    async def _once(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        metadata: grpc.aio.Metadata,
    ) -> tuple[Response, dict[str, str]]:
        with raising():
            call = method(request, timeout=timeout, metadata=metadata)
            response = await call
            trailers = await call.trailing_metadata()
        return response, {key: value for key, value in trailers or () if isinstance(value, str)}
