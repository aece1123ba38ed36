"""A build followed over REST: what comes, how it ends, who leaves, and the whole way from a real registry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import errors
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.kit.ports import bound
from penstock.v1 import builds_pb2 as pb
from services.gateway.backend import Backend
from services.gateway.control import Control
from services.gateway.rest import serve_rest
from services.gateway.rest.events import BEAT, beating
from tests.harness.build_service import Registry, running
from tests.harness.waiting import settled
from tests.integration.rest_fakes import TOKEN, EchoInference, authenticate
from tests.integration.rest_served import Served, served

__all__ = ["served"]
CALLER = dict(TOKEN)
EVENTS = "/api/v1/builds/ab/events"


def lines(*offsets: int) -> pb.WatchBuildResponse:
    return pb.WatchBuildResponse(lines=[pb.BuildLogLine(offset=offset, text=f"line {offset}") for offset in offsets])


def build(state: pb.BuildState.ValueType) -> pb.WatchBuildResponse:
    return pb.WatchBuildResponse(build=pb.Build(id="ab", state=state))


async def events(answer: httpx.Response) -> AsyncGenerator[tuple[str, str, Any], None]:
    """Name, id and data of every event, as an EventSource would tell them."""
    fields: dict[str, str] = {}
    async with aclosing(answer.aiter_lines()) as text:  # type: ignore[type-var]
        async for line in text:
            if not line and fields:
                yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
                fields = {}
            elif line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value


@asynccontextmanager
async def following(served: Served, path: str = EVENTS, **headers: str) -> AsyncIterator[httpx.Response]:
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=20) as client,
        client.stream("GET", path, headers={**CALLER, **headers}) as answer,
    ):
        yield answer


async def test_what_comes_is_told_at_once_and_the_end_is_told(served: Served) -> None:
    served.control.coming.put_nowait(build(pb.BUILD_STATE_RUNNING))
    async with following(served) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store" and "content-length" not in answer.headers
        async with aclosing(events(answer)) as coming:
            name, number, data = await anext(coming)
            assert (name, number, data["state"]) == ("build", "", "BUILD_STATE_RUNNING")
            # Only now: what follows is not waited for by what is there.
            served.control.coming.put_nowait(lines(0, 1))
            assert [await anext(coming) for _ in range(2)] == [
                ("line", str(offset + 1), {"offset": offset, "step_id": "", "text": f"line {offset}"})
                for offset in range(2)
            ]
            served.control.coming.put_nowait(None)
            assert [event async for event in coming] == [("end", "", {})]
    service, method, request, headers = served.control.asked[0]
    assert (service, method, request) == ("penstock.v1.BuildService", "WatchBuild", pb.WatchBuildRequest(id="ab"))
    assert headers["authorization"] == CALLER["authorization"]


@pytest.mark.parametrize(
    ("path", "headers", "offset"),
    [(EVENTS, {}, 0), (f"{EVENTS}?offset=3", {}, 3), (f"{EVENTS}?offset=3", {"last-event-id": "7"}, 7)],
)
async def test_where_to_go_on(served: Served, path: str, headers: dict[str, str], offset: int) -> None:
    served.control.coming.put_nowait(None)
    async with following(served, path, **headers) as answer:
        assert [event async for event in events(answer)] == [("end", "", {})]
    assert served.control.asked[0][2] == pb.WatchBuildRequest(id="ab", offset=offset)


async def test_what_is_wrong_with_the_request_has_a_status(served: Served) -> None:
    served.control.coming.put_nowait(errors.NotFound("there is no build 'ab'"))
    async with httpx.AsyncClient(base_url=served.url, headers=CALLER) as client:
        answer = await client.get(EVENTS)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "NOT_FOUND"
        for wrong in ({"last-event-id": "x"}, {"penstock-timeout-ms": "soon"}):
            assert (await client.get(EVENTS, headers=wrong)).status_code == 400
        assert (await client.get(EVENTS, headers={"authorization": "Bearer nobody"})).status_code == 401
        served.control.coming.put_nowait(build(pb.BUILD_STATE_RUNNING))
        answer = await client.head(EVENTS)
        assert answer.status_code == 200 and not answer.content
        # The connection is good for more after each of these.
        assert (await client.get("/v2/health/live")).status_code == 200
    old = await served.exchange(f"GET {EVENTS} HTTP/1.0\r\nAuthorization: Bearer good\r\n\r\n".encode())
    assert old.startswith(b"HTTP/1.1 400") and b"use HTTP/1.1" in old


async def test_a_failure_on_the_way_is_an_event(served: Served) -> None:
    served.control.coming.put_nowait(lines(0))
    served.control.coming.put_nowait(errors.Unavailable("the connection to the registry was lost"))
    async with following(served) as answer:
        told = [event async for event in events(answer)]
    assert [name for name, _, _ in told] == ["line", "failure"]
    error = told[-1][2]["error"]
    assert (error["code"], error["retryable"], error["request_id"]) == (
        "UNAVAILABLE", True, answer.headers["x-request-id"]
    )  # fmt: skip


async def test_a_surprise_breaks_the_connection_off(served: Served) -> None:
    """What has a status already cannot become an error; a caller must not take it for the end."""
    served.control.coming.put_nowait(lines(0))
    served.control.coming.put_nowait(pb.GetBuildResponse())
    with pytest.raises(httpx.RemoteProtocolError):
        async with following(served) as answer:
            async for _ in events(answer):
                pass


async def test_a_caller_who_leaves_ends_the_watch(served: Served) -> None:
    served.control.coming.put_nowait(lines(0))
    async with following(served) as answer:
        async with aclosing(events(answer)) as coming:
            await anext(coming)
        assert not served.control.left.is_set()
    async with asyncio.timeout(30):
        await served.control.left.wait()


async def test_other_requests_of_the_connection_wait_for_its_end(served: Served) -> None:
    served.control.coming.put_nowait(lines(0))
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    request = f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"
    writer.write(request.encode() + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b"line 0")
        served.control.coming.put_nowait(lines(1))
        served.control.coming.put_nowait(None)
        rest = await reader.read()
    first, _, second = rest.partition(b"0\r\n\r\n")
    assert b"line 1" in first and b"event: end" in first
    assert second.startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_slow_caller_is_waited_for(served: Served) -> None:
    """What nobody takes is not made: the source is asked no more once the buffers are full."""
    count, size = 400, 100_000
    for offset in range(count):
        line = pb.BuildLogLine(offset=offset, text="x" * size)
        served.control.coming.put_nowait(pb.WatchBuildResponse(lines=[line]))
    served.control.coming.put_nowait(None)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1 << 12)
    writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n".encode())
    async with asyncio.timeout(60):
        await served.control.watched.wait()
        # It comes to stand while we do not read ...
        taken = await settled(lambda: count - served.control.coming.qsize())
        assert taken < count - 10
        # ... and goes on when we do.
        got = 0
        while piece := await reader.read(1 << 20):
            got += len(piece)
            if piece.endswith(b"0\r\n\r\n"):
                break
    assert got > count * size
    writer.close()


async def test_a_gateway_that_stops_ends_it(served: Served) -> None:
    served.control.coming.put_nowait(lines(0))
    async with following(served) as answer, aclosing(events(answer)) as coming:
        await anext(coming)
        served.task.cancel()
        # The body is whole, so the caller knows to come back; no event says that the build has ended.
        assert [event async for event in coming] == []
    with suppress(asyncio.CancelledError):
        await served.task


async def test_silence_is_filled() -> None:
    closed = asyncio.Event()
    more: asyncio.Queue[int] = asyncio.Queue()

    async def source() -> AsyncGenerator[int, None]:
        try:
            while (number := await more.get()) >= 0:
                yield number
        finally:
            closed.set()

    async with aclosing(beating(source(), 0.01)) as coming:
        assert await anext(coming) is None
        more.put_nowait(5)
        found = [await anext(coming) for _ in range(3)]
        assert 5 in found and None in found
    assert closed.is_set()
    more.put_nowait(-1)
    assert BEAT.startswith(b":") and [item async for item in beating(source(), 10)] == []


# --- the whole way ----------------------------------------------------------------------------------------------------


class Instances:
    """The registry is where it is."""

    def __init__(self, address: str) -> None:
        self.records = {"registry": ServiceRecord(service="registry", id="registry", address=address)}


@asynccontextmanager
async def gateway(registry: Registry) -> AsyncIterator[str]:
    """The gateway's REST side before a real registry: its URL."""
    backend, nobody = Backend("registry", Instances(registry.address)), Backend("scheduler", Instances("127.0.0.1:1"))
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve_rest(
            sock=bound("127.0.0.1", 0),
            inference=EchoInference(),
            control=Control(backend, nobody),
            ready=lambda: None,
            max_body_bytes=1 << 20,
            default_timeout=30.0,
            authenticate=authenticate,
            drain_seconds=5.0,
            listening=port.set_result,
        )
    )
    yield f"http://127.0.0.1:{await port}"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await backend.close()
    await nobody.close()


