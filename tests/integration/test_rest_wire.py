"""The bridge on a real port: real clients, real sockets, and callers who mean no good."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.rest import connection
from tests.integration.rest_fakes import TOKEN
from tests.integration.rest_served import LIMIT, Served, served

__all__ = ["served"]

X: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1]}
BODY = json.dumps({"inputs": [X]}).encode()
CREDENTIAL = f"authorization: {TOKEN['authorization']}\r\n".encode()


def post(path: str, *headers: bytes, length: int | None = None) -> bytes:
    size = b"" if length is None else b"content-length: %d\r\n" % length
    return b"".join([b"POST %s HTTP/1.1\r\nhost: h\r\n" % path.encode(), CREDENTIAL, size, *headers, b"\r\n"])


async def curl(*arguments: str) -> tuple[int, str]:
    """Status and body as curl sees them."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-H", f"authorization: {TOKEN['authorization']}", "-w", "\n%{http_code}", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    body, _, status = out.decode().rpartition("\n")
    return int(status), body


async def test_curl_with_a_chunked_body(served: Served) -> None:
    status, body = await curl(
        "-H", "Transfer-Encoding: chunked", "--data", BODY.decode(), f"{served.url}/v2/models/echo/infer"
    )
    assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [0.5, -1.0])


@pytest.mark.parametrize("headers", [(), ("-H", "Expect:"), ("-H", "Expect:", "-H", "Transfer-Encoding: chunked")])
async def test_curl_with_a_body_over_the_limit(served: Served, tmp_path: Path, headers: tuple[str, ...]) -> None:
    """curl sees the answer whether it waits for 100 Continue, sends on regardless, or does not say how much comes."""
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(LIMIT + 1)
    arguments = ("-X", "POST", "--data-binary", f"@{body}", f"{served.url}/v2/models/echo/infer")
    status, text = await curl(*headers, *arguments)
    assert (status, str(LIMIT) in json.loads(text)["error"]) == (413, True)
    assert not served.inference.calls


async def test_a_body_of_just_the_limit_is_read(served: Served) -> None:
    async with httpx.AsyncClient(headers=TOKEN, timeout=60) as http:
        padded = BODY + b" " * (LIMIT - len(BODY))
        answer = await http.post(f"{served.url}/v2/models/echo/infer", content=padded)
    assert answer.status_code == 200


async def largest_gap(done: asyncio.Event) -> float:
    """The most that the loop computed at once: its thread's time, since a busy machine takes that of the clock."""
    worst, last = 0.0, time.thread_time()
    while not done.is_set():
        await asyncio.sleep(0.001)
        now = time.thread_time()
        worst, last = max(worst, now - last), now
    return worst


@pytest.mark.parametrize("bomb", ["gzip", "depth"])
async def test_bombs_do_not_hold_up_others(served: Served, bomb: str) -> None:
    body, headers, status = b"[" * 100_000, {}, 400
    if bomb == "gzip":
        body = await asyncio.to_thread(lambda: gzip.compress(bytes(256 << 20), 6))
        headers, status = {"content-encoding": "gzip"}, 413
    done = asyncio.Event()
    async with httpx.AsyncClient(headers=TOKEN) as http, asyncio.TaskGroup() as group:
        gap = group.create_task(largest_gap(done))
        answer = await http.post(f"{served.url}/v2/models/echo/infer", content=body, headers=headers)
        done.set()
    assert answer.status_code == status
    assert gap.result() < 0.5


async def test_a_caller_who_leaves_cancels_the_call(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post("/v2/models/slow/infer", length=len(BODY)) + BODY)
    async with asyncio.timeout(30):
        await served.inference.started.wait()
        assert not served.inference.cancelled.is_set()
        writer.close()
        await served.inference.cancelled.wait()


async def test_a_caller_who_leaves_in_the_middle_of_an_upload(served: Served) -> None:
    """The registry's side of the stream breaks; it does not end as if it were whole."""
    broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def upload(header: Any, data: Any, **_: Any) -> Any:
        try:
            async for _piece in data:
                pass
        except BaseException as error:
            broken.set_result(error)
            raise
        raise AssertionError("the stream ended as if it were whole")

    served.control.upload = upload  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = b"PUT /api/v1/artifacts/sha256:%s HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n" % (b"ab" * 32)
    writer.write(head + CREDENTIAL + b"\r\n" + b"abc")
    await writer.drain()
    writer.close()
    async with asyncio.timeout(30):
        assert "caller left" in str(await broken)


