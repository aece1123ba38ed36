"""Streams on our own client and server: both directions at once, back-pressure, an end from either side, deadlines.

Each runs over one hop, and over two, where the one in the middle passes messages on as the gateway does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock import errors
from penstock.wire.call import Call
from penstock.wire.http2 import Limits, Method, Server
from penstock.wire.http2.client import Peer
from penstock.wire.http2.forward import Forwarding
from penstock.wire.http2.lost import ConnectionLost
from tests.harness.http2_services import Service, soon, within
from tests.harness.waiting import settled

MEBIBYTE = 1 << 20
NEVER = float("inf")
# Small windows, so that little memory shows what a window holds back.
LIMITS = Limits(stream_window=256 << 10, connection_window=MEBIBYTE, keepalive_seconds=10)


class Streams(Service):
    """One more behaviour: a handler that reads when it is told to. got: messages it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read, self.got = asyncio.Semaphore(0), 0
        self.broken: list[type[BaseException]] = []

    async def reluctant(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        self.begun.set()
        try:
            await self.may_read.acquire()
            async for _ in requests:
                self.got += 1
                await self.may_read.acquire()
            await write(b"%d" % self.got)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def counting(self, call: Call, requests: AsyncIterator[bytes], write: Any) -> None:
        """Says what time is left, then reads until the caller ends."""
        await write(b"%d" % (call.deadline - asyncio.get_running_loop().time()))
        try:
            async for _ in requests:
                pass
        except BaseException as problem:
            self.broken.append(type(problem))
            self.cancelled.set()
            raise

    def methods(self) -> dict[str, Method]:
        more = {"Reluctant": self.reluctant, "Counting": self.counting}
        return super().methods() | {f"/t.T/{name}": Method(name, stream=handler) for name, handler in more.items()}


@pytest.fixture
def service() -> Streams:
    return Streams()


@pytest.fixture(params=["one hop", "two hops"])
async def peer(request: Any, service: Streams) -> AsyncIterator[Peer]:
    server = Server(service.methods(), limits=LIMITS)
    opened: list[Any] = [server]
    behind = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    if request.param == "two hops":
        onward = Peer(behind, limits=LIMITS)
        front = Server(Forwarding({}, onward, ("/t.T/",)), limits=LIMITS)
        opened += [onward, front]
        behind = f"127.0.0.1:{await front.start('127.0.0.1', 0)}"
    peer = Peer(behind, limits=LIMITS)
    yield peer
    await peer.close()
    for each in reversed(opened):
        assert not isinstance(each, Server) or await quiet(each)
        await each.close()


async def quiet(server: Server) -> bool:
    """Nothing is left of any call: no stream, no task, no byte that is charged."""
    assert server._common is not None
    async with asyncio.timeout(30):
        while server.in_flight or server._common.tasks or server._common.held:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0.001)
    return True


async def test_both_directions_at_once(peer: Peer) -> None:
    """A thousand messages of many sizes each way; the answers come while more is being sent."""
    sizes = [number * 37 % 5000 for number in range(1000)]
    async with await peer.stream("/t.T/Double", deadline=soon(), headers={}) as call:

        async def send() -> None:
            for size in sizes:
                await call.send(bytes(size))
            call.end()

        sending = asyncio.create_task(send())
        assert [len(message) async for message in call] == [2 * size for size in sizes]
        await sending
        assert call.trailers["x-count"] == "1000"


async def test_many_streams_share_a_connection(peer: Peer) -> None:
    async def one(number: int) -> list[bytes]:
        async with await peer.stream("/t.T/Double", deadline=soon(), headers={}) as call:
            for part in range(20):
                await call.send(b"%d" % (number * part) * 500)
            call.end()
            return [message async for message in call]

    found = await asyncio.gather(*(one(number) for number in range(40)))
    assert found == [[b"%d" % (number * part) * 1000 for part in range(20)] for number in range(40)]


