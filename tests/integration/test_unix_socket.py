"""The hop by unix socket: taken where gateway and worker share a host, TCP wherever it leads to nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.internal.v1.records_pb2 import DeploymentRecord, WantedVersion
from penstock.wire.client import Peer
from penstock.wire.http2 import Server, unix
from tests.harness import models
from tests.harness.http2_services import MEGABYTES_64, Service, ask
from tests.harness.processes import Service as Process
from tests.harness.processes import started
from tests.integration.test_gateway_process import answers
from tests.integration.worker_harness import READY, Bench, bench


@asynccontextmanager
async def both_ways(service: Service, folder: Path) -> AsyncIterator[tuple[Server, str, str]]:
    """A server with a port and a unix socket: server, address, path."""
    os.chmod(folder, 0o700)
    server = Server(service.methods())
    address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    listener, path = unix.bound(str(folder))
    await server.start_on(listener)
    try:
        yield server, address, path
    finally:
        await server.close()


async def test_the_socket_is_preferred_and_carries_large_messages(tmp_path: Path) -> None:
    async with both_ways(Service(), tmp_path) as (server, address, path):
        peer = Peer(address, unix_socket=lambda: path)
        assert (await ask(peer, "Echo", MEGABYTES_64, seconds=60)).payload == MEGABYTES_64
        assert server.connected == {"tcp": 0, "tls": 0, "unix": 1}
        await peer.close()


async def test_a_broken_connection_goes_on_by_tcp_without_a_failed_call(tmp_path: Path) -> None:
    service = Service()
    async with both_ways(service, tmp_path) as (server, address, path):
        peer = Peer(address, unix_socket=lambda: path)
        await ask(peer, "Echo")
        assert peer._link is not None
        noticed = peer._link.over
        os.unlink(path)
        for link in list(server._links):
            link.abort()
        await asyncio.wait({noticed})
        assert (await ask(peer, "Echo")).payload == b"x"
        assert server.connected["tcp"] == 1
        await peer.close()


async def test_paths_that_lead_to_nothing_cost_no_call(tmp_path: Path) -> None:
    async with both_ways(Service(), tmp_path) as (server, address, path):
        listener, dead = unix.bound(str(tmp_path))
        listener.close()
        for useless in (dead, f"{path[:-6]}.sock", "/elsewhere" + path, "", "/etc/passwd"):
            peer = Peer(address, unix_socket=lambda useless=useless: useless)  # type: ignore[misc]
            assert (await ask(peer, "Echo")).payload == b"x"
            assert server.connected["tcp"] == 1
            await peer.close()
            while server.connections:
                await asyncio.wait({link.over for link in server._links})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("user", "said"), [(65534, b"b''"), (0, b"b'\\x00")])
async def test_another_user_is_turned_away(user: int, said: bytes) -> None:
    greeted = (
        "import os, socket, sys; os.setuid(int(sys.argv[2]));"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1000))"
    )
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        async with both_ways(Service(), Path(folder)) as (_, _, path):
            # As if somebody had opened folder and socket to everybody.
            os.chmod(folder, 0o755)
            os.chmod(path, 0o777)
            stranger = await asyncio.create_subprocess_exec(
                sys.executable, "-c", greeted, path, str(user), stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(stranger.communicate(), 30)
            assert output.startswith(said)


def connections(admin_address: str) -> dict[str, float]:
    """By kind, as the process counts them."""
    with urllib.request.urlopen(f"http://{admin_address}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = (line.partition("}") for line in lines if line.startswith("penstock_connections{"))
    return {head.split('"')[1]: float(value) for head, _, value in found}


@asynccontextmanager
async def gateway(endpoint: str) -> AsyncIterator[tuple[Process, Peer]]:
    """A gateway's process that has read the routes."""
    flags = ("--port=0", "--admin-port=0", "--http-port=0", f"--etcd={endpoint}")
    async with started("services.gateway", *flags) as process:
        event = await process.event("started")
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(answers, f"http://{event['admin']}/readyz"):
                assert process.events()
        peer = Peer(event["address"])
        try:
            yield process, peer
        finally:
            await peer.close()


async def deployed(worker: Bench, store: Etcd, folder: Path) -> None:
    await worker.assign(worker.publish(models.add_one(folder / "model")))
    await worker.reaches("add1", READY)
    record = DeploymentRecord(name="add1", versions=[WantedVersion(version=1, replicas=1)], default_version=1)
    await store.put(keys.deployment("add1"), records.to_json(record))


async def test_a_gateway_and_a_worker_on_one_host(store: Etcd, clean_etcd: str, tmp_path: Path) -> None:
    async with bench(store, clean_etcd, tmp_path) as worker:
        await deployed(worker, store, tmp_path)
        (record,) = worker.workers.records.values()
        (replica,) = worker.replicas.records.values()
        async with gateway(clean_etcd) as (_, peer):
            worker.peer, direct = peer, worker.peer
            assert (await worker.add_one(range(16)))[0] == list(range(1, 17))
            assert await asyncio.to_thread(connections, record.admin_address) == {"tcp": 0, "tls": 0, "unix": 1}
        os.unlink(replica.unix_socket)
        async with gateway(clean_etcd) as (_, peer):
            worker.peer = peer
            assert (await worker.add_one(range(16)))[0] == list(range(1, 17))
            assert (await asyncio.to_thread(connections, record.admin_address))["tcp"] == 1
        worker.peer = direct


async def test_a_long_folder_for_temporary_files_does_not_break_a_start(
    store: Etcd, clean_etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("t" * 120)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    async with bench(store, clean_etcd, tmp_path) as worker:
        await deployed(worker, store, tmp_path)
        (replica,) = worker.replicas.records.values()
        assert replica.unix_socket
        unix.connected(replica.unix_socket).close()
        assert (await worker.add_one(range(16)))[0] == list(range(1, 17))
