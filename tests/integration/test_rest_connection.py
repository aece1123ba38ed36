"""One connection of HTTP/1.1, whoever is at its other end: order, bounds, ends."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from penstock import errors
from penstock.kit.ports import bound
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer, Call, Done, Pending
from services.gateway.rest import connection, serve_rest
from services.gateway.rest.bridge import Bridge
from services.gateway.rest.exchange import Exchange
from services.gateway.rest.server import Server
from tests.harness.waiting import settled
from tests.integration.rest_fakes import TOKEN, EchoInference, FakeControl, authenticate
from tests.integration.rest_served import Served, served
from tests.integration.test_http2_interop import contexts
from tests.integration.test_rest_wire import BODY, post

__all__ = ["served"]

HEALTH = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"


def infer(model: str, id_: str = "") -> bytes:
    body = json.dumps({"id": id_, **json.loads(BODY)}).encode()
    return post(f"/v2/models/{model}/infer", length=len(body)) + body


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


def ids(answers: bytes) -> list[str]:
    return [found.decode() for found in re.findall(rb'"id":"(\w+)"', answers)]


async def until(condition: Any) -> None:
    """Waits for something that the test itself cannot be told of."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# Order.


async def test_pipelined_requests_run_together_and_are_answered_in_order(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(infer("slow", "a") + infer("echo", "b") + HEALTH + infer("slow", "c") + infer("echo", "d") + LAST)
    await until(lambda: len(served.inference.calls) == 4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    served.inference.release.set()
    answers = await reader.read()
    assert statuses(answers) == [200] * 6
    assert ids(answers) == ["a", "b", "c", "d"]
    assert answers.index(b'"id":"b"') < answers.index(b'{"live":true}') < answers.index(b'"id":"c"')
    writer.close()


async def test_what_changes_something_waits_for_its_turn(served: Served) -> None:
    change = b'{"version":1}'
    put = (
        b"PUT /api/v1/deployments/%s HTTP/1.1\r\nhost: h\r\nauthorization: Bearer good\r\ncontent-length: %d\r\n\r\n%s"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(
        infer("slow", "a") + b"".join(put % (name, len(change), change) for name in (b"x", b"y")) + infer("echo", "b")
    )
    await served.inference.started.wait()
    await asyncio.sleep(0.05)
    assert not served.control.asked
    assert len(served.inference.calls) == 1
    served.inference.release.set()
    await until(lambda: len(served.inference.calls) == 2)
    assert [request.name for _, _, request, _ in served.control.asked] == ["x", "y"]  # type: ignore[attr-defined]
    writer.write(LAST)
    assert statuses(await reader.read()) == [200] * 5
    writer.close()


async def test_a_connection_has_only_so_many_requests_under_way(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(infer("slow") * 1000 + LAST)
    await until(lambda: len(served.inference.calls) == connection.MAX_PIPELINED)
    await asyncio.sleep(0.05)
    assert len(served.inference.calls) == connection.MAX_PIPELINED
    served.inference.release.set()
    assert statuses(await reader.read()) == [200] * 1001
    writer.close()


async def test_nothing_after_a_bad_request_is_served(served: Served) -> None:
    bad = post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\n", length=4) + b"0\r\n\r\n"
    answers = await served.exchange(infer("echo", "a") + bad + infer("echo", "b"))
    assert statuses(answers) == [200, 400]
    assert len(served.inference.calls) == 1
    answers = await served.exchange(LAST + infer("echo", "c"))
    assert statuses(answers) == [200]
    assert len(served.inference.calls) == 1


# What arrives slowly, oddly, or without end.


async def test_one_byte_at_a_time(served: Served) -> None:
    chunked = post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\n")
    chunked += (
        b"".join(b"%x;e\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:])) + b"0\r\nt: v\r\n\r\n"
    )
    text = b"\r\n\r\n" + infer("echo") + b"\r\n" + chunked + HEALTH + LAST
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in text:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert statuses(await reader.read()) == [200] * 4
    writer.close()


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_million_tiny_chunks_cost_their_bytes(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\n"))
    writer.write(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY))
    before = resident()
    for _ in range(1000):
        writer.write(b"1\r\n \r\n" * 1000)
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert statuses(head) == [200]
    assert resident() - before < 50 << 20
    writer.close()


async def test_a_head_of_ten_thousand_fields(served: Served) -> None:
    """Refused before it is whole, and whatever follows is not looked at."""
    head = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\n" + b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(10_000))
    assert statuses(await served.exchange(head)) == [431]
    assert statuses(await served.exchange(head + b"\r\n" + HEALTH)) == [431]


async def test_a_body_that_stops(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.1)
    assert statuses(await served.exchange(post("/v2/models/echo/infer", length=9) + b"{")) == [408]
    put = post("/api/v1/deployments/m", length=9).replace(b"POST", b"PUT")
    assert statuses(await served.exchange(put)) == [408]
    assert not served.inference.calls


async def test_idle_connections_are_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    assert await served.exchange() == b""
    assert statuses(await served.exchange(HEALTH)) == [200]


async def test_who_does_not_read_is_not_served(served: Served) -> None:
    """Answers that nobody takes hold up further requests of the same connection, and nobody else's."""
    x = {"name": "x", "shape": [60_000], "datatype": "FP32", "data": [0.5] * 60_000}
    body = json.dumps({"inputs": [x]}).encode()
    request = post("/v2/models/echo/infer", length=len(body)) + body
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    small.connect(("127.0.0.1", served.port))
    reader, writer = await asyncio.open_connection(sock=small, limit=1 << 16)
    sending = asyncio.ensure_future(drained(writer, request, 200))
    await until(lambda: len(served.inference.calls) > 3)
    assert await settled(lambda: len(served.inference.calls)) < 120
    assert statuses(await served.exchange(LAST)) == [200]
    async with asyncio.timeout(60):
        for _ in range(200):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            assert statuses(head) == [200]
            await reader.readexactly(int(length[1]))
    await sending
    writer.close()


async def drained(writer: asyncio.StreamWriter, request: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(request)
        await writer.drain()


async def test_who_never_reads_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.1)
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
    get = b"GET /openapi.json HTTP/1.1\r\nhost: h\r\nauthorization: Bearer good\r\n\r\n"
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(30):
            while True:
                writer.write(get * 100)
                await writer.drain()


# Ends.


async def test_a_half_closed_connection_counts_as_left(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(HEALTH + infer("slow"))
    await served.inference.started.wait()
    writer.write_eof()
    async with asyncio.timeout(30):
        await served.inference.cancelled.wait()
        # What was answered before has been sent, and the end is an orderly one.
        assert statuses(await reader.read()) == [200]
    writer.close()


async def test_an_upload_whose_caller_leaves_halfway_ends(served: Served) -> None:
    writer = (await asyncio.open_connection("127.0.0.1", served.port))[1]
    writer.write(post("/v2/models/echo/infer", length=1 << 20) + b"x" * 1000)
    await writer.drain()
    writer.transport.abort()
    assert statuses(await served.exchange(LAST)) == [200]
    assert not served.inference.calls


async def test_stopping_lets_what_is_under_way_finish_and_closes_the_idle(served: Served) -> None:
    idle = await asyncio.open_connection("127.0.0.1", served.port)
    busy = await asyncio.open_connection("127.0.0.1", served.port)
    sending = await asyncio.open_connection("127.0.0.1", served.port)
    idle[1].write(HEALTH)
    await idle[0].readuntil(b"}")
    head = post("/v2/models/echo/infer", b"expect: 100-continue\r\n", length=len(BODY))
    sending[1].write(head)
    # It is under way once it is told to go on.
    await sending[0].readuntil(b"HTTP/1.1 100 Continue\r\n\r\n")
    sending[1].write(BODY[:5])
    busy[1].write(infer("slow", "a"))
    await served.inference.started.wait()
    served.task.cancel()
    assert await idle[0].read() == b""
    busy[1].write(infer("echo", "late"))
    sending[1].write(BODY[5:] + infer("echo", "late"))
    answer = await sending[0].read()
    assert (statuses(answer), b"connection: close" in answer) == ([200], True)
    served.inference.release.set()
    answer = await busy[0].read()
    assert (statuses(answer), ids(answer), b"connection: close" in answer) == ([200], ["a"], True)
    with pytest.raises(asyncio.CancelledError):
        await served.task
    for _, writer in (idle, busy, sending):
        writer.close()


async def test_stopping_does_not_wait_for_ever() -> None:
    inference = EchoInference()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(serving(inference, listening=port.set_result, drain_seconds=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", await port)
    writer.write(infer("slow"))
    await inference.started.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    async with asyncio.timeout(30):
        await inference.cancelled.wait()
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


def serving(inference: EchoInference, **options: Any) -> Any:
    options.setdefault("sock", bound("127.0.0.1", 0))
    return serve_rest(
        inference=inference,
        control=FakeControl(),
        ready=lambda: None,
        max_body_bytes=1 << 20,
        default_timeout=30.0,
        authenticate=authenticate,
        **options,
    )


# Forms of HTTP.


async def test_methods_that_have_no_body_and_paths_that_are_not_there(served: Served) -> None:
    head = b"HEAD /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n"
    wrong = b"POST /v2/health/live HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc"
    nowhere = b"HEAD /nope HTTP/1.1\r\nhost: h\r\n\r\n"
    answers = await served.exchange(head + wrong + nowhere + LAST)
    assert statuses(answers) == [200, 405, 404, 200]
    first, second, third, fourth, body = answers.split(b"\r\n\r\n")
    assert b"content-length: 13" in first
    assert second.startswith(b"HTTP/1.1 405 ")
    assert b"allow: GET, HEAD" in second
    assert third.startswith(b'{"error":')
    assert b"HTTP/1.1 404 " in third
    assert (fourth[:13], body) == (b"HTTP/1.1 200 ", b'{"live":true}')


async def test_an_older_client(served: Served) -> None:
    old = b"GET /v2/health/live HTTP/1.0\r\n"
    answer = await served.exchange(old + b"connection: keep-alive\r\n\r\n" + old + b"\r\n" + HEALTH)
    assert statuses(answer) == [200, 200]
    assert answer.count(b"connection: keep-alive") == 1
    assert answer.count(b"connection: close") == 1


@pytest.mark.parametrize("framing", [b"content-length: %d\r\n" % len(BODY), b"transfer-encoding: chunked\r\n"])
async def test_a_caller_who_asks_first_is_told_when_it_is_his_turn(served: Served, framing: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(infer("slow") + post("/v2/models/echo/infer", b"expect: 100-continue\r\n", framing))
    await served.inference.started.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    served.inference.release.set()
    answers = await reader.readuntil(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert statuses(answers) == [200, 100]
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    writer.write((chunked if b"chunked" in framing else BODY) + LAST)
    assert statuses(await reader.read()) == [200, 200]
    writer.close()


async def test_who_sends_at_once_is_not_told_to_go_on(served: Served) -> None:
    answers = await served.exchange(
        post("/v2/models/echo/infer", b"expect: 100-continue\r\n", length=len(BODY)) + BODY + LAST
    )
    assert statuses(answers) == [200, 200]


async def test_requests_answered_together_are_written_together(served: Served) -> None:
    """A few pipelined requests take one segment there and one back."""
    loop = asyncio.get_running_loop()
    pieces: list[bytes] = []

    class Peer(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            pieces.append(data)

    transport, _ = await loop.create_connection(Peer, "127.0.0.1", served.port)
    transport.write(HEALTH * 8)
    await until(lambda: len(statuses(b"".join(pieces))) == 8)
    assert len(pieces) == 1
    transport.close()


# Calls without a task.


class Direct(EchoInference):
    """Calls of `echo` are answered before `direct` returns, those of `later` when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.dones: list[Done] = []
        self.cancels = 0

    def direct(self, call: Call, done: Done) -> Pending | None:
        self.calls.append(call)
        request = oip.ModelInferRequest.FromString(call.payload)
        if request.model_name == "refuse":
            raise errors.ResourceExhausted("the queue is full", retry_after=3.0)
        self.dones.append(done)
        if request.model_name == "echo":
            done(self.made(request.id), None)
        self.started.set()
        return self

    def made(self, id_: str) -> Answer:
        return Answer(oip.ModelInferResponse(model_name="m", id=id_).SerializeToString(), {"penstock-worker": "w"})

    def cancel(self) -> None:
        self.cancels += 1


async def test_calls_without_a_task() -> None:
    async with server(inference=Direct()) as (port, _, inference):
        assert isinstance(inference, Direct)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(infer("echo", "a") + infer("later", "b") + infer("refuse") + infer("later", "c"))
        await until(lambda: len(inference.calls) == 4)
        inference.dones[2](inference.made("c"), None)
        inference.dones[1](None, errors.NotFound("there is no such model"))
        writer.write(LAST)
        answers = await reader.read()
        assert statuses(answers) == [200, 404, 429, 200, 200]
        assert ids(answers) == ["a", "c"]
        assert b"retry-after: 3" in answers
        assert not inference.cancels
        assert {call.caller for call in inference.calls} == {"tester"}
        assert len({call.request_id for call in inference.calls}) == 4
        writer.close()


async def test_nothing_is_left_to_the_collector() -> None:
    """A request is gone with its answer; what only the collector finds costs all the others time."""

    def alive() -> int:
        return sum(isinstance(each, Exchange) for each in gc.get_objects())

    async with server(inference=Direct()) as (port, _, inference):
        assert isinstance(inference, Direct)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        gc.collect()
        before = alive()
        gc.disable()
        try:
            writer.write(infer("echo") * 10 + infer("later") * 10 + HEALTH)
            await until(lambda: len(inference.dones) == 20)
            assert alive() - before == 21
            for done in inference.dones[10:]:
                done(inference.made("a"), None)
            del done
            inference.dones.clear()
            await reader.readuntil(b'{"live":true}')
            assert alive() == before
        finally:
            gc.enable()
        writer.close()


async def test_who_leaves_cancels_a_call_without_a_task() -> None:
    async with server(inference=Direct()) as (port, made, inference):
        assert isinstance(inference, Direct)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(infer("later"))
        await inference.started.wait()
        assert made.held > 0
        writer.close()
        await until(lambda: inference.cancels == 1)
        assert made.held == 0


async def test_the_deadline_cancels_a_call_without_a_task() -> None:
    async with server(inference=Direct()) as (port, _, inference):
        assert isinstance(inference, Direct)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = post("/v2/models/later/infer", b"penstock-timeout-ms: 30\r\n", length=len(BODY)) + BODY
        writer.write(request + LAST)
        assert statuses(await reader.read()) == [504, 200]
        assert inference.cancels == 1
        writer.close()


# Bounds of all connections together, and sockets.


@asynccontextmanager
async def server(
    inference: EchoInference | None = None, **bounds: int
) -> AsyncIterator[tuple[int, Server, EchoInference]]:
    inference = inference or EchoInference()
    bridge = Bridge(
        inference=inference,
        control=FakeControl(),
        ready=lambda: None,
        max_body_bytes=1 << 20,
        default_timeout=30.0,
        authenticate=authenticate,
    )
    made = Server(bridge, **bounds)
    listener = socket.create_server(("127.0.0.1", 0))
    await made.listen(listener, None)
    try:
        yield listener.getsockname()[1], made, inference
    finally:
        await made.close()


async def test_connections_beyond_the_bound_are_closed() -> None:
    async with server(max_connections=1) as (port, _, _):
        first = await asyncio.open_connection("127.0.0.1", port)
        first[1].write(HEALTH)
        await first[0].readuntil(b"}")
        second = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            assert await second[0].read() == b""
        first[1].write(LAST)
        assert statuses(await first[0].read()) == [200]
        for _, writer in (first, second):
            writer.close()


async def test_requests_held_beyond_the_bound_are_refused() -> None:
    async with server(max_held=len(infer("slow").partition(b"\r\n\r\n")[2]) + 50) as (port, made, inference):
        first = await asyncio.open_connection("127.0.0.1", port)
        first[1].write(infer("slow"))
        await inference.started.wait()
        second = await asyncio.open_connection("127.0.0.1", port)
        second[1].write(infer("echo"))
        answer = await second[0].readuntil(b"}")
        assert statuses(answer) == [429]
        assert b"retry-after: 1" in answer
        inference.release.set()
        await first[0].readuntil(b"]}")
        second[1].write(infer("echo"))
        assert statuses(await second[0].readuntil(b"]}")) == [200]
        assert made.held == 0
        for _, writer in (first, second):
            writer.close()


async def test_tls(tmp_path: Path) -> None:
    context, trusting = contexts(tmp_path)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(serving(EchoInference(), tls=context, listening=port.set_result))
    reader, writer = await asyncio.open_connection("127.0.0.1", await port, ssl=trusting, server_hostname="localhost")
    writer.write(infer("echo", "a"))
    assert ids(await reader.readuntil(b"]}]}")) == ["a"]
    writer.write(post("/v2/models/echo/infer", length=2 << 20) + b"x" * 1000)
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 30)
    assert statuses(answer) == [413]
    writer.close()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_wrk(served: Served, tmp_path: Path) -> None:
    """A load generator in C that pipelines and reads strictly."""
    if shutil.which("wrk") is None:
        pytest.skip("there is no wrk")
    script = tmp_path / "script.lua"
    body = BODY.decode().replace("\\", "\\\\").replace("'", "\\'")
    script.write_text(
        f"wrk.headers['authorization'] = '{TOKEN['authorization']}'\n"
        f"local one\n"
        f"function init() one = wrk.format('POST', nil, nil, '{body}'); all = string.rep(one, 4) end\n"
        f"function request() return all end\n"
    )
    command = ["wrk", "-t1", "-c8", "-d1s", "--timeout", "30s", "-s", str(script), f"{served.url}/v2/models/echo/infer"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0
    requests = re.search(r"(\d+) requests in", text)
    assert requests is not None
    assert int(requests[1]) > 0
    assert "Socket errors" not in text
    assert "Non-2xx" not in text
