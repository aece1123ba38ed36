"""The inference protocol as methods of a Server: what `penstock.wire.server.service_handler` is for grpcio."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from penstock.wire.call import Call, Direct, Handler
from penstock.wire.stream import answer_stream

from .client import SERVICE
from .head import Method, StreamHandler, Write


def inference_methods(
    unary: Mapping[str, Handler],
    *,
    direct: Mapping[str, Direct] = MappingProxyType({}),
    stream_infer: Handler | None = None,
    default_timeout: float,
) -> dict[str, Method]:
    """By path. unary: a handler per bare method name; direct: asked before the handler of that name; stream_infer:
    answers each message of ModelStreamInfer, None to leave the method out; default_timeout: seconds granted to a call
    that brings no deadline."""
    methods = {
        f"/{SERVICE}/{name}": Method(name, handler, direct.get(name), default_timeout=default_timeout)
        for name, handler in unary.items()
    }
    if stream_infer is not None:
        methods[f"/{SERVICE}/ModelStreamInfer"] = Method(
            "ModelStreamInfer", stream=_stream_infer(stream_infer, default_timeout)
        )
    return methods


def _stream_infer(handler: Handler, default_timeout: float) -> StreamHandler:
    async def serve(call: Call, requests: AsyncIterator[bytes], write: Write) -> None:
        # A stream without a deadline has no end; each of its requests has one.
        timeout = default_timeout if call.deadline == math.inf else math.inf
        await answer_stream(requests, write, handler, replace(call, method="ModelInfer"), timeout, call.deadline)

    return serve
