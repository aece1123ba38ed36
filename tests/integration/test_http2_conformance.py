"""The port against RFC 9113 and RFC 7541, section by section, with raw bytes on a real socket.

h2spec is not to be had on the machines that run these tests, so the table is ours (http2_cases.py). After each case
a stranger on another connection is served as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from penstock.wire.call import Call
from penstock.wire.http2 import Method, Server
from penstock.wire.http2 import frames as f
from tests.harness.http2 import HELLO, PATH, Held, echo, request
from tests.harness.raw_http2 import RawPeer, in_words, said_to
from tests.integration import http2_cases as cases
from tests.integration.http2_request_cases import HPACK, REQUESTS

CASES = {**cases.FRAMES, **cases.WINDOWS, **REQUESTS, **{f"RFC 7541 {name}": case for name, case in HPACK.items()}}


async def deaf(call: Call, requests: AsyncIterator[bytes], write: object) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    methods = {
        PATH: Method("Echo", echo),
        cases.HOLD: Method("Hold", Held()),
        cases.DEAF: Method("Deaf", stream=deaf),
    }
    server = Server(methods, limits=cases.LIMITS)
    yield server, f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    await server.close()


async def nobody_else_notices(server: Server, address: str) -> None:
    assert await said_to(address, request(1)) == ["1: hello 0"]
    async with asyncio.timeout(30):
        while server.connections:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0)
    assert server._common is not None
    assert server._common.held == 0
    assert server.in_flight == 0


@pytest.mark.parametrize("name", CASES)
async def test_the_answer_is_what_the_rfc_asks(server: tuple[Server, str], name: str) -> None:
    sent, back = CASES[name]
    assert ", ".join(await said_to(server[1], sent)) == back
    await nobody_else_notices(*server)


@pytest.mark.parametrize("name", cases.RAW)
async def test_the_first_bytes_of_a_connection(server: tuple[Server, str], name: str) -> None:
    sent, back = cases.RAW[name]
    assert ", ".join(await said_to(server[1], sent, hello=b"")) == back
    await nobody_else_notices(*server)


async def test_the_server_says_its_settings_first_and_acknowledges_ours(server: tuple[Server, str]) -> None:
    peer = await RawPeer.to(server[1])
    await peer.send(f.settings({f.INITIAL_WINDOW_SIZE: 1}) * 2)
    frames = await peer.ping()
    first, *rest = [frame for frame in frames if frame.kind == f.SETTINGS]
    assert frames[0] == first
    assert dict(f.read_settings(first.payload)) == {
        f.MAX_CONCURRENT_STREAMS: 8,
        f.INITIAL_WINDOW_SIZE: 1 << 16,
        f.MAX_FRAME_SIZE: 1 << 15,
        f.MAX_HEADER_LIST_SIZE: 16 << 10,
    }
    assert [(frame.flags, frame.payload) for frame in rest] == [(f.ACK, b"")] * 3
    await peer.close()


async def test_a_smaller_table_is_acknowledged_in_the_next_block(server: tuple[Server, str]) -> None:
    """RFC 7541, 4.2; the library refuses a block that does not say so."""
    hpack = pytest.importorskip("hpack")
    judge = hpack.Decoder()
    judge.max_allowed_table_size = 100
    peer = await RawPeer.to(server[1])
    await peer.send(f.settings({f.HEADER_TABLE_SIZE: 100}) + request(1) + request(3))
    blocks = [frame.payload for frame in await peer.ping() if frame.kind == f.HEADERS]
    assert [dict(judge.decode(block)).get("grpc-status") for block in blocks] == [None, "0", None, "0"]
    await peer.close()


async def test_goaway_names_the_last_request_that_was_seen(server: tuple[Server, str]) -> None:
    peer = await RawPeer.to(server[1])
    await peer.send(request(1) + request(7) + f.frame(f.DATA, 0, 0))
    (goaway,) = [frame for frame in await peer.ping() if frame.kind == f.GOAWAY]
    assert f.read_long(goaway.payload) == 7
    await peer.close()


@pytest.mark.parametrize("size", [1, 2, 9, 10, 23, 24, 25])
async def test_the_table_holds_in_pieces_too(server: tuple[Server, str], size: int) -> None:
    """Cases that end well, in portions of a few bytes, each in its own segment."""
    peer = await RawPeer.to(server[1], hello=b"")
    peer.writer.get_extra_info("socket").setsockopt(6, 1, 1)
    sent = HELLO + REQUESTS["8.1 trailers"][0] + cases.FRAMES["4.1 unknown type"][0] + request(3)
    for start in range(0, len(sent), size):
        await peer.send(sent[start : start + size])
        await asyncio.sleep(0)
    assert in_words(await peer.ping()) == ["1: hello 0", "3: hello 0"]
    await peer.close()
