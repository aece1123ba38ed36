"""Servers of the inference protocol for tests of its transport: one behaviour for every method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from penstock.channel import OPTIONS, dial
from penstock.wire import Answer, Call
from penstock.wire.client import SERVICE
from tests.harness.grpcio_service import service_handler

STREAM = f"/{SERVICE}/ModelStreamInfer"
Behaviour = Callable[[Call], Awaitable[Answer]]


@asynccontextmanager
async def serving(behaviour: Behaviour, *, default_timeout: float = 60.0, port: int = 0) -> AsyncIterator[str]:
    """A server whose every method does `behaviour`; the address."""
    server = grpc.aio.server(options=OPTIONS)
    handler = service_handler({"ModelInfer": behaviour}, stream_infer=behaviour, default_timeout=default_timeout)
    server.add_generic_rpc_handlers((handler,))
    number = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{number}"
    finally:
        await server.stop(None)


def channel_to(address: str) -> Any:
    """A channel; grpcio's types know no calls of bare bytes."""
    return dial(address)


class Held:
    """A handler that says when it began and how it ended, and waits in between."""

    def __init__(self) -> None:
        self.begun, self.release, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, call: Call) -> Answer:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Answer(b"late")
