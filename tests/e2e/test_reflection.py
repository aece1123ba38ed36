"""What tools like grpcurl do: they ask the port which services it has, and call one with nothing but the answer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deploy.local.suite import Suite
from tests.e2e.conftest import grpc_address

SERVICE = "inference.GRPCInferenceService"


def test_a_call_by_reflection_alone(suite: Suite, add1: str) -> None:
    channel: Any = grpc.insecure_channel(grpc_address(suite))
    with channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "penstock.v1.ModelService", "grpc.health.v1.Health"} <= set(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelReady")
        request: Any = message_factory.GetMessageClass(method.input_type)(name=add1)
        answer = channel.unary_unary(f"/{SERVICE}/ModelReady")(request.SerializeToString(), timeout=60)
        ready: Any = message_factory.GetMessageClass(method.output_type).FromString(answer)
        assert ready.ready is True


def test_who_asks_for_the_newer_reflection_is_told_to_ask_for_the_older(suite: Suite) -> None:
    """grpcurl asks for v1 first, and for v1alpha on UNIMPLEMENTED."""
    channel: Any = grpc.insecure_channel(grpc_address(suite))
    with channel:
        ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter([b""]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health(suite: Suite) -> None:
    with grpc.insecure_channel(grpc_address(suite)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("inference.GRPCInferenceService/ServerLive", b""),
        ("grpc.health.v1.Health/Check", b""),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\x3a\x00"),
    ],
)
def test_nghttp(suite: Suite, tmp_path: Path, path: str, body: bytes) -> None:
    if not shutil.which("nghttp"):
        pytest.skip("no nghttp (Debian: nghttp2-client)")
    (tmp_path / "body").write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    command = ["nghttp", "-v", "-n", "-d", str(tmp_path / "body"), f"http://{grpc_address(suite)}/{path}"]
    command += ["-H", ":method: POST", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert "grpc-status: 0" in said, said
    assert "PROTOCOL_ERROR" not in said
