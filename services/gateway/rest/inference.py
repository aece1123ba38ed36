"""The inference protocol's routes over the handlers that gRPC uses too: HTTP in, messages between, HTTP out.

Paths, statuses and shapes are Triton's (docs/rest.md says where we add). `{version}` is a number or an alias.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message

from penstock.errors import InvalidArgument, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import BATCH_SIZE, QUEUE_MICROSECONDS, WORKER, Answer, Call, Done, Handler, Pending

from . import binary, infer_codec, json_text, prepared
from .exchange import Exchange
from .fields import INTEGER, TEXT, Field, read_body
from .messages import to_plain
from .replies import Reply, json_reply, plain_error

Response = TypeVar("Response", bound=Message)
T = TypeVar("T")

OCTETS: Final = "application/octet-stream"
SHOWN_TRAILERS: Final = (WORKER, BATCH_SIZE, QUEUE_MICROSECONDS)
MAX_CONTROL_BYTES: Final = 64 << 10
"""Body of a repository request that carries no files."""
REGION: Final = (
    Field("key", TEXT, "Name of a POSIX shared memory object, such as `/frames`.", required=True),
    Field("offset", INTEGER, "Where in the object the region begins, in bytes."),
    Field("byte_size", INTEGER, "Bytes of the region.", required=True),
)
"""What a registration holds."""

_INLINE_BYTES: Final = 256 << 10
"""Bodies up to here are converted on the loop; it takes a few milliseconds at most."""


class Inference(Protocol):
    """What answers inference calls, whatever the transport."""

    def handlers(self) -> Mapping[str, Handler]:
        """Handlers of the unary methods by bare name."""

    def direct(self, call: Call, done: Done) -> Pending | None:
        """ModelInfer without a task, where that can be (penstock.wire.call.Direct)."""


class InferenceRoutes:
    """Answers for the routes of table.py. ready: None while the server takes requests, else the public reason."""

    def __init__(self, inference: Inference, ready: Callable[[], str | None]) -> None:
        self._handlers, self._direct = inference.handlers(), inference.direct
        self._prepared = prepared.Prepared()
        self._ready = ready
        # One large body at a time becomes Python objects, so their memory does not add up.
        self._large = asyncio.Lock()

    async def live(self, exchange: Exchange) -> Reply:
        return json_reply({"live": True})

    async def ready(self, exchange: Exchange) -> Reply:
        reason = self._ready()
        return json_reply({"ready": True}) if reason is None else plain_error(400, f"not ready: {reason}")

    async def server_metadata(self, exchange: Exchange) -> Reply:
        message, _ = await self._call(
            exchange, "ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse
        )
        return json_reply(to_plain(message, exact=False))

    async def model_metadata(self, exchange: Exchange) -> Reply:
        request = oip.ModelMetadataRequest(**_names(exchange))
        message, _ = await self._call(exchange, "ModelMetadata", request, oip.ModelMetadataResponse)
        plain = to_plain(message, exact=False)
        if not plain["properties"]:
            del plain["properties"]
        return json_reply(plain)

    async def model_ready(self, exchange: Exchange) -> Reply:
        request = oip.ModelReadyRequest(**_names(exchange))
        message, _ = await self._call(exchange, "ModelReady", request, oip.ModelReadyResponse)
        if not message.ready:
            return plain_error(400, "Model version not ready")
        return json_reply({"name": request.name, "ready": True})

    async def config(self, exchange: Exchange) -> Reply:
        config = await self._config(exchange)
        return json_reply(to_plain(config, exact=False))

    async def stats(self, exchange: Exchange) -> Reply:
        request = oip.ModelStatisticsRequest(**_names(exchange))
        message, _ = await self._call(exchange, "ModelStatistics", request, oip.ModelStatisticsResponse)
        return json_reply(to_plain(message, exact=False))

    async def infer(self, exchange: Exchange) -> Reply:
        """Any request; those that can do without a task are answered by `infer_directly`."""
        json_size = binary.header_length(exchange.headers.get(binary.HEADER))
        body = await exchange.body()
        if json_size == 0:
            wanted = infer_codec.ALL_BINARY
            request = binary.raw_request(await self._config(exchange), body)
        else:
            request, wanted = await self._convert(len(body), lambda: infer_codec.read_request(body, json_size))
        request.model_name, request.model_version = exchange.path["model"], exchange.path.get("version", "")
        response, trailers = await self._call(exchange, "ModelInfer", request, oip.ModelInferResponse)
        size = sum(map(len, response.raw_output_contents))
        return _inferred(
            await self._convert(size, lambda: infer_codec.write_response(response, wanted)), shown(trailers)
        )

    def infer_directly(self, exchange: Exchange) -> bool:
        """Answers a request whose body is there, without a task; False where it takes one."""
        headers, path, body = exchange.headers, exchange.path, exchange.received
        json_size = binary.header_length(headers.get(binary.HEADER))
        if json_size == 0 or (len(body) if json_size is None else json_size) > _INLINE_BYTES:
            return False
        payload, kind = self._prepared.request(path["model"], path.get("version", ""), body, json_size)
        forwarded = exchange.head.forwarded
        call = Call(
            "ModelInfer",
            payload,
            exchange.deadline,
            forwarded,
            exchange.caller,
            exchange.request_id,
            origin=exchange.origin,
        )
        done = partial(self._landed, exchange, kind)
        exchange.leaving_cancels = True
        pending = self._direct(call, done)
        if pending is not None:
            exchange.bridge.await_end(exchange, pending)
        else:
            exchange.bridge.run(exchange, self._handlers["ModelInfer"](call), done)
        return True

    def _landed(
        self, exchange: Exchange, kind: prepared.Kind, answer: Answer | None, problem: BaseException | None
    ) -> None:
        """The end of a call that `infer_directly` began."""
        if answer is None:
            exchange.fail(problem)
            return
        payload, headers = answer.payload, shown(answer.trailers)
        if len(payload) <= _INLINE_BYTES or kind.in_binary:
            try:
                exchange.answer(_inferred(kind.written(payload), headers))
            except Exception as failure:
                exchange.fail(failure)
        else:
            exchange.bridge.start(exchange, self._write_large(kind, payload, headers))

    async def _write_large(self, kind: prepared.Kind, payload: bytes, headers: dict[str, str]) -> Reply:
        return _inferred(await self._convert(len(payload), lambda: kind.in_full(payload)), headers)

    async def index(self, exchange: Exchange) -> Reply:
        document = await _control_body(exchange, MAX_CONTROL_BYTES)
        ready = document.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidArgument("ready: must be true or false", field="ready")
        request = oip.RepositoryIndexRequest(ready=ready)
        message, _ = await self._call(exchange, "RepositoryIndex", request, oip.RepositoryIndexResponse)
        return json_reply([_index_entry(model) for model in message.models])

    async def load(self, exchange: Exchange) -> Reply:
        document = await _control_body(exchange, None)
        request = oip.RepositoryModelLoadRequest(model_name=exchange.path["model"])
        _read_parameters(document, request.parameters)
        await self._call(exchange, "RepositoryModelLoad", request, oip.RepositoryModelLoadResponse)
        return Reply()

    async def unload(self, exchange: Exchange) -> Reply:
        document = await _control_body(exchange, MAX_CONTROL_BYTES)
        request = oip.RepositoryModelUnloadRequest(model_name=exchange.path["model"])
        _read_parameters(document, request.parameters)
        await self._call(exchange, "RepositoryModelUnload", request, oip.RepositoryModelUnloadResponse)
        return Reply()

    async def regions(self, exchange: Exchange) -> Reply:
        request = oip.SystemSharedMemoryStatusRequest(name=exchange.path.get("region", ""))
        message, _ = await self._call(
            exchange, "SystemSharedMemoryStatus", request, oip.SystemSharedMemoryStatusResponse
        )
        return json_reply([to_plain(message.regions[name], exact=False) for name in sorted(message.regions)])

    async def register(self, exchange: Exchange) -> Reply:
        given = read_body(await _control_body(exchange, MAX_CONTROL_BYTES), REGION)
        request = oip.SystemSharedMemoryRegisterRequest(name=exchange.path["region"], **given)
        await self._call(exchange, "SystemSharedMemoryRegister", request, oip.SystemSharedMemoryRegisterResponse)
        return Reply()

    async def unregister(self, exchange: Exchange) -> Reply:
        request = oip.SystemSharedMemoryUnregisterRequest(name=exchange.path.get("region", ""))
        await self._call(exchange, "SystemSharedMemoryUnregister", request, oip.SystemSharedMemoryUnregisterResponse)
        return Reply()

    async def cuda(self, exchange: Exchange) -> Reply:
        raise Unsupported("CUDA shared memory is not offered; use system shared memory, or send the tensors' bytes")

    async def named_repository(self, exchange: Exchange) -> Reply:
        raise Unsupported("naming a repository is not supported; leave the name out of the path")

    async def unsupported(self, exchange: Exchange) -> Reply:
        raise Unsupported("this server does not implement this extension; GET /v2 lists those that it does")

    async def _config(self, exchange: Exchange) -> oip.ModelConfig:
        request = oip.ModelConfigRequest(**_names(exchange))
        message, _ = await self._call(exchange, "ModelConfig", request, oip.ModelConfigResponse)
        return message.config

    async def _call(
        self, exchange: Exchange, method: str, request: Message, response: type[Response]
    ) -> tuple[Response, Mapping[str, str]]:
        handler = self._handlers.get(method)
        if handler is None:
            raise Unsupported(f"{method} is not supported by this server")
        call = Call(
            method,
            request.SerializeToString(),
            exchange.deadline,
            exchange.head.forwarded,
            exchange.caller,
            exchange.request_id,
            origin=exchange.origin,
        )
        answer = await exchange.while_connected(handler(call))
        return response.FromString(answer.payload), answer.trailers

    async def _convert(self, size: int, work: Callable[[], T]) -> T:
        if size <= _INLINE_BYTES:
            return work()
        async with self._large:
            return await asyncio.to_thread(work)


def _names(exchange: Exchange) -> dict[str, str]:
    return {"name": exchange.path.get("model", ""), "version": exchange.path.get("version", "")}


def _inferred(written: infer_codec.Written, headers: dict[str, str]) -> Reply:
    if written.json_size is None:
        return Reply(body=written.body, headers=headers)
    headers[binary.HEADER] = str(written.json_size)
    return Reply(body=written.body, media_type=OCTETS, headers=headers)


def shown(trailers: Mapping[str, str]) -> dict[str, str]:
    """The trailers that become headers, where they can."""
    headers = {}
    for name in SHOWN_TRAILERS:
        value = trailers.get(name)
        if value and value.isascii() and value.isprintable():
            headers[name] = value
    return headers


def _index_entry(model: oip.RepositoryIndexResponse.ModelIndex) -> dict[str, str]:
    """A model that was never loaded shows only its name, as in Triton."""
    entry = {"name": model.name}
    if model.version:
        entry["version"] = model.version
    if model.state:
        entry |= {"state": model.state, "reason": model.reason}
    return entry


async def _control_body(exchange: Exchange, limit: int | None) -> dict[str, Any]:
    body = await exchange.body(limit)
    document = json_text.parse(bytes(body)) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidArgument("body: must be a JSON object", field="body")
    return document


def _read_parameters(document: Mapping[str, Any], target: Any) -> None:
    """`file:` parameters are base64 in JSON and bytes in the message (Triton, model_repository extension)."""
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidArgument("parameters: must be an object", field="parameters")
    for name, value in parameters.items():
        field = f"parameters.{name[:64]}"
        match value:
            case bool():
                target[name].bool_param = value
            case int() if -(1 << 63) <= value < 1 << 63:
                target[name].int64_param = value
            case str() if name.startswith("file:"):
                target[name].bytes_param = _decoded(value, field)
            case str():
                target[name].string_param = value
            case _:
                raise InvalidArgument(f"{field}: must be a boolean, an integer or a string", field=field)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{field}: must be base64", field=field) from None