async def test_answers_under_way_are_finished_before_it_stops(served: Served) -> None:
    async with httpx.AsyncClient(headers=TOKEN) as http, asyncio.timeout(30):
        answering = asyncio.ensure_future(http.post(f"{served.url}/v2/models/slow/infer", content=BODY))
        await served.inference.started.wait()
        served.task.cancel()
        while not refused(served.port):  # noqa: ASYNC110 - the kernel has no event for a port that closes
            await asyncio.sleep(0.02)
        assert not answering.done()
        served.inference.release.set()
        assert (await answering).status_code == 200
        with pytest.raises(asyncio.CancelledError):
            await served.task


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_connection_serves_many_requests_also_after_errors(served: Served) -> None:
    wrong = post("/v2/models/echo/infer", length=1) + b"{"
    right = post("/v2/models/echo/infer", length=len(BODY)) + BODY
    unknown = b"GET /nope HTTP/1.1\r\nhost: h\r\n\r\n"
    last = post("/v2/models/echo/infer", b"connection: close\r\n", length=len(BODY)) + BODY
    answers = await served.exchange(wrong + right, unknown, last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400", b"200", b"404", b"200"]


async def test_an_answer_is_not_held_back_by_the_kernel(served: Served) -> None:
    """With Nagle's algorithm the second segment of an answer waits 40 ms for the client's delayed acknowledgement: once
    the kernel delays it, which it does not at first. One that does not wait shows that none has to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    request = post("/v2/models/echo/infer", length=len(BODY)) + BODY
    times = []
    for _ in range(50):
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        times.append(time.perf_counter() - started)
    writer.close()
    assert min(times[10:]) < 0.03


HEADS: dict[str, tuple[list[bytes], bytes]] = {
    "long header": ([b"GET /v2 HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n"], b"431"),
    "many headers": ([b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n"], b"431"),
    "no HTTP": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"], b"400"),
    "unclear length": ([post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\n", length=5) + b"x"], b"400"),
    "two lengths": ([post("/v2/models/echo/infer", b"content-length: 4\r\n", length=5) + b"x"], b"400"),
    "raw bytes in the path": ([b"GET /v2/\xff HTTP/1.1\r\nhost: h\r\n\r\n"], b"400"),
    "no path": ([b"OPTIONS * HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"], b"404"),
}


@pytest.mark.parametrize("case", HEADS)
async def test_heads_that_are_refused(served: Served, case: str) -> None:
    pieces, status = HEADS[case]
    answer = await served.exchange(*pieces)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status, answer[:200]
    assert isinstance(json.loads(body)["error"], str)


CHUNKED = post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\n")


@pytest.mark.parametrize(
    "opening",
    [b"GET /", b"GET /v2 HTTP/1.1\r\nx: ", b"GET /v2 HTTP/1.1\r\nx", CHUNKED + b"5;", CHUNKED + b"1\r\nx\r\n0\r\nt: "],
    ids=["path", "value", "name", "chunk extension", "trailer"],
)
async def test_what_never_ends_ends_the_connection(served: Served, opening: bytes) -> None:
    answer = await served.exchange(opening, *[b"a" * 8192] * 100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    assert not served.inference.calls


async def test_tiny_chunks(served: Served) -> None:
    padded = BODY + b" " * 50_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n"
    head = post("/v2/models/echo/infer", b"transfer-encoding: chunked\r\nconnection: close\r\n")
    assert (await served.exchange(head, chunks)).startswith(b"HTTP/1.1 200")


async def test_a_head_that_never_ends_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    assert (await served.exchange(b"GET /v2 HTTP/1.1\r\nho")).startswith(b"HTTP/1.1 408")
    assert (await served.exchange(b"GET /nope HTTP/1.1\r\nhost: h\r\n\r\nGET")).endswith(b'seconds"}')


async def test_no_secret_is_needed_to_learn_of_health(served: Served) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{served.url}/v2/health/ready")).json() == {"ready": True}
        assert (await http.head(f"{served.url}/v2/health/ready")).status_code == 200
        assert (await http.get(f"{served.url}/v2")).status_code == 401