async def test_a_handler_that_does_not_read_holds_the_caller(peer: Peer, service: Streams) -> None:
    """What lies between the two is bounded, whatever the caller would send; and all of it arrives in the end."""
    sent = 0
    async with await peer.stream("/t.T/Reluctant", deadline=soon(60), headers={}) as call:

        async def send() -> None:
            nonlocal sent
            for _ in range(400):
                await call.send(bytes(100_000))
                sent += 1
            call.end()

        sending = asyncio.create_task(send())
        await within(service.begun)
        held = await settled(lambda: sent) * 100_000
        assert 0 < held < 16 * MEBIBYTE
        assert service.got == 0
        for _ in range(1000):
            service.may_read.release()
        assert [message async for message in call] == [b"400"]
        await sending


async def test_a_caller_who_does_not_read_holds_the_handler(peer: Peer, service: Streams) -> None:
    async with await peer.stream("/t.T/Forever", deadline=soon(60), headers={}) as call:
        assert await call.receive() == bytes(100_000)
        written = await settled(lambda: service.in_hand)
        assert written < 16 * MEBIBYTE
        for _ in range(written // 100_000 + 50):
            assert await call.receive() == bytes(100_000)
        assert service.in_hand > written
    await within(service.cancelled)


async def test_leaving_reaches_a_handler_that_reads(peer: Peer, service: Streams) -> None:
    async with await peer.stream("/t.T/Counting", deadline=soon(60), headers={}) as call:
        await call.receive()
        await call.send(b"x")
        call.cancel()
        with pytest.raises(ConnectionLost):
            await call.send(b"y")
    await within(service.cancelled)
    assert service.broken == [asyncio.CancelledError]


async def test_leaving_reaches_a_handler_that_stands_in_a_write(peer: Peer, service: Streams) -> None:
    call = await peer.stream("/t.T/Forever", deadline=NEVER, headers={})
    await call.receive()
    await settled(lambda: service.in_hand)
    call.cancel()
    await within(service.cancelled)


async def test_leaving_frees_a_sender_that_waits_for_room(peer: Peer, service: Streams) -> None:
    call = await peer.stream("/t.T/Reluctant", deadline=NEVER, headers={})

    async def send() -> None:
        while True:
            await call.send(bytes(100_000))

    sending = asyncio.create_task(send())
    await within(service.begun)
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(ConnectionLost):
        await sending
    await within(service.cancelled)


async def test_a_deadline_ends_a_stream_on_both_sides(peer: Peer, service: Streams) -> None:
    async with await peer.stream("/t.T/Counting", deadline=soon(1.5), headers={}) as call:
        assert await call.receive() in (b"0", b"1")
        with pytest.raises(errors.DeadlineExceeded):
            await call.receive()
    await within(service.cancelled)


async def test_a_deadline_travels_with_the_stream(peer: Peer) -> None:
    async with await peer.stream("/t.T/Counting", deadline=soon(100), headers={}) as call:
        assert 50 <= int(await call.receive() or b"0") <= 100


async def test_an_error_in_the_midst_comes_after_what_was_written_before(peer: Peer) -> None:
    async with await peer.stream("/t.T/Refuse", deadline=soon(), headers={}) as call:
        assert await call.receive() == b"one"
        with pytest.raises(errors.ResourceExhausted, match="no more"):
            await call.receive()
        with pytest.raises(ConnectionLost):
            await call.send(b"too late")


async def test_a_stream_without_messages(peer: Peer) -> None:
    async with await peer.stream("/t.T/Double", deadline=soon(), headers={}) as call:
        call.end()
        assert await call.receive() is None
        assert call.trailers["x-count"] == "0"


async def test_a_message_that_is_too_large_ends_the_stream(peer: Peer) -> None:
    async with await peer.stream("/t.T/Total", deadline=soon(60), headers={}) as call:
        with pytest.raises(errors.PenstockError):
            await call.send(bytes(LIMITS.max_message + 1))
            await call.receive()