async def test_a_real_build_is_followed(tmp_path: Path) -> None:
    async with running(tmp_path) as registry, gateway(registry) as url:
        await registry.publish()
        made = await registry.build("append", "gate", text="!!")
        async with httpx.AsyncClient(base_url=url, timeout=60, headers=CALLER) as client:
            path = f"/api/v1/builds/{made.id}/events"
            async with client.stream("GET", path) as answer:
                told = [event async for event in events(answer)]
            names = [name for name, _, _ in told]
            assert names[0] == "build" and names[-1] == "end" and "failure" not in names
            last = [data for name, _, data in told if name == "build"][-1]
            assert (last["state"], last["result_version"]) == ("BUILD_STATE_SUCCEEDED", 2)
            said = [data["text"] for name, _, data in told if name == "line"]
            assert "appending 2 bytes" in said and "published add1@2" in said
            ids = [int(number) for name, number, _ in told if name == "line"]
            assert ids == list(range(1, len(ids) + 1))
            async with client.stream("GET", path, headers={"last-event-id": str(ids[-2])}) as answer:
                again = [event async for event in events(answer)]
            assert [data["text"] for name, _, data in again if name == "line"] == said[-1:]
            assert (await client.get("/api/v1/builds/%s/events" % ("0" * 32))).status_code == 404
            hangs = await registry.build("hang")
            path = f"/api/v1/builds/{hangs.id}/events"
            async with client.stream("GET", path) as answer, aclosing(events(answer)) as coming:
                async for name, _, data in coming:
                    if name == "line" and data["text"] == "hanging":
                        await registry.builds.CancelBuild(pb.CancelBuildRequest(id=hangs.id))
                    if name == "end":
                        break
