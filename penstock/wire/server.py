"""The serving side of the data plane: the inference protocol over gRPC, bytes in and bytes out.

`service_handler` turns handlers into a gRPC service. What it does for each call: deadline, headers, error table,
trailers. grpcio underneath, without its message classes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from penstock import errors
from penstock.channel import error_trailer, status_of
from penstock.wire.call import REQUEST_ID, Call, Handler
from penstock.wire.client import SERVICE
from penstock.wire.stream import stream_answers


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
            async with asyncio.timeout_at(call.deadline):
                answer = await handler(call)
        except errors.PenstockError as error:
            return await _fail(context, error, call)
        except TimeoutError:
            return await _fail(context, errors.DeadlineExceeded("the deadline passed before an answer was ready"), call)
        if answer.trailers:
            context.set_trailing_metadata(tuple(answer.trailers.items()))
        return answer.payload

    return serve


def _stream(handler: Handler, default_timeout: float) -> Any:
    async def serve(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        template = _call("ModelInfer", b"", context, default_timeout)
        try:
            async for message in stream_answers(requests, handler, template, _timeout(context, default_timeout)):
                yield message
        except errors.PenstockError as error:
            await _fail(context, error, template)

    return serve


def _timeout(context: grpc.aio.ServicerContext[bytes, bytes], default: float) -> float:
    remaining = context.time_remaining()
    return default if remaining is None else remaining


def _call(name: str, payload: bytes, context: grpc.aio.ServicerContext[bytes, bytes], default_timeout: float) -> Call:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    deadline = asyncio.get_running_loop().time() + _timeout(context, default_timeout)
    return Call(name, payload, deadline, headers)


async def _fail(context: grpc.aio.ServicerContext[bytes, bytes], error: errors.PenstockError, call: Call) -> bytes:
    trailer = error_trailer(error, call.headers.get(REQUEST_ID, ""))
    await context.abort(status_of(error), error.message, trailing_metadata=(trailer,))
    raise AssertionError("abort always raises")
