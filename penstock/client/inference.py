"""The calls of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing

from penstock import names
from penstock.client import payload
from penstock.client.connection import Connection
from penstock.client.payload import InferRequest, Inputs, Parameter, Specs, Version, version_text
from penstock.client.result import InferResult, StreamReply, Trailers
from penstock.errors import Internal, InvalidArgument, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import REQUEST_ID

# grpc.aio says this instead of the server's status when a write finds the call ended (grpc/grpc#36066).
_LOST_STATUS = "Internal error from Core"
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


class InferenceCalls:
    """What a server of the protocol answers; every call may raise any class of `penstock.errors`."""

    _connection: Connection
    _specs: dict[tuple[str, str], Specs]

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: Version = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        priority: int | None = None,
        retries: int | None = None,
    ) -> InferResult:
        """Runs a model once.

        Args:
            model: its name.
            inputs: arrays, Tensors, texts, bytes or lists by input name; penstock/client/payload.py says how each
                travels. A list of numbers costs one metadata call per model and client, kept for later calls.
            version: a number or an alias; None for the default version.
            outputs: names of the outputs wanted; None for all.
            parameters: request parameters of the protocol.
            request_id: echoed in the result, and the id under which services log the request.
            timeout: seconds to the deadline, which travels with the request; None for the client's.
            priority: queue level, 1 the highest, for models that have levels.
            retries: how often to try again when nothing could serve the request; None for the client's. A request
                that belongs to a sequence is never sent twice.

        Raises:
            InvalidArgument: an input does not fit; NotFound: no such model or version; Unavailable: deployed, but
            nothing is ready; ResourceExhausted: queue full; DeadlineExceeded; and the rest of penstock.errors.
        """
        request = InferRequest(model, inputs, version, outputs, parameters, request_id, priority)
        message = payload.build(request, await self._specs_for(request))
        allowed = self._connection.retries if retries is None else retries
        if any(name in message.parameters for name in _SEQUENCE):
            allowed = 0
        try:
            response, trailers = await self._connection.call_with_trailers(
                self._connection.stubs.inference.ModelInfer,
                message,
                timeout=timeout,
                retries=allowed,
                headers={REQUEST_ID: request_id} if request_id else None,
            )
        except InvalidArgument:
            # The model may have changed since its metadata was kept.
            self._specs.pop((message.model_name, message.model_version), None)
            raise
        return InferResult(response, Trailers.read(trailers))

    async def stream(
        self, requests: AsyncIterable[InferRequest] | Iterable[InferRequest], *, timeout: float | None = None
    ) -> AsyncGenerator[StreamReply]:
        """Sends requests as they come and yields a reply for each, in their order; an error does not end the stream.

        timeout: seconds for the whole stream; None for no deadline. Leaving the iterator cancels what is under way. An
        exception of `requests` is raised after the replies to what was sent before it. Nothing is sent twice.
        """
        failure: list[Exception] = []

        async def messages() -> AsyncIterator[oip.ModelInferRequest]:
            # grpc.aio turns an exception of a request iterator into a cancellation: kept here, raised below.
            try:
                async for request in _each(requests):
                    yield payload.build(request, await self._specs_for(request))
            except Exception as error:
                failure.append(error)

        call = self._connection.stubs.inference.ModelStreamInfer(
            messages(), timeout=timeout, metadata=self._connection.headers()
        )
        try:
            async with aclosing(self._connection.read(call)) as answers:
                async for answer in answers:
                    yield StreamReply.read(answer)
        except Internal as error:
            if error.message == _LOST_STATUS:
                raise Unavailable("the server ended the stream") from None
            raise
        if failure:
            raise failure[0]

    async def server_live(self, *, timeout: float | None = None) -> bool:
        """Whether the server answers."""
        stub = self._connection.stubs.inference
        return (await self._connection.read_only(stub.ServerLive, oip.ServerLiveRequest(), timeout)).live

    async def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server takes inference requests."""
        stub = self._connection.stubs.inference
        return (await self._connection.read_only(stub.ServerReady, oip.ServerReadyRequest(), timeout)).ready

    async def server_metadata(self, *, timeout: float | None = None) -> oip.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return await self._connection.read_only(
            self._connection.stubs.inference.ServerMetadata, oip.ServerMetadataRequest(), timeout
        )

    async def model_ready(self, model: str, version: Version = None, *, timeout: float | None = None) -> bool:
        """Whether a model (that version of it) takes requests now."""
        request = oip.ModelReadyRequest(name=names.model(model, "model"), version=version_text(version))
        return (await self._connection.read_only(self._connection.stubs.inference.ModelReady, request, timeout)).ready

    async def model_metadata(
        self, model: str, version: Version = None, *, timeout: float | None = None
    ) -> oip.ModelMetadataResponse:
        """Inputs and outputs of a model, with the batch dimension as -1, and its ready versions."""
        request = oip.ModelMetadataRequest(name=names.model(model, "model"), version=version_text(version))
        return await self._connection.read_only(self._connection.stubs.inference.ModelMetadata, request, timeout)

    async def model_config(
        self, model: str, version: Version = None, *, timeout: float | None = None
    ) -> oip.ModelConfig:
        """Configuration of a model in Triton's form."""
        request = oip.ModelConfigRequest(name=names.model(model, "model"), version=version_text(version))
        return (await self._connection.read_only(self._connection.stubs.inference.ModelConfig, request, timeout)).config

    async def model_statistics(
        self, model: str = "", version: Version = None, *, timeout: float | None = None
    ) -> list[oip.ModelStatistics]:
        """Counts and times per version; of every model when none is named."""
        name = names.model(model, "model") if model else ""
        request = oip.ModelStatisticsRequest(name=name, version=version_text(version))
        answer = await self._connection.read_only(self._connection.stubs.inference.ModelStatistics, request, timeout)
        return list(answer.model_stats)

    async def _specs_for(self, request: InferRequest) -> Specs | None:
        """The model's inputs, asked for once, when the request cannot be built without them."""
        if not payload.needs_metadata(request.inputs):
            return None
        key = (request.model, version_text(request.version))
        if key not in self._specs:
            metadata = await self.model_metadata(request.model, request.version)
            self._specs[key] = {spec.name: spec for spec in metadata.inputs}
        return self._specs[key]


async def _each(requests: AsyncIterable[InferRequest] | Iterable[InferRequest]) -> AsyncIterator[InferRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
