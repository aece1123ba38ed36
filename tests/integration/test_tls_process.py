"""One gateway's process and TLS: what ends a start, whom mutual TLS lets in, when plain text is worth a warning."""

from __future__ import annotations

import hashlib
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.channel import dial
from penstock.kit.tls import Certificates
from penstock.oip import inference_pb2 as oip
from penstock.wire.client import SERVICE, ConnectionLost, Peer
from tests.harness.certs import Certs
from tests.harness.etcd import free_port
from tests.harness.http2_services import soon
from tests.harness.processes import started

FREE = ("--port=0", "--admin-port=0")


@asynccontextmanager
async def gateway(endpoint: str, **environment: str) -> AsyncIterator[tuple[str, int]]:
    """Its gRPC address and its REST port."""
    rest = free_port()
    flags = (*FREE, f"--http-port={rest}", f"--etcd={endpoint}")
    async with started("services.gateway", *flags, **environment) as process:
        yield (await process.event("started"))["address"], rest


async def ready(channel: grpc.aio.Channel) -> bool:
    call: Any = channel.unary_unary(f"/{SERVICE}/ServerLive")
    return bool(oip.ServerLiveResponse.FromString(await call(b"", timeout=10)).live)


async def test_mutual_tls(clean_etcd: str, tmp_path: Path) -> None:
    certs = Certs.make(tmp_path)
    known = Certificates(certs.files())
    root = Path(certs.ca).read_bytes()  # noqa: ASYNC240
    async with gateway(clean_etcd, **certs.environment(mutual=True)) as (address, rest):
        async with dial(address, credentials=known.channel()) as channel:
            assert await ready(channel)
        async with dial(address, credentials=grpc.ssl_channel_credentials(root)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ready(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        ours = Peer(address, tls=known.client)
        assert await ours.unary("ServerLive", b"", deadline=soon(), headers={})
        await ours.close()
        stranger = Peer(address, tls=certs.caller)
        with pytest.raises(ConnectionLost):
            await stranger.unary("ServerLive", b"", deadline=soon(), headers={})
        await stranger.close()
        url = f"https://localhost:{rest}/v2/health/live"
        with urllib.request.urlopen(url, timeout=10, context=certs.caller(shows=True)) as answer:  # noqa: ASYNC210
            assert answer.status == 200
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            urllib.request.urlopen(url, timeout=10, context=certs.caller())  # noqa: ASYNC210


@pytest.mark.parametrize("service", ["gateway", "worker", "registry", "scheduler"])
async def test_a_start_ends_where_certificates_cannot_be_used(service: str, tmp_path: Path) -> None:
    certs = Certs.make(tmp_path / "certs")
    other = Certs.make(tmp_path / "other")
    expired = Certs.make(tmp_path / "expired", days=-1)
    for flags, said in (
        ((f"--tls-cert={certs.cert}",), "tls_cert and tls_key go together"),
        ((f"--tls-cert={certs.cert}", f"--tls-key={other.key}"), "is not the key of the certificate"),
        ((f"--tls-cert={expired.cert}", f"--tls-key={expired.key}"), "certificate has expired"),
        (("--tls-ca=/nowhere.pem",), "tls_ca: /nowhere.pem cannot be read"),
    ):
        async with started(f"services.{service}", *FREE, *flags) as process:
            assert await process.ended() == 2
        (line,) = process.lines
        assert line.startswith(f"{service}: ")
        assert said in line


@pytest.mark.parametrize("secured", [True, False])
async def test_plain_text_beyond_this_machine_is_worth_a_warning(
    secured: bool, clean_etcd: str, tmp_path: Path
) -> None:
    certs = Certs.make(tmp_path / "certs")
    callers = tmp_path / "callers"
    callers.write_text(f"somebody {hashlib.sha256(b't').hexdigest()}\n")
    flags = (*FREE, "--host=0.0.0.0", f"--auth-file={callers}", f"--etcd={clean_etcd}")
    environment = certs.environment() if secured else {}
    async with started("services.scheduler", *flags, **environment) as process:
        await process.event("started")
        assert ("plain_text_port" in process.events()) is not secured
