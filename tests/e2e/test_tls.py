"""The whole suite with TLS on every port and mutual TLS within: every kind of caller, the hop, renewed certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite
from penstock import Client, errors
from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.internal.v1.records_pb2 import ReplicaRecord
from tests.e2e.conftest import grpc_address, rest_address, serve
from tests.harness import models
from tests.harness.certs import Certs
from tests.integration.test_unix_socket import connections

ONES = np.ones((1, 16), np.float32)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return Certs.make(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def secured(certs: Certs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Within, only callers with a certificate are let in; at the gateway, everybody."""
    environment = {**certs.environment(mutual=True), "PENSTOCK_GATEWAY_TLS_CLIENT_CA": ""}
    running = Suite(tmp_path_factory.mktemp("secured"), Ports.free(), environment=environment, trace_ratio=0.0)
    running.up()
    yield running
    assert running.down() == []


@pytest.fixture(scope="module")
def caller(secured: Suite, certs: Certs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two workers have add1, and the gateway reaches them by TLS, for their unix sockets are gone."""
    with Client(grpc_address(secured), timeout=60, retries=0, tls_ca=certs.ca) as client:
        serve(client, models.add_one(tmp_path_factory.mktemp("models") / "add1"), replicas=2)
        for path in asyncio.run(unix_sockets(secured)):
            os.unlink(path)
        yield client


async def unix_sockets(suite: Suite) -> set[str]:
    store = Etcd([f"127.0.0.1:{suite.ports['etcd_client']}"])
    found = (await store.range(keys.REPLICAS)).items
    await store.close()
    return {records.from_json(ReplicaRecord, item.value).unix_socket for item in found}


def admin(suite: Suite, name: str) -> str:
    return f"127.0.0.1:{suite.ports[f'{name}_admin']}"


def right(client: Client) -> None:
    assert client.infer("add1", {"x": ONES})["y"][0, 0] == 2.0


def test_both_hops(secured: Suite, caller: Client) -> None:
    for _ in range(50):
        right(caller)
    assert connections(admin(secured, "gateway"))["tls"] == 1
    for name in ("worker_1", "worker_2"):
        assert connections(admin(secured, name)) == {"tcp": 0, "tls": 1, "unix": 0}
    assert caller.versions("add1")  # by the registry
    assert caller.status().workers  # by the scheduler


def test_the_standard_client(secured: Suite, caller: Client, certs: Certs) -> None:
    client: Any = triton_grpc.InferenceServerClient(grpc_address(secured), ssl=True, root_certificates=certs.ca)
    tensor = triton_grpc.InferInput("x", [1, 16], "FP32")
    tensor.set_data_from_numpy(ONES)
    assert client.infer("add1", [tensor]).as_numpy("y")[0, 0] == 2.0
    assert client.is_server_ready()
    client.close()


def curl(*words: str) -> tuple[str, str]:
    """Status, a space and protocol version; then what it complained of."""
    if not shutil.which("curl"):
        pytest.skip("no curl")
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, done.stderr


def test_curl_at_both_ports(secured: Suite, caller: Client, certs: Certs) -> None:
    rpc = f"https://{grpc_address(secured)}/inference.GRPCInferenceService/ServerLive"
    told = ["--data-binary", "@/dev/null", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    assert curl("--http2", "--cacert", certs.ca, *told, rpc)[0] == "200 2"
    rest = f"https://{rest_address(secured)}/v2/health/ready"
    assert curl("--http2", "--cacert", certs.ca, rest)[0] == "200 1.1"
    assert curl("--http1.1", "--cacert", certs.ca, *told, rpc)[0] == "000 0"
    unverified, complaint = curl(rest)
    assert unverified.startswith("000")
    assert "certificate" in complaint


def test_rest(secured: Suite, caller: Client, certs: Certs) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}]})
    request = urllib.request.Request(f"https://{rest_address(secured)}/v2/models/add1/infer", data=body.encode())
    with urllib.request.urlopen(request, timeout=60, context=certs.caller()) as answer:
        assert json.loads(answer.read())["outputs"][0]["data"] == [2.0] * 16


def test_the_command(secured: Suite, caller: Client, certs: Certs) -> None:
    command = [sys.executable, "-m", "penstock.cli", "--address", grpc_address(secured), "models", "--json"]
    done = subprocess.run([*command, "--tls-ca", certs.ca], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "add1" in done.stdout, done.stderr
    by_environment = {**os.environ, "PENSTOCK_TLS_CA": certs.ca}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=by_environment)
    assert "add1" in done.stdout, done.stderr
    done = subprocess.run([*command, "--tls-ca", "/none"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert "tls_ca: /none cannot be read" in done.stderr


def test_a_foreign_ca_is_not_believed(secured: Suite, caller: Client, tmp_path: Path) -> None:
    other = Certs.make(tmp_path)
    stranger = Client(grpc_address(secured), timeout=20, retries=0, tls_ca=other.ca)
    with stranger, pytest.raises(errors.Unavailable):
        right(stranger)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://{rest_address(secured)}/v2", timeout=60, context=other.caller())


@pytest.mark.parametrize("port", ["gateway_grpc", "gateway_rest", "worker_1_grpc", "registry_grpc", "scheduler_1_grpc"])
def test_plain_text_is_closed(secured: Suite, port: str) -> None:
    with socket.create_connection(("127.0.0.1", secured.ports[port]), timeout=20) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(1000):
                pass


@pytest.mark.parametrize("port", ["worker_1_grpc", "registry_grpc", "scheduler_1_grpc"])
def test_within_nobody_enters_without_a_certificate(secured: Suite, certs: Certs, port: str) -> None:
    assert greeted(secured.ports[port], certs.caller(shows=True))
    assert not greeted(secured.ports[port], certs.caller())


def greeted(port: int, context: ssl.SSLContext) -> bool:
    """Whether the server says something of HTTP/2 to that caller."""
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as caller:
                caller.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                return bool(caller.recv(1000))
        except (ssl.SSLError, ConnectionError):
            return False


def serial(port: int, certs: Certs) -> str:
    """Of the certificate that a new connection is shown; mutual, for the ports within."""
    context = certs.caller(shows=True)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as caller,
    ):
        shown = caller.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_three_renewals_under_load_fail_no_call(secured: Suite, caller: Client, certs: Certs) -> None:
    """Old connections go on, new ones show the new certificate, and so do those that the processes make themselves."""
    stop, failures, done = threading.Event(), list[Exception](), [0, 0]

    def load(number: int, fresh: bool) -> None:
        while not stop.is_set():
            try:
                if fresh:
                    with Client(grpc_address(secured), timeout=60, retries=0, tls_ca=certs.ca) as client:
                        right(client)
                        assert client.versions("add1")
                else:
                    right(caller)
                    assert caller.status().workers
                done[number] += 1
            except Exception as failure:
                failures.append(failure)

    threads = [threading.Thread(target=load, args=(0, False)), threading.Thread(target=load, args=(1, True))]
    for thread in threads:
        thread.start()
    try:
        ports = ("gateway_grpc", "gateway_rest", "worker_1_grpc", "registry_grpc", "scheduler_1_grpc")
        for _ in range(3):
            before = serial(secured.ports["gateway_grpc"], certs)
            so_far = list(done)
            certs.renew()
            for port in ports:
                while serial(secured.ports[port], certs) == before:
                    assert not failures
            while not all(now > then for now, then in zip(done, so_far, strict=True)):
                assert not failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
