"""The inference protocol over grpcio, on the same seam as penstock/wire: an independent server for tests to talk to.

`service_handler` turns handlers into a gRPC service: deadline, headers, error table, trailers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from penstock import errors
from penstock.channel import error_trailer, status_of, text_of
from penstock.kit.server import writer
from penstock.wire.call import CALLER_OF_CALL, REQUEST_ID, REQUEST_ID_OF_CALL, Call, Handler
from penstock.wire.client import SERVICE
from penstock.wire.stream import answer_stream

_log = logging.getLogger(__name__)


def service_handler(
    unary: Mapping[str, Handler], *, stream_infer: Handler | None = None, default_timeout: float
) -> grpc.GenericRpcHandler:
    """The gRPC service of the inference protocol.

    unary: a handler per bare method name; stream_infer: answers each message of ModelStreamInfer, None to leave the
    method out; default_timeout: seconds granted to a call that brings no deadline.
    """
    methods: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(_unary(name, handler, default_timeout))
        for name, handler in unary.items()
    }
    if stream_infer is not None:
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_stream(stream_infer, default_timeout))
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _unary(name: str, handler: Handler, default_timeout: float) -> Any:
    async def serve(payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        call = _call(name, payload, context, default_timeout)
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                answer = await handler(call)
        except errors.PenstockError as error:
            return await _fail(context, error, call)
        except TimeoutError:
            if not limit.expired():
                raise
            return await _fail(context, errors.DeadlineExceeded("the deadline passed before an answer was ready"), call)
        if answer.trailers:
            context.set_trailing_metadata(tuple(answer.trailers.items()))
        return bytes(answer.payload)

    return serve


def _stream(handler: Handler, default_timeout: float) -> Any:
    async def serve(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        template = _call("ModelInfer", b"", context, default_timeout)
        # A stream without a deadline has no end; each of its requests has one.
        ends = math.inf if context.time_remaining() is None else template.deadline
        timeout = default_timeout if ends == math.inf else math.inf
        try:
            await answer_stream(requests, writer(context), handler, template, timeout, ends)
        except errors.PenstockError as error:
            await _fail(context, error, template)

    return serve


def _call(name: str, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes], default_timeout: float) -> Call:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    if request_id := REQUEST_ID_OF_CALL.get():
        # The one that the log has: the caller's may be missing, or not fit to be shown.
        headers[REQUEST_ID] = request_id
    remaining = context.time_remaining()
    deadline = asyncio.get_running_loop().time() + (default_timeout if remaining is None else remaining)
    return Call(name, payload, deadline, headers, CALLER_OF_CALL.get())


async def _fail(context: grpc.aio.ServicerContext[bytes, bytes], error: errors.PenstockError, call: Call) -> bytes:
    if error.detail:
        _log.warning("%s answered %s: %s (%s)", call.method, error.code.name, error.message, error.detail)
    trailer = error_trailer(error, call.headers.get(REQUEST_ID, ""))
    await context.abort(status_of(error), text_of(error), trailing_metadata=(trailer,))
    raise AssertionError("abort always raises")
