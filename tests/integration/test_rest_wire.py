"""The bridge on a real port: real clients, real sockets, and callers who mean no good."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from services.gateway.rest import protocol, serve_rest
from tests.integration.rest_fakes import TOKEN, EchoInference, FakeControl, authenticate

LIMIT = 64 << 20
X: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1]}
BODY = json.dumps({"inputs": [X]}).encode()
CREDENTIAL = f"authorization: {TOKEN['authorization']}\r\n".encode()


@dataclass
class Served:
    port: int
    inference: EchoInference
    control: FakeControl
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def exchange(self, *pieces: bytes) -> bytes:
        """Sends the pieces and reads until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            answer = b""
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    while piece := await reader.read(1 << 16):
                        answer += piece
            return answer
        finally:
            writer.close()


def post(path: str, *headers: bytes, length: int | None = None) -> bytes:
    size = b"" if length is None else b"content-length: %d\r\n" % length
    return b"".join([b"POST %s HTTP/1.1\r\nhost: h\r\n" % path.encode(), CREDENTIAL, size, *headers, b"\r\n"])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    inference, control = EchoInference(), FakeControl()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        serve_rest(
            host="127.0.0.1",
            port=0,
            inference=inference,
            control=control,
            ready=lambda: None,
            max_body_bytes=LIMIT,
            default_timeout=30.0,
            authenticate=authenticate,
            drain_seconds=5.0,
            listening=port.set_result,
        )
    )
    yield Served(await port, inference, control, task)
    inference.release.set()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


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
    """The longest that the loop was busy with something else."""
    worst, last = 0.0, time.perf_counter()
    while not done.is_set():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
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
    async with asyncio.timeout(10):
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
    async with asyncio.timeout(10):
        assert "caller left" in str(await broken)


async def test_answers_under_way_are_finished_before_it_stops(served: Served) -> None:
    async with httpx.AsyncClient(headers=TOKEN) as http, asyncio.timeout(20):
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


async def test_a_port_that_is_taken(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        await serve_rest(
            host="127.0.0.1",
            port=served.port,
            inference=served.inference,
            control=served.control,
            ready=lambda: None,
            max_body_bytes=1,
            default_timeout=1.0,
            authenticate=authenticate,
        )


async def test_a_connection_serves_many_requests_also_after_errors(served: Served) -> None:
    wrong = post("/v2/models/echo/infer", length=1) + b"{"
    right = post("/v2/models/echo/infer", length=len(BODY)) + BODY
    unknown = b"GET /nope HTTP/1.1\r\nhost: h\r\n\r\n"
    last = post("/v2/models/echo/infer", b"connection: close\r\n", length=len(BODY)) + BODY
    answers = await served.exchange(wrong + right, unknown, last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400", b"200", b"404", b"200"]


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
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    assert (await served.exchange(b"GET /v2 HTTP/1.1\r\nho")).startswith(b"HTTP/1.1 408")
    assert (await served.exchange(b"GET /nope HTTP/1.1\r\nhost: h\r\n\r\nGET")).endswith(b'seconds"}')


async def test_no_secret_is_needed_to_learn_of_health(served: Served) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{served.url}/v2/health/ready")).json() == {"ready": True}
        assert (await http.head(f"{served.url}/v2/health/ready")).status_code == 200
        assert (await http.get(f"{served.url}/v2")).status_code == 401


async def in_thread(port: int, work: Callable[[Any, Any], Any]) -> Any:
    """Runs `work(client, tritonclient.http)` off the loop, since that client blocks."""

    def run() -> Any:
        import tritonclient.http as triton

        client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=20)
        try:
            return work(client, triton)
        finally:
            client.close()

    return await asyncio.to_thread(run)


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -65504]], np.float16),
    "FP32": np.array([[0.1, -3.4e38]], np.float32),
    "FP64": np.array([[0.1, -1.7e308]], np.float64),
    "BYTES": np.array([["hällo".encode(), b""]], np.object_),
}


@pytest.mark.parametrize("datatype", ARRAYS)
async def test_tritonclient_with_its_defaults_and_with_json(served: Served, datatype: str) -> None:
    array = ARRAYS[datatype]

    def work(client: Any, triton: Any) -> None:
        for binary_in, outputs in (
            (True, None),
            (True, [triton.InferRequestedOutput("x", binary_data=True)]),
            (True, [triton.InferRequestedOutput("x", binary_data=False)]),
            (False, [triton.InferRequestedOutput("x", binary_data=True)]),
            (False, [triton.InferRequestedOutput("x", binary_data=False)]),
            (False, None),
        ):
            tensor = triton.InferInput("x", list(array.shape), datatype)
            tensor.set_data_from_numpy(array, binary_data=binary_in)
            in_json = not binary_in or (
                outputs is not None and not outputs[0]._get_tensor()["parameters"]["binary_data"]
            )
            if datatype == "FP16" and in_json:
                with pytest.raises(triton.InferenceServerException, match="FP16") as caught:
                    client.infer("echo", [tensor], outputs=outputs, headers=dict(TOKEN))
                assert caught.value.status() == "400"
                continue
            result = client.infer("echo", [tensor], outputs=outputs, request_id="r", headers=dict(TOKEN))
            assert result.get_response()["id"] == "r"
            back = result.as_numpy("x")
            if datatype == "BYTES":
                back = np.vectorize(lambda item: item if isinstance(item, bytes) else item.encode(), otypes="O")(back)
            assert back.shape == array.shape
            assert np.array_equal(back, array)

    await in_thread(served.port, work)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
async def test_tritonclient_compresses(served: Served, request_coding: str | None, response_coding: str | None) -> None:
    array = np.arange(20_000, dtype=np.float32).reshape(1, -1)

    def work(client: Any, triton: Any) -> None:
        tensor = triton.InferInput("x", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        result = client.infer(
            "echo",
            [tensor],
            headers=dict(TOKEN),
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        assert np.array_equal(result.as_numpy("x"), array)

    await in_thread(served.port, work)


async def test_tritonclient_sees_the_rest_of_the_protocol(served: Served) -> None:
    def work(client: Any, triton: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo", headers=dict(TOKEN))
        assert not client.is_model_ready("other", headers=dict(TOKEN))
        assert client.get_server_metadata(headers=dict(TOKEN))["name"] == "penstock"
        assert client.get_model_metadata("echo", "1", headers=dict(TOKEN))["inputs"][0]["name"] == "x"
        assert client.get_model_config("echo", headers=dict(TOKEN))["max_batch_size"] == 8
        assert client.get_inference_statistics("echo", headers=dict(TOKEN))["model_stats"][0]["name"] == "echo"
        assert client.get_model_repository_index(headers=dict(TOKEN))[0]["state"] == "READY"
        client.load_model("echo", headers=dict(TOKEN))
        client.unload_model("echo", headers=dict(TOKEN))
        failing: list[tuple[Callable[[], Any], str]] = [
            (lambda: client.get_model_metadata("other", headers=dict(TOKEN)), "404"),
            (lambda: client.get_server_metadata(), "401"),
            (lambda: client.get_log_settings(headers=dict(TOKEN)), "501"),
        ]
        for call, status in failing:
            with pytest.raises(triton.InferenceServerException) as caught:
                call()
            assert caught.value.status() == status

    await in_thread(served.port, work)
