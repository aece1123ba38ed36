"""Servers with the same behaviours over our HTTP/2 and over grpcio, for the transport's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from penstock import errors
from penstock.wire.call import CALLER_OF_CALL, Answer, Call
from penstock.wire.http2 import Method, Server
from penstock.wire.http2.client import Peer

BIG = 80 << 20
OPTIONS = (("grpc.max_send_message_length", BIG), ("grpc.max_receive_message_length", BIG))
MEGABYTES_64 = bytes(range(256)) * (1 << 18)


class Service:
    """One behaviour per method, for both kinds of server."""

    def __init__(self) -> None:
        self.cancelled, self.begun, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.in_hand = 0

    async def echo(self, call: Call) -> Answer:
        return Answer(call.payload, {"penstock-worker": "w-1", "x-seen": call.headers.get("x-sent", "")})

    async def hang(self, call: Call) -> Answer:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Answer(b"late")

    async def missing(self, call: Call) -> Answer:
        raise errors.NotFound("no model 'é'", field="model_name")

    async def seen(self, call: Call) -> Answer:
        return Answer(f"{call.headers.get('x-raw-bin', '')} {CALLER_OF_CALL.get()} {call.remaining():.1f}".encode())

    async def double(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> Mapping[str, str]:
        count = 0
        async for each in requests:
            count += 1
            await write(each * 2)
        return {"x-count": str(count)}

    async def repeat(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        async for each in requests:
            for _ in range(5):
                await write(each)

    async def total(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        size = 0
        async for each in requests:
            size += len(each)
        await write(str(size).encode())

    async def refuse(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        await write(b"one")
        raise errors.ResourceExhausted("no more")

    async def forever(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        self.begun.set()
        try:
            while True:
                await write(bytes(100_000))
                self.in_hand += 100_000
        finally:  # cancelled, or in grpcio a write that failed
            self.cancelled.set()

    def methods(self) -> dict[str, Method]:
        unary = {"Echo": self.echo, "Hang": self.hang, "Missing": self.missing, "Seen": self.seen}
        streams = {
            "Double": self.double,
            "Repeat": self.repeat,
            "Total": self.total,
            "Refuse": self.refuse,
            "Forever": self.forever,
        }
        found = {f"/t.T/{name}": Method(name, handler) for name, handler in unary.items()}
        found |= {f"/t.T/{name}": Method(name, stream=handler) for name, handler in streams.items()}
        return found


@asynccontextmanager
async def ours(service: Service, **more: Any) -> AsyncIterator[tuple[Server, str]]:
    server = Server(service.methods(), **more)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.close()


@asynccontextmanager
async def theirs(service: Service) -> AsyncIterator[str]:
    """grpcio's server with the same behaviours."""

    def unary(handler: Any) -> Any:
        async def serve(payload: bytes, context: Any) -> bytes:
            headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            left = context.time_remaining()
            deadline = asyncio.get_running_loop().time() + (60 if left is None else left)
            try:
                answer: Answer = await handler(Call("m", payload, deadline, headers))
            except errors.PenstockError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, error.message)
            context.set_trailing_metadata(tuple((k, v) for k, v in answer.trailers.items() if v))
            return bytes(answer.payload)

        return grpc.unary_unary_rpc_method_handler(serve)

    def stream(handler: Any) -> Any:
        async def serve(requests: Any, context: Any) -> None:
            try:
                trailers = await handler(Call("m", b"", float("inf")), requests, context.write)
            except errors.PenstockError as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)
            context.set_trailing_metadata(tuple((trailers or {}).items()))

        return grpc.stream_stream_rpc_method_handler(serve)

    methods = {
        method.name: unary(method.unary) if method.unary else stream(method.stream)
        for method in service.methods().values()
    }
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(peer: Peer, method: str, payload: bytes = b"x", seconds: float = 20.0, **headers: str) -> Answer:
    return await peer.unary(f"/t.T/{method}", payload, deadline=soon(seconds), headers=headers)


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


@asynccontextmanager
async def grpcio_to(service: Service, **more: Any) -> AsyncIterator[Any]:
    async with (
        ours(service, **more) as (_, address),
        grpc.aio.insecure_channel(address, options=OPTIONS) as channel,
    ):
        yield channel
