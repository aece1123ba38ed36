"""Connections over their life: lost, drained, aged, silent, slow, long, and in a storm of cancels."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Limits, Method, Server, unix
from penstock.wire.http2 import frames as f
from penstock.wire.http2.client import ConnectionLost, Peer
from penstock.wire.http2.server import ServerLink
from tests.harness.etcd import free_port
from tests.harness.http2 import FIELDS, HELLO, PATH, frames_of, plain_block, request
from tests.harness.http2_services import Service, ask, ours, soon, within
from tests.harness.waiting import settled

ECHO = tuple((name, "/t.T/Echo" if name == ":path" else value) for name, value in FIELDS)


async def test_a_lost_server_and_its_return() -> None:
    port, service = free_port(), Service()
    peer = Peer(f"127.0.0.1:{port}")
    with pytest.raises(ConnectionLost):
        await ask(peer, "Echo")
    server = Server(service.methods())
    await server.start("127.0.0.1", port)
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await ask(peer, "Echo")).payload == b"x"
                break
            except ConnectionLost:
                await asyncio.sleep(0.02)
    task = asyncio.create_task(ask(peer, "Hang"))
    await within(service.begun)
    await server.close()
    with pytest.raises(ConnectionLost):
        await task
    await peer.close()


async def test_drain_finishes_what_is_in_flight_and_turns_the_rest_away() -> None:
    service = Service()
    async with ours(service) as (server, address):
        peer = Peer(address)
        task = asyncio.create_task(ask(peer, "Hang"))
        await within(service.begun)
        draining = asyncio.create_task(server.drain(100))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionLost):
            await ask(peer, "Echo")
        service.release.set()
        assert (await task).payload == b"late"
        async with asyncio.timeout(30):
            await draining
        assert server.connections == 0
        await peer.close()


async def test_drain_does_not_wait_for_ever() -> None:
    service = Service()
    async with ours(service) as (server, address):
        peer = Peer(address)
        task = asyncio.create_task(ask(peer, "Hang"))
        await within(service.begun)
        async with asyncio.timeout(30):
            await server.drain(0.2)
        with pytest.raises(ConnectionLost):
            await task
        await within(service.cancelled)
        await peer.close()


async def test_old_connections_are_replaced_without_a_failed_call() -> None:
    async with ours(Service(), limits=Limits(max_age=0.5, max_age_grace=5)) as (_, address):
        peer, used = Peer(address), set()
        end = soon(4)
        while asyncio.get_running_loop().time() < end:
            await ask(peer, "Echo")
            used.add(id(peer._link))
            await asyncio.sleep(0.005)
        assert len(used) > 1
        await peer.close()


async def test_silent_and_dead_peers_are_let_go() -> None:
    limits = Limits(handshake_seconds=0.5, keepalive_seconds=0.5, keepalive_timeout=2)
    async with ours(Service(), limits=limits) as (server, address):
        port = int(address.rpartition(":")[2])
        silent, writer = await asyncio.open_connection("127.0.0.1", port)
        deaf, deaf_writer = await asyncio.open_connection("127.0.0.1", port)
        deaf_writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        peer = Peer(address)
        await ask(peer, "Echo")
        async with asyncio.timeout(30):
            await asyncio.gather(*(_until_closed(reader) for reader in (silent, deaf)))
        # One that answers pings stays.
        assert server.connections == 1
        await peer.close()
        writer.close()
        deaf_writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except ConnectionResetError:
        pass


async def test_a_peer_that_never_reads_does_not_fill_the_memory() -> None:
    service = Service()
    block = plain_block(
        ((":method", "POST"), (":scheme", "http"), (":path", "/t.T/Echo"), ("content-type", "application/grpc"))
    )
    async with ours(service) as (server, address):
        raw = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        data = HELLO + b"\0\0\4\x08\0\0\0\0\0\x7f\0\0\0"
        sent = 0

        async def send() -> None:
            nonlocal sent
            await loop.sock_sendall(raw, data)
            while True:
                await loop.sock_sendall(raw, request(2 * sent + 1, bytes(50_000), block=block))
                sent += 1

        sending = asyncio.create_task(send())
        await settled(lambda: sent)
        link = next(iter(server._links))
        assert link.stalled
        assert link.transport.get_write_buffer_size() + link.connection.out_bytes < 8 << 20
        assert sent * 50_000 < 64 << 20
        sending.cancel()
        await asyncio.wait([sending])
        raw.close()


async def test_fifty_thousand_requests_on_one_connection() -> None:
    async with ours(Service()) as (server, address):
        peer = Peer(address)

        async def some(count: int) -> None:
            for _ in range(count):
                await ask(peer, "Echo")

        await asyncio.gather(*(some(500) for _ in range(100)))
        assert peer._link is not None
        assert peer._link.connection.last_seen == 99_999
        connection = next(iter(server._links)).connection
        assert connection.held == 0
        assert not connection.streams
        await peer.close()


async def test_cancel_storms_harm_nobody_else() -> None:
    service = Service()
    # The default budget is for strangers; this one lets the storm through.
    async with ours(service, limits=Limits(resets=100_000)) as (server, address):
        peer, other = Peer(address), Peer(address)
        for _ in range(50):
            tasks = [asyncio.create_task(ask(peer, "Hang" if n % 2 else "Echo")) for n in range(100)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await ask(other, "Echo")).payload == b"x"
        async with asyncio.timeout(30):
            while server.in_flight:  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0.01)
        await peer.close()
        await other.close()


async def everything(caller: socket.socket, sent: bytes) -> bytes:
    """What the server says until it closes the connection."""
    loop, heard = asyncio.get_running_loop(), b""
    async with asyncio.timeout(30):
        await loop.sock_sendall(caller, sent)
        while piece := await loop.sock_recv(caller, 1 << 16):
            heard += piece
    return heard


class Noticing(Server):
    """Notices a connection as soon as there is one, which is some turns of the loop before it is connected."""

    noticed = 0

    def _factory(self) -> Callable[[], ServerLink]:
        make = super()._factory()

        def accept() -> ServerLink:
            self.noticed += 1
            return make()

        return accept


async def test_a_connection_accepted_just_before_a_drain_is_served() -> None:
    """Its caller has been let in and cannot know of the drain."""
    server = Noticing(Service().methods())
    port = await server.start("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as caller:
        async with asyncio.timeout(30):
            while True:
                if server.noticed:
                    break
                await asyncio.sleep(0)
        assert server.connections == 0, "it is not connected yet, or the test would show nothing"
        caller.setblocking(False)
        answer = asyncio.create_task(everything(caller, HELLO + request(1, block=plain_block(ECHO))))
        await server.drain(5)
        answered = await answer
    ends = [frame for frame in frames_of(answered) if frame.stream == 1 and frame.flags & f.END_STREAM]
    assert len(ends) == 1 and b"hello" in answered


class Leaving(Server):
    """Tells its first connections to leave as soon as they are made, as a server that begins to drain does."""

    turned_away = 0

    def _factory(self) -> Callable[[], ServerLink]:
        make, loop = super()._factory(), asyncio.get_running_loop()

        def accept() -> ServerLink:
            link = make()
            if self.turned_away:
                self.turned_away -= 1
                # Two turns: it is connected in the first.
                loop.call_soon(loop.call_soon, link.leave)
            return link

        return accept


@pytest.mark.parametrize("turned_away", [1, 2])
async def test_a_connection_told_to_leave_before_its_first_call_is_replaced(turned_away: int) -> None:
    server = Leaving(Service().methods())
    port = await server.start("127.0.0.1", 0)
    for _ in range(20):
        server.turned_away = turned_away
        peer = Peer(f"127.0.0.1:{port}")
        assert (await ask(peer, "Echo")).payload == b"x"
        await peer.close()
    await server.close()


async def test_a_server_that_turns_everybody_away_is_not_asked_for_ever() -> None:
    server = Leaving(Service().methods())
    port = await server.start("127.0.0.1", 0)
    server.turned_away = 1000
    peer = Peer(f"127.0.0.1:{port}")
    # Where the first call is quicker than the goodbye, it is answered.
    with suppress(ConnectionLost):
        await ask(peer, "Echo", seconds=10)
    assert server.turned_away >= 1000 - 3
    await peer.close()
    await server.close()


async def test_peers_that_do_not_answer_when_asked_are_let_go_with_what_they_asked_for() -> None:
    service = Service()
    async with ours(service) as (server, address):
        deaf, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        forever = plain_block(tuple((name, "/t.T/Forever" if name == ":path" else value) for name, value in FIELDS))
        writer.write(HELLO + request(1, block=forever))
        await within(service.begun)
        service.begun.clear()
        peer = Peer(address)
        answer = asyncio.create_task(ask(peer, "Hang"))
        await within(service.begun)
        assert server.unanswered == 0, "nobody has been asked yet"
        server.ask()
        async with asyncio.timeout(30):
            while server.unanswered != 1:  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0.01)
        assert server.reset_unanswered() == 1
        await within(service.cancelled)
        # Reset, not closed: whatever was under way to the peer is nobody's any more.
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(30):
                while await deaf.read(1 << 20):
                    pass
        service.release.set()
        assert (await answer).payload == b"late"
        await peer.close()


async def test_peers_that_no_network_is_between_are_not_asked(tmp_path: Path) -> None:
    async with ours(Service()) as (server, _):
        bound, path = unix.bound(str(tmp_path))
        await server.start_on(bound)
        with unix.connected(path) as silent:
            silent.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(silent, HELLO)
            async with asyncio.timeout(30):
                while not server.connections:  # noqa: ASYNC110 (nothing tells)
                    await asyncio.sleep(0.01)
            server.ask()
            assert server.unanswered == 0


async def test_a_peer_with_many_calls_at_once_lets_those_of_others_through() -> None:
    calls: list[bytes] = []

    async def note(call: Call) -> Answer:
        calls.append(bytes(call.payload))
        return Answer(call.payload)

    server = Server({PATH: Method("Note", note)})
    address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    many, single = Peer(address), Peer(address)
    try:
        for peer in (many, single):
            await _told(peer, b"first")
        calls.clear()
        ends = [asyncio.ensure_future(_told(many, b"many")) for _ in range(200)]
        ends.append(asyncio.ensure_future(_told(single, b"single")))
        await asyncio.gather(*ends)
    finally:
        for peer in (many, single):
            await peer.close()
        await server.close()
    assert calls.count(b"many") == 200
    assert calls.index(b"single") <= 2 * Limits().calls_at_once


async def _told(peer: Peer, payload: bytes) -> bytes:
    return bytes((await peer.unary(PATH, payload, deadline=soon(), headers={})).payload)
