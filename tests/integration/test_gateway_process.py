"""A gateway as it is run: a process that announces itself, becomes ready, serves, says goodbye."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.cluster import Etcd, Mirror, keys
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.oip import inference_pb2 as oip
from penstock.wire.client import SERVICE
from tests.harness.etcd import free_port
from tests.harness.waiting import Changed

ROOT = Path(__file__).parents[2]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def answers(url: str) -> bool:
    """Whether it answers with a success."""
    try:
        read(url)
    except OSError:
        return False
    return True


async def test_from_start_to_goodbye(clean_etcd: str, tmp_path: Path) -> None:
    http = free_port()
    arguments = [
        "--port",
        "0",
        "--admin-port",
        "0",
        "--http-port",
        str(http),
        "--etcd",
        clean_etcd,
        "--id",
        "gateway-1",
    ]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", *arguments, cwd=ROOT, stderr=stderr, env={**os.environ}
        )
    store, changed = Etcd([clean_etcd]), Changed()
    mirror = Mirror(store, keys.services_of("gateway"), ServiceRecord, changed)
    following = asyncio.create_task(mirror.run())
    try:
        await changed.until(lambda: mirror.records)
        (record,) = mirror.records.values()
        assert record.id == "gateway-1"
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(answers, f"http://{record.admin_address}/readyz"):
                assert process.returncode is None, log.read_text()
        async with grpc.aio.insecure_channel(record.address) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/ServerReady")
            assert oip.ServerReadyResponse.FromString(await call(b"", timeout=10)).ready
        assert await asyncio.to_thread(answers, f"http://127.0.0.1:{http}/v2/health/ready")
        metrics = await asyncio.to_thread(read, f"http://{record.admin_address}/metrics")
        assert "penstock_gateway_models 0.0" in metrics
        process.send_signal(signal.SIGTERM)
        await changed.until(lambda: not mirror.records)
        assert await asyncio.wait_for(process.wait(), 60) == 0, log.read_text()
    finally:
        following.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await store.close()


@pytest.mark.parametrize("flag", ["--no-such-option", "--retries=many"])
async def test_a_bad_option_ends_the_start(flag: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway", flag, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 2
    assert flag.partition("=")[0].encode() in said


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("flag", ["--port", "--http-port", "--admin-port"])
async def test_a_port_in_use_ends_the_start_with_a_line_that_names_it(flag: str, processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        others = {"--port", "--http-port", "--admin-port"} - {flag}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.gateway", f"--processes={processes}", f"{flag}={port}"),
            *(f"{other}=0" for other in others),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 2
    (line,) = said.decode().splitlines()
    assert line.startswith(f"gateway: cannot listen on 127.0.0.1:{port}")
