"""The life of a service process: readiness, drain, failure, refusal to start, and who may call what."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from penstock import errors
from penstock.channel import dial, error_of, raising
from penstock.oip import inference_pb2 as oip
from tests.harness import tiny_service
from tests.harness.processes import Service, started

TINY = "tests.harness.tiny_service"
TOKEN = "correct-horse"

# One loop, because some of the processes are shared.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def channel_to(address: str, token: str = "") -> Any:
    """A channel; grpcio's types know no calls of bare bytes."""
    return dial(address, token=token)


async def get(url: str) -> tuple[int, str]:
    """Status and body."""

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()

    return await asyncio.to_thread(fetch)


def unary(channel: Any, request: bytes, method: str = "/test.Tiny/Unary") -> Any:
    return channel.unary_unary(method)(request, timeout=60)


def auth_file(folder: Path) -> str:
    path = folder / "callers"
    path.write_text(f"# callers\nalice {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    return f"--auth-file={path}"


# Life and end.


async def test_starts_serves_and_says_that_it_is_ready() -> None:
    async with started(TINY, "--id=tiny-7") as service:
        record = await service.event("started")
        assert record["service"] == "tiny" and record["process"] == "tiny-7"
        assert await get(f"http://{record['admin']}/readyz") == (200, "ok\n")
        assert await get(f"http://{record['admin']}/healthz") == (200, "ok\n")
        assert (await get(f"http://{record['admin']}/nothing"))[0] == 404
        async with channel_to(record["address"]) as channel:
            assert await unary(channel, b"hello") == b"hello"
            with pytest.raises(errors.NotFound), raising():
                await unary(channel, b"error NOT_FOUND")
        _, metrics = await get(f"http://{record['admin']}/metrics")
        assert 'penstock_rpcs_total{code="OK",method="/test.Tiny/Unary"} 1.0' in metrics
        assert 'penstock_rpcs_total{code="NOT_FOUND",method="/test.Tiny/Unary"} 1.0' in metrics


async def test_sigterm_drains_in_order_and_what_is_in_flight_finishes() -> None:
    async with started(TINY) as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel, channel_to(record["address"]) as other:
            await unary(other, b"warm")
            held = unary(channel, b"hold")
            await service.event("holding")
            service.send(signal.SIGTERM)
            await service.event("draining")
            assert await get(f"http://{record['admin']}/readyz") == (503, "draining\n")
            assert (await service.event("step"))["name"] == "drain-1"
            assert (await service.event("step"))["name"] == "drain-2"
            await refused(other)
            assert not held.done()
            service.send(signal.SIGUSR1)
            assert await held == b"hold"
        assert await service.ended() == 0
    steps = [(record["name"], record["phase"]) for record in service.records if record["event"] == "step"]
    assert [name for name, _ in steps] == ["drain-1", "drain-2", "close-2", "close-1"]
    assert {phase for _, phase in steps} == {"draining"}
    assert service.events()[-1] == "stopped"


async def test_a_request_in_flight_that_fails_does_not_hold_up_the_drain() -> None:
    async with started(TINY, "--drain-seconds=600") as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel:
            held = [unary(channel, b"hold error NOT_FOUND") for _ in range(3)]
            for _ in held:
                await service.event("holding")
            service.send(signal.SIGTERM)
            assert (await service.event("step"))["name"] == "drain-1"
            assert (await service.event("step"))["name"] == "drain-2"
            service.send(signal.SIGUSR1)
            for each in held:
                with pytest.raises(errors.NotFound), raising():
                    await each
        assert await service.ended() == 0


async def refused(channel: Any) -> None:
    """Waits until the server takes no new calls; the stop follows the last drain step at once but not atomically."""
    async with asyncio.timeout(30):
        while True:
            try:
                await unary(channel, b"more")
            except grpc.aio.AioRpcError as failure:
                assert failure.code() is grpc.StatusCode.UNAVAILABLE
                return


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(second: signal.Signals) -> None:
    async with started(TINY, "--drain-seconds=600") as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel:
            held = unary(channel, b"hold")
            await service.event("holding")
            service.send(signal.SIGTERM)
            await service.event("draining")
            service.send(second)
            assert await service.ended() == -second
            with pytest.raises(grpc.aio.AioRpcError):
                await held


async def test_a_drain_that_is_over_cuts_off_what_is_left() -> None:
    async with started(TINY, "--drain-seconds=0") as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel:
            held = unary(channel, b"hold")
            await service.event("holding")
            service.send(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):
                await held
        assert await service.ended() == 0


async def test_a_health_watcher_hears_of_the_end_and_does_not_hold_it_up() -> None:
    async with started(TINY, "--drain-seconds=600") as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            gone, watch = stub.Watch(health_pb2.HealthCheckRequest()), stub.Watch(health_pb2.HealthCheckRequest())
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await gone.read()).status == serving
            assert (await watch.read()).status == serving
            gone.cancel()
            service.send(signal.SIGTERM)
            assert (await watch.read()).status == not_serving
            assert await watch.read() is grpc.aio.EOF
        assert await service.ended() == 0


