"""Our HTTP/2 with grpcio's, both ways, and with itself, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock import errors
from penstock.channel import error_of
from penstock.wire.http2 import Server
from penstock.wire.http2.client import ConnectionLost, Peer
from tests.harness.http2_services import MEGABYTES_64, Service, ask, grpcio_to, soon, theirs, within
from tests.harness.waiting import settled


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 600_000, 64 << 20])
async def test_grpcio_unary_of_any_size(size: int) -> None:
    async with grpcio_to(Service()) as channel:
        payload = MEGABYTES_64[:size]
        call = channel.unary_unary("/t.T/Echo")(payload, timeout=60, metadata=(("x-sent", "y"),))
        assert await call == payload
        trailers = await call.trailing_metadata()
        assert trailers["penstock-worker"] == "w-1"
        assert trailers["x-seen"] == "y"


async def test_grpcio_sees_errors_deadlines_and_binary_metadata() -> None:
    service = Service()
    async with grpcio_to(service, authenticate=lambda headers: headers["x-name"]) as channel:
        name = ("x-name", "anna")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Missing")(b"", metadata=(name,))
        error = error_of(caught.value)
        assert isinstance(error, errors.NotFound)
        assert (error.message, error.field) == ("no model 'é'", "model_name")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Hang")(b"", timeout=1, metadata=(name,))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await within(service.cancelled)
        said = await channel.unary_unary("/t.T/Seen")(b"", timeout=60, metadata=(name, ("x-raw-bin", b"\x00\xff\x10")))
        raw, caller, left = said.decode().split()
        assert raw.rstrip("=") == "AP8Q"
        assert caller == "anna"
        assert 30 < float(left) < 61  # gRPC rounds a deadline up on its way
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Nothing")(b"", metadata=(name,))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_grpcio_cancels() -> None:
    service = Service()
    async with grpcio_to(service) as channel:
        call = channel.unary_unary("/t.T/Hang")(b"")
        await within(service.begun)
        call.cancel()
        await within(service.cancelled)


async def test_grpcio_compressed_is_refused_cleanly() -> None:
    async with grpcio_to(Service()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Echo")(bytes(10_000), compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await channel.unary_unary("/t.T/Echo")(b"x") == b"x"


async def test_grpcio_streams_of_every_kind() -> None:
    async with grpcio_to(Service()) as channel:

        async def three() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d" % number

        both = channel.stream_stream("/t.T/Double")(three())
        assert [message async for message in both] == [b"00", b"11", b"22"]
        assert (await both.trailing_metadata())["x-count"] == "3"
        assert [m async for m in channel.unary_stream("/t.T/Repeat")(b"r")] == [b"r"] * 5
        large = [bytes(3_000_000)] * 10

        async def many() -> AsyncIterator[bytes]:
            for each in large:
                yield each

        assert await channel.stream_unary("/t.T/Total")(many()) == b"30000000"
        refused = channel.stream_stream("/t.T/Refuse")()
        assert await refused.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_slow_reader_holds_the_writer_and_its_leaving_stops_it() -> None:
    service = Service()
    async with grpcio_to(service) as channel:
        call = channel.unary_stream("/t.T/Forever")(b"")
        await call.read()
        assert await settled(lambda: service.in_hand) < 40 << 20
        call.cancel()
        await within(service.cancelled)


# We call grpcio, and ourselves.


@pytest.fixture(params=["grpcio", "ours", "unix", "tls"])
async def peer_and_service(request: Any, tmp_path: Path) -> AsyncIterator[tuple[Peer, Service]]:
    service = Service()
    if request.param == "grpcio":
        async with theirs(service) as address:
            peer = Peer(address)
            yield peer, service
            await peer.close()
        return
    server, peer_tls, server_tls = Server(service.methods()), None, None
    if request.param == "tls":
        server_tls, peer_tls = contexts(tmp_path)
    if request.param == "unix":
        address = f"unix:{tmp_path / 's'}"
        await server.start_unix(str(tmp_path / "s"))
    else:
        address = f"127.0.0.1:{await server.start('127.0.0.1', 0, tls=server_tls)}"
    peer = Peer(address, tls=(lambda: peer_tls) if peer_tls else None, server_name="localhost")
    yield peer, service
    await peer.close()
    await server.close()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    key, certificate = folder / "key", folder / "cert"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


async def test_unary_of_many_sizes(peer_and_service: tuple[Peer, Service]) -> None:
    peer, _ = peer_and_service
    for size in (0, 1, 16_379, 16_380, 70_000, 600_000, 64 << 20):
        answer = await ask(peer, "Echo", MEGABYTES_64[:size], 60.0, **{"X-Sent": "y", "bad": "caf\xe9"})
        assert answer.payload == MEGABYTES_64[:size]
        assert answer.trailers["penstock-worker"] == "w-1"
        assert answer.trailers["x-seen"] == "y"


async def test_many_at_once(peer_and_service: tuple[Peer, Service]) -> None:
    peer, _ = peer_and_service
    answers = await asyncio.gather(*(ask(peer, "Echo", b"%d" % n * 100) for n in range(600)))
    assert [answer.payload for answer in answers] == [b"%d" % n * 100 for n in range(600)]


async def test_errors_deadlines_and_cancelling(peer_and_service: tuple[Peer, Service]) -> None:
    peer, service = peer_and_service
    with pytest.raises(errors.NotFound, match="no model 'é'"):
        await ask(peer, "Missing")
    with pytest.raises(errors.Unsupported):
        await ask(peer, "Nothing")
    with pytest.raises(errors.DeadlineExceeded):
        await ask(peer, "Hang", seconds=1)
    await within(service.cancelled)
    service.cancelled.clear()
    service.begun.clear()
    task = asyncio.create_task(ask(peer, "Hang"))
    await within(service.begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await within(service.cancelled)
    with pytest.raises(errors.DeadlineExceeded):
        await ask(peer, "Echo", seconds=-1)
    assert (await ask(peer, "Echo")).payload == b"x"


async def test_streams(peer_and_service: tuple[Peer, Service]) -> None:
    peer, service = peer_and_service
    async with await peer.stream("/t.T/Double", deadline=soon(), headers={}) as call:
        for number in range(3):
            await call.send(b"%d" % number)
            assert await call.receive() == b"%d" % number * 2
        call.end()
        assert await call.receive() is None
        assert call.trailers["x-count"] == "3"
    async with await peer.stream("/t.T/Total", deadline=soon(), headers={}) as call:
        for _ in range(10):
            await call.send(MEGABYTES_64[:3_000_000])
        call.end()
        assert [message async for message in call] == [b"30000000"]
    async with await peer.stream("/t.T/Refuse", deadline=soon(), headers={}) as call:
        assert await call.receive() == b"one"
        with pytest.raises(errors.ResourceExhausted, match="no more"):
            await call.receive()
    async with await peer.stream("/t.T/Forever", deadline=soon(), headers={}) as call:
        for _ in range(200):
            assert await call.receive() == bytes(100_000)
    await within(service.cancelled)


async def test_close_fails_what_is_under_way(peer_and_service: tuple[Peer, Service]) -> None:
    peer, service = peer_and_service
    task = asyncio.create_task(ask(peer, "Hang"))
    await within(service.begun)
    await peer.close()
    with pytest.raises(ConnectionLost):
        await task
    with pytest.raises(ConnectionLost):
        await ask(peer, "Echo")
