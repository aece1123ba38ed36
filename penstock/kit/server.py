"""The gRPC server of every service: authentication, request ids, the error table, metrics, health, reflection.

A servicer sees only calls from known callers and raises PenstockError; what it raises otherwise is logged under the
request id and leaves as INTERNAL without its text.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from penstock import errors, signals
from penstock.channel import MAX_MESSAGE_BYTES, error_trailer, status_of, text_of
from penstock.kit import identity
from penstock.kit.health import Health
from penstock.kit.log import REQUEST_ID_OF_CALL, get_logger
from penstock.kit.metrics import counter
from penstock.wire.client import SERVICE as INFERENCE

OPEN_METHODS = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
"""What anybody may call, so that load balancers need no token."""

OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A second process on the same port must fail to start rather than share its connections.
    ("grpc.so_reuseport", 0),
    # Clients of this project ping every 10 s; gRPC's default would answer that with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def build_server(authenticator: identity.Authenticator) -> tuple[grpc.aio.Server, Health]:
    """A server without services, with its health service (NOT_SERVING until told otherwise)."""
    server = grpc.aio.server(interceptors=[_Gate(authenticator)], options=OPTIONS)
    health = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server, health


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Lets tools such as grpcurl list `services` (full names) and read their messages."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            pool.AddSerializedFile(file.serialized_pb)

    for name, module in sorted(sys.modules.items()):
        if name.startswith(("penstock.", "grpc_health.", "grpc_reflection.")) and name.endswith("_pb2"):
            add(module.DESCRIPTOR)
    names = (*services, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)


class _Gate(grpc.aio.ServerInterceptor):
    """The one interceptor. It stands before everything: what it refuses is neither read nor decoded."""

    def __init__(self, authenticator: identity.Authenticator) -> None:
        self._authenticator = authenticator
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        self._rpcs = counter(signals.RPCS)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        metadata: Any = details.invocation_metadata or ()
        try:
            self._enter(details.method, {key: value for key, value in metadata if isinstance(value, str)})
        except errors.Unauthenticated as refusal:
            if handler is not None:
                self._count(details.method, status_of(refusal).name)
            return _refusal(refusal)
        if handler is None:
            return None
        known = self._wrapped.get(details.method)
        if known is None or known[0] is not handler:
            known = (handler, self._wrap(handler, details.method))
            self._wrapped[details.method] = known
        return known[1]

    def _enter(self, method: str, headers: Mapping[str, str]) -> None:
        """Says who calls, to the task of this call, which is the one that will serve it; raises Unauthenticated."""
        given = headers.get("x-request-id", "")
        REQUEST_ID_OF_CALL.set(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        identity.set_caller("" if method in OPEN_METHODS else self._authenticator.authenticate(headers))

    def _wrap(self, handler: Any, method: str) -> Any:
        make = _MAKERS[(handler.request_streaming, handler.response_streaming)]
        behaviour = (
            (handler.stream_stream if handler.response_streaming else handler.stream_unary)
            if handler.request_streaming
            else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
        )
        guarded = self._guarded(_writing(behaviour) if handler.response_streaming else behaviour, method)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, behaviour: Any, method: str) -> Any:
        async def serve(request: Any, context: Any) -> Any:
            code = "OK"
            try:
                return await behaviour(request, context)
            except BaseException as raised:
                code = _code(raised, context)
                await _abort(raised, context)
            finally:
                self._count(method, code)

        return serve

    def _count(self, method: str, code: str) -> None:
        # The data plane counts for itself, per model.
        if not method.startswith(f"/{INFERENCE}/"):
            self._rpcs.labels(method, code).inc()


_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _writing(behaviour: Any) -> Any:
    """A streaming behaviour as a coroutine that writes: servicers are generators, or coroutines that write already.

    grpcio leaves a generator at its `yield` when the caller goes; here it is closed, in the task that ran it.
    """

    async def serve(request: Any, context: Any) -> None:
        running = behaviour(request, context)
        if inspect.isawaitable(running):
            await running
            return
        write = writer(context)
        async with aclosing(running) as messages:
            async for message in messages:
                await write(message)

    return serve


def _refusal(error: errors.PenstockError) -> Any:
    """Answers a call of any shape with an error: a streaming handler is called before a message is read."""

    async def refuse(_: Any, context: Any) -> None:
        await _abort(error, context)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _code(raised: BaseException, context: Any) -> str:
    if isinstance(raised, errors.PenstockError):
        return status_of(raised).name
    if isinstance(raised, asyncio.CancelledError):
        return "CANCELLED"
    if isinstance(raised, grpc.aio.AbortError):
        # grpc.aio keeps the number of the status, whatever its annotation says.
        return _STATUS_NAMES.get(context.code(), "INTERNAL")
    return "INTERNAL"


_STATUS_NAMES: dict[Any, str] = {key: status.name for status in grpc.StatusCode for key in (status, status.value[0])}


async def _abort(raised: BaseException, context: Any) -> None:
    """Ends the call by the error table; passes on what is not an error of the service."""
    request_id = REQUEST_ID_OF_CALL.get()
    if isinstance(raised, asyncio.CancelledError | grpc.aio.AbortError):
        raise raised
    if isinstance(raised, errors.PenstockError):
        error = raised
        if error.detail:
            get_logger().warning("call_failed", code=error.code.name, message=error.message, detail=error.detail)
    elif isinstance(raised, Exception):
        get_logger().exception("call_crashed", exc_info=raised)
        error = errors.Internal(f"internal error; the log has it under request id {request_id}")
    else:
        raise raised
    await context.abort(status_of(error), text_of(error), trailing_metadata=(error_trailer(error, request_id),))


def writer(context: Any) -> Callable[[Any], Awaitable[None]]:
    """`context.write`, where a caller who left during a write is a cancellation, as everywhere else."""

    async def write(message: Any) -> None:
        try:
            await context.write(message)
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None

    return write