async def test_a_background_task_that_fails_ends_the_process_with_an_error() -> None:
    async with started(TINY) as service:
        record = await service.event("started")
        async with channel_to(record["address"]) as channel:
            await unary(channel, b"doom")
            failed = await service.event("task_failed")
            assert failed["task"] == "background" and "was told to fail" in failed["exception"]
        assert await service.ended() == 1
    names = [record["name"] for record in service.records if record["event"] == "step"]
    assert names == ["close-2", "close-1"]
    assert "stopped" not in service.events()


@pytest.mark.parametrize(("trouble", "event"), [("drain", "drain_step_failed"), ("close", "close_step_failed")])
async def test_a_failing_step_keeps_no_other_step_from_running(trouble: str, event: str) -> None:
    async with started(TINY, f"--trouble={trouble}") as service:
        await service.event("started")
        service.send(signal.SIGTERM)
        assert await service.ended() == 1
    names = [record["name"] for record in service.records if record["event"] == "step"]
    assert names == ["drain-1", "drain-2", "close-2", "close-1"]
    assert service.events().count(event) == 2


async def test_a_failure_while_assembling_ends_with_an_error_and_its_trace() -> None:
    async with started(TINY, "--trouble=assemble") as service:
        assert "assembling was told to fail" in (await service.event("start_failed"))["exception"]
        assert await service.ended() == 1


async def test_sigterm_ends_a_start_that_waits_for_something() -> None:
    async with started(TINY, "--trouble=hang", "--admin-port=0", "--log-level=info") as service:
        await service.event("hanging")
        service.send(signal.SIGTERM)
        assert await service.ended() == 0


# Refusing to start.


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag in ("--port", "--admin-port"):
            async with started(TINY, f"{flag}={port}") as service:
                assert await service.ended() == 2
            said = [line for line in service.lines if line.startswith("tiny:")]
            assert len(said) == 1 and f"cannot listen on 127.0.0.1:{port}" in said[0]
            assert "Traceback" not in "\n".join(service.lines)


async def test_two_services_cannot_share_a_port() -> None:
    async with started(TINY) as first:
        port = (await first.event("started"))["address"].rpartition(":")[2]
        async with started(TINY, f"--port={port}") as second:
            assert await second.ended() == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
async def test_without_callers_only_loopback_is_served(host: str) -> None:
    async with started(TINY, f"--host={host}") as service:
        assert await service.ended() == 2
    assert service.lines == [
        f"tiny: host {host} can be reached from other machines and no callers are configured: "
        "set auth_file, or listen on 127.0.0.1"
    ]


async def test_a_missing_or_broken_auth_file_is_no_open_door(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("alice not-a-digest\n")
    for path in (tmp_path / "absent", broken, tmp_path):
        async with started(TINY, f"--auth-file={path}") as service:
            assert await service.ended() == 2
        assert len(service.lines) == 1 and service.lines[0].startswith("tiny: ")


# Who may call.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Address of a service with one known caller."""
    async with started(TINY, auth_file(tmp_path_factory.mktemp("auth"))) as service:
        yield (await service.event("started"))["address"]


def call(channel: Any, method: str) -> Any:
    """Any method, whatever its shape: on the wire they do not differ."""
    body = b""
    if method.endswith("ServerReflectionInfo"):
        body = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    return channel.stream_stream(method)(iter([body]), timeout=60)


@pytest.mark.parametrize("method", [*tiny_service.METHODS, "/test.Tiny/Unknown", "/no.Service/Either"])
@pytest.mark.parametrize(
    "credential",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer correct"],
)
async def test_no_method_answers_without_a_credential(guarded: str, method: str, credential: str | None) -> None:
    metadata = () if credential is None else (("authorization", credential),)
    async with channel_to(guarded) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"", metadata=metadata, timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert isinstance(error_of(caught.value), errors.Unauthenticated)


@pytest.mark.parametrize("method", tiny_service.METHODS)
async def test_every_method_answers_a_known_caller(guarded: str, method: str) -> None:
    async with channel_to(guarded, token=TOKEN) as channel:
        assert await call(channel, method).read() is not grpc.aio.EOF


async def test_reflection_lists_what_is_registered(guarded: str) -> None:
    async with channel_to(guarded, token=TOKEN) as channel:
        method = f"/{tiny_service.REFLECTION}/ServerReflectionInfo"
        answer = reflection_pb2.ServerReflectionResponse.FromString(await call(channel, method).read())
    listed = {service.name for service in answer.list_services_response.service}
    registered = {method.split("/")[1] for method in tiny_service.METHODS}
    assert listed == registered | {"grpc.health.v1.Health"}


async def test_health_needs_no_credential(guarded: str) -> None:
    async with channel_to(guarded) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="no.such"), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        with pytest.raises(errors.NotFound), raising():
            await stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=60)


