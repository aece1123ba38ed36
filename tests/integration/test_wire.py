"""The data plane over real sockets: what a handler sees, what a caller gets, and what happens on the way."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import grpc
import pytest

from penstock import errors
from penstock.channel import MAX_TEXT_BYTES, error_of
from penstock.wire import Answer, Call
from penstock.wire.client import SERVICE, ConnectionLost, Peer
from tests.harness.etcd import free_port
from tests.harness.wire import Behaviour, Held, channel_to, serving


@asynccontextmanager
async def peer_of(behaviour: Behaviour, *, token: str = "") -> AsyncIterator[Peer]:
    async with serving(behaviour) as address:
        peer = Peer(address, token=token)
        yield peer
        await peer.close()


async def ask(
    peer: Peer, payload: bytes = b"", seconds: float = 60.0, headers: Mapping[str, str] = MappingProxyType({})
) -> Answer:
    deadline = asyncio.get_running_loop().time() + seconds
    return await peer.unary("ModelInfer", payload, deadline=deadline, headers=headers)


async def echo(call: Call) -> Answer:
    return Answer(call.payload, {"penstock-worker": "w-1"})


# Unary.


async def test_bytes_headers_deadline_and_trailers_pass() -> None:
    seen: list[tuple[Call, float]] = []

    async def behaviour(call: Call) -> Answer:
        seen.append((call, call.remaining()))
        return await echo(call)

    async with peer_of(behaviour, token="t0ken") as peer:
        answer = await ask(peer, b"\x00\xff", seconds=40, headers={"penstock-version": "3", "x-request-id": "r-1"})
    assert answer.payload == b"\x00\xff"
    assert answer.trailers["penstock-worker"] == "w-1"
    call, remaining = seen[0]
    assert (call.method, call.payload) == ("ModelInfer", b"\x00\xff")
    assert 10 < remaining < 41  # gRPC rounds a deadline up on its way
    assert call.headers["penstock-version"] == "3"
    assert call.headers["authorization"] == "Bearer t0ken"


async def test_a_call_without_a_deadline_gets_the_default() -> None:
    left: list[float] = []

    async def behaviour(call: Call) -> Answer:
        left.append(call.remaining())
        return Answer(b"")

    async with serving(behaviour, default_timeout=50) as address, channel_to(address) as channel:
        await channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"")
    assert 20 < left[0] <= 50


async def test_a_header_that_grpc_refuses_costs_only_itself() -> None:
    async def behaviour(call: Call) -> Answer:
        return Answer(",".join(sorted(key for key in call.headers if key.startswith("x-"))).encode())

    async with peer_of(behaviour) as peer:
        headers = {"x-one": "caf\xe9", "x-two": "a\nb", "x-three": "\x1b[2J", "x-good": "yes"}
        assert (await ask(peer, headers=headers)).payload == b"x-good"


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code.name)
async def test_errors_keep_their_class(kind: type[errors.PenstockError]) -> None:
    async def behaviour(call: Call) -> Answer:
        raise kind("what is wrong, in ünïcode", field="inputs[0]", detail="never sent")

    async with peer_of(behaviour) as peer:
        with pytest.raises(errors.PenstockError) as caught:
            await ask(peer)
    assert type(caught.value) is errors.BY_NAME[kind.code.name]
    assert (caught.value.message, caught.value.field) == ("what is wrong, in ünïcode", "inputs[0]")
    assert caught.value.detail == ""


@pytest.mark.parametrize("letter", ["x", "é", "𝕏"])
async def test_a_long_error_arrives_shortened(letter: str) -> None:
    async def behaviour(call: Call) -> Answer:
        raise errors.InvalidArgument(letter * 50_000, field=letter * 5_000)

    async with peer_of(behaviour) as peer:
        with pytest.raises(errors.InvalidArgument) as caught:
            await ask(peer)
    assert len(caught.value.message.encode()) <= MAX_TEXT_BYTES
    assert caught.value.message.startswith(letter) and caught.value.message.endswith("…")


async def test_the_detail_is_logged_where_it_was_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def behaviour(call: Call) -> Answer:
        raise errors.Unavailable("not now", detail="disk sda1 is gone")

    with caplog.at_level(logging.WARNING):
        async with peer_of(behaviour) as peer:
            with pytest.raises(errors.Unavailable, match="not now") as caught:
                await ask(peer)
    assert not isinstance(caught.value, ConnectionLost)
    assert "disk sda1 is gone" in caplog.text


async def test_the_deadline_ends_caller_and_handler() -> None:
    held = Held()
    async with peer_of(held) as peer:
        with pytest.raises(errors.DeadlineExceeded):
            await ask(peer, seconds=1)
        async with asyncio.timeout(30):
            await held.cancelled.wait()
        with pytest.raises(errors.DeadlineExceeded):
            await ask(peer, seconds=0)


async def test_a_handler_without_a_deadline_from_the_caller_is_ended_too() -> None:
    held = Held()
    async with serving(held, default_timeout=0.1) as address, channel_to(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/ModelInfer")(b"")
        async with asyncio.timeout(30):
            await held.cancelled.wait()
    assert isinstance(error_of(caught.value), errors.DeadlineExceeded)


async def test_a_timeout_of_the_handlers_own_is_not_the_callers_deadline() -> None:
    async def behaviour(call: Call) -> Answer:
        raise TimeoutError("a socket, somewhere inside")

    async with peer_of(behaviour) as peer:
        with pytest.raises(errors.PenstockError) as caught:
            await ask(peer)
    assert not isinstance(caught.value, errors.DeadlineExceeded)


async def test_cancelling_the_caller_reaches_the_handler() -> None:
    held = Held()
    async with peer_of(held) as peer:
        asking = asyncio.ensure_future(ask(peer))
        async with asyncio.timeout(30):
            await held.begun.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await held.cancelled.wait()


async def test_64_mib_pass_both_ways() -> None:
    payload = bytes(64 << 20)
    async with peer_of(echo) as peer:
        answer = await ask(peer, payload, seconds=60)
    assert len(answer.payload) == len(payload)


# Connections.


async def test_nobody_there_is_a_lost_connection() -> None:
    peer = Peer(f"127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionLost) as caught:
        await ask(peer)
    assert "127.0.0.1" not in caught.value.message
    await peer.close()


async def test_a_server_that_goes_away_is_a_lost_connection() -> None:
    held = Held()
    async with serving(held) as address:
        peer = Peer(address)
        asking = asyncio.ensure_future(ask(peer))
        async with asyncio.timeout(30):
            await held.begun.wait()
    with pytest.raises(ConnectionLost):
        await asking
    await peer.close()


async def test_closing_the_peer_is_a_lost_connection_not_a_cancelled_task() -> None:
    held = Held()
    async with serving(held) as address:
        peer = Peer(address)
        asking = asyncio.ensure_future(ask(peer))
        async with asyncio.timeout(30):
            await held.begun.wait()
            await peer.close()
            with pytest.raises(ConnectionLost):
                await asking


async def test_a_peer_finds_a_server_that_came_back() -> None:
    port = free_port()
    peer = Peer(f"127.0.0.1:{port}")
    for _ in range(2):
        async with serving(echo, port=port):
            async with asyncio.timeout(30):
                while True:
                    try:
                        assert (await ask(peer, b"x")).payload == b"x"
                        break
                    except ConnectionLost:
                        continue  # gRPC's own pause between attempts
    await peer.close()


async def test_an_error_from_something_else_is_understood() -> None:
    """A proxy, or a trailer of that name that is not ours."""

    async def behaviour(request: bytes, context: Any) -> bytes:
        junk = (("penstock-error-bin", b"\xff\xff\xff"),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", trailing_metadata=junk)
        raise AssertionError

    server = grpc.aio.server()
    methods: dict[str, Any] = {"ModelInfer": grpc.unary_unary_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = Peer(f"127.0.0.1:{port}")
    with pytest.raises(errors.ResourceExhausted, match="too many"):
        await ask(peer)
    await peer.close()
    await server.stop(None)


# Beside others.


@pytest.mark.parametrize(
    "order", [("tritonclient.grpc", "penstock.wire.client"), ("penstock.wire.client", "tritonclient.grpc")]
)
def test_tritonclient_lives_in_the_same_process(order: tuple[str, str]) -> None:
    script = (
        f"import {order[0]}, {order[1]}\n"
        "from penstock.oip import inference_pb2 as ours\n"
        "from tritonclient.grpc import service_pb2 as theirs\n"
        "sent = theirs.ModelInferRequest(model_name='digits', id='7').SerializeToString()\n"
        "assert ours.ModelInferRequest.FromString(sent).id == '7'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
