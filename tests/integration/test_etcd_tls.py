"""TLS to a real etcd that asks for certificates: who is let in, and what happens when everything is renewed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cluster import Membership, keys
from penstock.cluster.etcd import Etcd
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.kit.tls import LOOK_SECONDS, Certificates, Files
from tests.harness.certs import Certs
from tests.harness.etcd import EtcdProcess
from tests.harness.processes import started


def calling(certs: Certs) -> Files:
    return Files(cert=certs.cert, key=certs.key, ca=certs.ca, prefix="etcd_", serves=False)


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs.make(tmp_path / "certs")


@pytest.fixture
async def secured(certs: Certs, tmp_path: Path) -> AsyncIterator[EtcdProcess]:
    process = EtcdProcess(tmp_path / "etcd", certs=certs)
    await asyncio.to_thread(process.start)
    yield process
    await asyncio.to_thread(process.kill)


async def test_only_who_shows_a_certificate_of_the_ca_is_let_in(
    secured: EtcdProcess, certs: Certs, tmp_path: Path
) -> None:
    stranger = Certs.make(tmp_path / "stranger")
    trusting = Files(cert=stranger.cert, key=stranger.key, ca=certs.ca, prefix="etcd_", serves=False)
    for files, enters in (
        (calling(certs), True),
        (Files(ca=certs.ca, prefix="etcd_", serves=False), False),
        (trusting, False),
        (calling(stranger), False),
        (Files(), False),
    ):
        store = Etcd([secured.endpoint], credentials=Certificates(files).channel, timeout=20 if enters else 2)
        if enters:
            await store.put("/penstock/a", b"1")
        else:
            with pytest.raises(Unavailable):
                await store.get("/penstock/a")
        await store.close()


async def test_renewed_certificates_are_taken_without_a_restart(
    secured: EtcdProcess, certs: Certs, tmp_path: Path
) -> None:
    """Even all of them at once, of another CA; calls on the old connection are not cut off."""
    now = 0.0
    certificates = Certificates(calling(certs), clock=lambda: now)
    store = Etcd([secured.endpoint], credentials=certificates.channel, timeout=5)
    membership = Membership(store, ttl=4)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(membership.run())
        await membership.put(keys.worker("worker-1"), WorkerRecord(id="worker-1"))
        await membership.settled()
        standing = store.watch("/penstock/", 1)
        await anext(standing)

        certs.renew()
        now += LOOK_SECONDS
        revision = await store.put("/penstock/a", b"1")
        while (await anext(standing)).revision < revision:
            pass
        await standing.aclose()

        other = Certs.make(tmp_path / "other")
        for name in ("ca.pem", "penstock.key", "penstock.pem"):
            shutil.copy(other.folder / name, certs.folder / name)
        await asyncio.to_thread(secured.restart)
        now += LOOK_SECONDS
        await membership.put(keys.worker("worker-2"), WorkerRecord(id="worker-2"))
        async with asyncio.timeout(30):
            await membership.settled()
        running.cancel()
    assert await store.get(keys.worker("worker-2")) is not None
    await store.close()


async def test_a_service_by_its_settings(secured: EtcdProcess, certs: Certs) -> None:
    free = ("--port=0", "--admin-port=0", f"--etcd={secured.endpoint}")
    environment = {
        "PENSTOCK_ETCD_CA": certs.ca,
        "PENSTOCK_ETCD_CERT": certs.cert,
        "PENSTOCK_ETCD_KEY": certs.key,
    }
    async with started("services.scheduler", *free, **environment) as process:
        await process.event("term_began")
    for flags, said in (
        ((f"--etcd-cert={certs.cert}", f"--etcd-key={certs.key}"), "set etcd_ca"),
        ((f"--etcd-cert={certs.cert}",), "etcd_cert and etcd_key go together"),
        (("--etcd-ca=/nowhere.pem",), "etcd_ca: /nowhere.pem cannot be read"),
    ):
        async with started("services.scheduler", *free, *flags) as process:
            assert await process.ended() == 2
        (line,) = process.lines
        assert line.startswith("scheduler: ") and said in line
