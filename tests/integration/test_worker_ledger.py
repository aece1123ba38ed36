"""A worker process says what it offers, measures what it loads, and ends with an empty ledger whatever went wrong."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.internal.v1.records_pb2 import AssignedDevice, AssignedReplica, DeviceRecord
from tests.harness import models
from tests.integration.worker_harness import FAILED, READY, WORKER, Bench, bench, engine_processes

CYCLES = 6
OFFERS = ("--devices=gpu:1000:A100,gpu:2000", "--labels=disk=ssd,rack=7", "--taints=batch")


@pytest.fixture
async def worker(store: Etcd, clean_etcd: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(store, clean_etcd, tmp_path, *OFFERS) as made:
        yield made


async def reserved(worker: Bench) -> dict[str, float]:
    """Reserved bytes by device, `memory` for the machine's, as the worker's metrics say."""
    address = worker.workers.records[keys.worker(WORKER)].admin_address
    with await asyncio.to_thread(urllib.request.urlopen, f"http://{address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    devices = re.findall(r'^penstock_worker_device_reserved_bytes\{device="(\d+)"\} (\S+)$', text, re.M)
    (memory,) = re.findall(r"^penstock_worker_reserved_bytes (\S+)$", text, re.M)
    return {"memory": float(memory), **{index: float(size) for index, size in devices}}


def on(assigned: AssignedReplica, index: int) -> AssignedReplica:
    """The same on a device."""
    made = AssignedReplica()
    made.CopyFrom(assigned)
    made.devices.append(AssignedDevice(index=index, memory_bytes=600))
    return made


async def test_a_worker_says_what_it_offers(worker: Bench) -> None:
    record = worker.workers.records[keys.worker(WORKER)]
    assert list(record.devices) == [
        DeviceRecord(index=0, kind="gpu", memory_bytes=1000, name="A100"),
        DeviceRecord(index=1, kind="gpu", memory_bytes=2000),
    ]
    assert (dict(record.labels), list(record.taints)) == ({"disk": "ssd", "rack": "7"}, ["batch"])
    assert record.failure_domain == socket.gethostname()


async def test_loads_that_fail_and_loads_that_work_give_everything_back(worker: Bench, tmp_path: Path) -> None:
    good = worker.publish(models.add_one(tmp_path / "m"))
    good.memory_bytes = 1 << 20
    empty = {"memory": 0.0, "0": 0.0, "1": 0.0}
    for number in range(CYCLES):
        if number % 2:
            await worker.assign(on(good, 9))
            record = await worker.reaches("add1", FAILED)
            assert record.reason == "needs device 9, which the worker does not have"
        else:
            await worker.assign(on(good, 1))
            record = await worker.reaches("add1", READY)
            held = await reserved(worker)
            assert (held["0"], held["1"]) == (0.0, 600.0)
            # An engine's process is bigger than this model says that it is: what was measured is booked and told.
            assert record.measured_bytes == held["memory"] > 1 << 20
        await worker.assign()
        await worker.gone("add1")
        assert await reserved(worker) == empty
    assert engine_processes(worker.pid) == []
