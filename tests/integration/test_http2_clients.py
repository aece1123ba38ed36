"""Clients that know nothing of us: tritonclient, curl, h2load; and what is passed on to grpcio."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from penstock import errors
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Server
from penstock.wire.http2 import frames as f
from penstock.wire.http2.client import SERVICE, Peer
from penstock.wire.http2.forward import Forwarding
from penstock.wire.http2.hpack import Decoder
from penstock.wire.http2.service import inference_methods
from tests.harness.http2 import FIELDS, message, plain_block
from tests.harness.http2_services import OPTIONS, Service, ours, soon, theirs, within
from tests.harness.raw_http2 import RawPeer


@asynccontextmanager
async def inference() -> AsyncIterator[str]:
    """Answers ModelInfer with the input as the output."""

    async def infer(call: Call) -> Answer:
        request = oip.ModelInferRequest.FromString(call.payload)
        if request.model_name != "m":
            raise errors.NotFound("no such model")
        response = oip.ModelInferResponse(model_name="m", id=request.id, raw_output_contents=request.raw_input_contents)
        for tensor in request.inputs:
            response.outputs.add(name="y", datatype=tensor.datatype, shape=tensor.shape)
        return Answer(response.SerializeToString())

    async def live(call: Call) -> Answer:
        return Answer(oip.ServerLiveResponse(live=True).SerializeToString())

    methods = inference_methods({"ModelInfer": infer, "ServerLive": live}, stream_infer=infer, default_timeout=30)
    server = Server(methods)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.close()


def _triton(address: str) -> None:
    import queue

    from tritonclient import grpc as triton

    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        values = np.arange(16, dtype=np.float32).reshape(1, 16)
        tensor = triton.InferInput("x", [1, 16], "FP32")
        tensor.set_data_from_numpy(values)
        result = client.infer("m", [tensor], request_id="7", client_timeout=60)
        assert np.array_equal(result.as_numpy("y"), values)
        with pytest.raises(Exception, match="no such model"):
            client.infer("other", [tensor])
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result))
        for number in range(50):
            client.async_stream_infer("m", [tensor], request_id=str(number))
        ids = [answers.get(timeout=60).get_response().id for _ in range(50)]
        client.stop_stream()
        assert ids == [str(number) for number in range(50)]


async def test_tritonclient_unary_and_streams() -> None:
    pytest.importorskip("tritonclient.grpc")
    async with inference() as address:
        await asyncio.to_thread(_triton, address)


def _grpcio(address: str, service: Service) -> None:
    """grpcio's older face: threads and blocking calls."""
    # grpcio's types know no calls of bare bytes.
    channel: Any = grpc.insecure_channel(address, options=OPTIONS)
    with channel:
        answer, call = channel.unary_unary("/t.T/Echo").with_call(b"x", timeout=60, metadata=(("x-sent", "y"),))
        assert (answer, dict(call.trailing_metadata())["x-seen"]) == (b"x", "y")
        futures = [channel.unary_unary("/t.T/Echo").future(b"%d" % number, timeout=60) for number in range(500)]
        assert [future.result() for future in futures] == [b"%d" % number for number in range(500)]
        numbers = (b"%d" % number for number in range(100))
        assert list(channel.stream_stream("/t.T/Double")(numbers)) == [b"%d" % number * 2 for number in range(100)]
        assert channel.stream_unary("/t.T/Total")(iter([bytes(1000)] * 30)) == b"30000"
        assert list(channel.unary_stream("/t.T/Repeat")(b"r")) == [b"r"] * 5
        for method, options, code in (
            ("Missing", {}, grpc.StatusCode.NOT_FOUND),
            ("Nothing", {}, grpc.StatusCode.UNIMPLEMENTED),
            ("Hang", {"timeout": 0.3}, grpc.StatusCode.DEADLINE_EXCEEDED),
            ("Echo", {"compression": grpc.Compression.Gzip}, grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/t.T/{method}")(bytes(5000), **options)
            assert caught.value.code() is code
        held = channel.unary_unary("/t.T/Hang").future(b"")
        held.cancel()
        assert held.cancelled()


async def test_grpcio_with_threads() -> None:
    service = Service()
    async with ours(service) as (_, address):
        await asyncio.to_thread(_grpcio, address, service)
        await within(service.cancelled)


async def test_curl() -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl")
    async with ours(Service()) as (_, address):
        command = ["curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_code} %{http_version}"]
        said = await asyncio.to_thread(
            subprocess.run, [*command, f"http://{address}/t.T/Echo"], capture_output=True, text=True
        )
        if "unsupported" in said.stderr.lower():
            pytest.skip("curl without HTTP/2")
        assert said.stdout == "405 2"
        more = ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@/dev/stdin"]
        sent = await asyncio.to_thread(
            subprocess.run,
            [*command, *more, f"http://{address}/t.T/Echo"],
            capture_output=True,
            input=b"\0\0\0\0\5hello",
        )
        assert sent.stdout.startswith(b"\0\0\0\0\5hello200 2")


async def test_a_compressed_message_is_refused_with_what_would_be_taken() -> None:
    async with ours(Service()) as (_, address):
        peer = await RawPeer.to(address)
        block = plain_block((*FIELDS[:2], (":path", "/t.T/Echo"), *FIELDS[3:], ("grpc-encoding", "gzip")))
        await peer.send(f.headers(1, block, 0, f.DEFAULT_FRAME) + f.frame(f.DATA, 1, 1, message(b"\x1f\x8b", flag=1)))
        (head,) = [frame for frame in await peer.ping() if frame.kind == f.HEADERS]
        fields = dict(Decoder(max_list=1 << 16, max_fields=100).decode(head.payload))
        assert (fields["grpc-status"], fields["grpc-accept-encoding"]) == ("12", "identity")
        assert "compressed" in fields["grpc-message"]
        await peer.close()


async def test_h2load(tmp_path: Path) -> None:
    if not shutil.which("h2load"):
        pytest.skip("no h2load (Debian: nghttp2-client)")
    body = tmp_path / "body"
    body.write_bytes(b"\0\0\0\0\5hello")
    async with ours(Service()) as (_, address):
        command = ["h2load", "-n", "20000", "-c", "4", "-m", "16", "-d", str(body), f"http://{address}/t.T/Echo"]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert "20000 succeeded, 0 failed" in said.stdout


async def test_the_service_is_the_one_that_peers_call() -> None:
    async with inference() as address:
        peer = Peer(address, token="t")
        request = oip.ModelInferRequest(model_name="m", id="9").SerializeToString()
        answer = await peer.unary("ModelInfer", request, deadline=soon(), headers={})
        assert oip.ModelInferResponse.FromString(answer.payload).id == "9"
        async with await peer.stream(f"/{SERVICE}/ModelStreamInfer", deadline=float("inf"), headers={}) as call:
            for _ in range(3):
                await call.send(request)
            call.end()
            got = [oip.ModelStreamInferResponse.FromString(message) async for message in call]
        assert [each.infer_response.id for each in got] == ["9"] * 3
        await peer.close()


async def test_what_is_not_ours_is_forwarded_to_grpcio_and_back() -> None:
    service = Service()
    async with theirs(service) as behind:
        peer = Peer(behind)
        server = Server(Forwarding({}, peer, ("/t.T/",)))
        port = await server.start("127.0.0.1", 0)
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        call = channel.unary_unary("/t.T/Echo")(b"x" * 100_000, timeout=60, metadata=(("x-sent", "y"),))
        assert await call == b"x" * 100_000
        assert (await call.trailing_metadata())["x-seen"] == "y"
        both = channel.stream_stream("/t.T/Double")()
        for number in range(3):
            await both.write(b"%d" % number)
            assert await both.read() == b"%d" % number * 2
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Missing")(b"")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/other/Missing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        held = channel.unary_unary("/t.T/Hang")(b"")
        await within(service.begun)
        held.cancel()
        await within(service.cancelled)
        await channel.close()
        await peer.close()
        await server.close()