async def test_servicers_know_the_caller(guarded: str) -> None:
    async with channel_to(guarded, token=TOKEN) as channel:
        assert await unary(channel, b"who") == b"alice"
        assert await unary(channel, b"who", "/inference.GRPCInferenceService/ModelInfer") == b"alice"


async def test_a_refused_call_is_not_read(guarded: str) -> None:
    """The refusal comes while the body still waits: nothing of it was taken in or decoded."""
    asked = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        await asked.wait()
        yield b"never sent"

    async with channel_to(guarded) as channel:
        refused = channel.stream_unary("/test.Tiny/Unary")(endless(), timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# The error table, in the four shapes of a call.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny() -> AsyncIterator[tuple[Service, str]]:
    """A service without callers, on loopback."""
    async with started(TINY) as service:
        yield service, (await service.event("started"))["address"]


@pytest.mark.parametrize("shape", tiny_service.SHAPES)
async def test_errors_keep_their_class_in_every_shape(tiny: tuple[Service, str], shape: str) -> None:
    async with channel_to(tiny[1]) as channel:
        for kind in errors.ALL:
            with pytest.raises(errors.PenstockError) as caught, raising():
                await read_all(channel, f"/test.Tiny/{shape}", f"error {kind.code.name}".encode())
            assert type(caught.value) is errors.BY_NAME[kind.code.name]
            assert (caught.value.message, caught.value.field) == ("public text", "inputs[0]")
            assert caught.value.detail == ""


@pytest.mark.parametrize("shape", tiny_service.SHAPES)
async def test_a_crash_shows_nothing_but_an_id_that_the_log_has(tiny: tuple[Service, str], shape: str) -> None:
    service, address = tiny
    async with channel_to(address) as channel:
        with pytest.raises(errors.Internal) as caught, raising():
            await read_all(channel, f"/test.Tiny/{shape}", b"crash")
    record = await service.event("call_crashed")
    assert "secret" not in caught.value.message and record["request_id"] in caught.value.message
    assert "secret /etc/passwd" in record["exception"]


async def test_a_request_id_that_is_not_one_is_replaced(tiny: tuple[Service, str]) -> None:
    service, address = tiny
    async with channel_to(address) as channel:
        for given, kept in (("abc-1", True), ("a b", False), ("x" * 129, False)):
            metadata = (("x-request-id", given),)
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/test.Tiny/Unary")(b"error INTERNAL", metadata=metadata, timeout=60)
            record = await service.event("call_failed")
            assert (record["request_id"] == given) is kept
            assert record["detail"] == "for the log\nonly"


async def read_all(channel: Any, method: str, request: bytes) -> list[bytes]:
    async def one() -> AsyncIterator[bytes]:
        yield request

    return [message async for message in channel.stream_stream(method)(one(), timeout=60)]


async def test_the_data_plane_logs_the_detail_too(tiny: tuple[Service, str]) -> None:
    service, address = tiny
    async with channel_to(address) as channel:
        with pytest.raises(errors.Unavailable), raising():
            await unary(channel, b"error UNAVAILABLE", "/inference.GRPCInferenceService/ModelInfer")
    async with asyncio.timeout(30):
        while "for the log" not in str((await service._next() or {}).get("event")):
            pass
    assert service.records[-1]["request_id"]


async def test_a_stream_survives_a_crash_of_one_request(tiny: tuple[Service, str]) -> None:
    async with channel_to(tiny[1]) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(timeout=60)
        request = oip.ModelInferRequest(id="7").SerializeToString()
        await stream.write(b"crash")
        await stream.write(request)
        first = oip.ModelStreamInferResponse.FromString(await stream.read())
        second = oip.ModelStreamInferResponse.FromString(await stream.read())
        await stream.done_writing()
        assert first.error_message.startswith("internal error") and "secret" not in str(first)
        assert not second.error_message
        assert await stream.read() is grpc.aio.EOF


async def test_a_compressed_message_is_refused_before_it_unpacks(tiny: tuple[Service, str]) -> None:
    unlimited = (("grpc.max_send_message_length", -1),)
    async with grpc.aio.insecure_channel(tiny[1], options=unlimited) as channel:
        call: Any = channel.unary_unary("/test.Tiny/Unary")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(200 << 20), timeout=60, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "grpc-encoding identity" in str(caught.value.details())
        assert await call(b"still there", timeout=60) == b"still there"
