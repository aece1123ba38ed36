"""Rows 2 and 4 of the faults table on a real worker: its engine has too little memory, loses its device, is killed for
memory."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.errors import PenstockError, ResourceExhausted, Unavailable
from penstock.internal.v1.records_pb2 import AssignedDevice
from tests.harness import models
from tests.harness.troubled_engine import Trouble, install
from tests.integration.worker_harness import FAILED, READY, WORKER, Bench, bench, engine_processes

ROWS = [[float(number)] * 16 for number in range(120)]
ANSWERS = [[row[0] + 1] * 16 for row in ROWS]


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    made = install(tmp_path / "hook")
    monkeypatch.setenv("PYTHONPATH", str(made.folder))
    return made


@pytest.fixture
async def worker(store: Etcd, clean_etcd: str, tmp_path: Path, trouble: Trouble) -> AsyncIterator[Bench]:
    async with bench(store, clean_etcd, tmp_path, "--devices=gpu:1000000,gpu:1000000") as made:
        yield made


async def test_a_batch_that_does_not_fit_costs_no_answer(worker: Bench, trouble: Trouble, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.add_one(tmp_path / "m", max_batch_size=8)))
    await worker.reaches("add1", READY)
    (pid,) = engine_processes(worker.pid)
    trouble.full(4)
    answers = await asyncio.gather(*(worker.add_one(row) for row in ROWS))
    assert [answer for answer, _ in answers] == ANSWERS
    trouble.full(0)
    with pytest.raises(ResourceExhausted, match="not enough memory for this batch"):
        await worker.add_one(ROWS[0])
    trouble.over()
    assert (await worker.add_one(ROWS[1]))[0] == ANSWERS[1]
    assert engine_processes(worker.pid) == [pid], "the engine was started anew for a want of memory"


async def test_an_engine_that_dies_of_memory_is_started_anew(worker: Bench, trouble: Trouble, tmp_path: Path) -> None:
    """The engine's address space is capped below what it needs, by the kernel: MemoryError for one batch, no death."""
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
    await worker.reaches("add1", READY)
    (pid,) = engine_processes(worker.pid)
    resource.prlimit(pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
    trouble.eats(8 << 30)
    with pytest.raises(ResourceExhausted, match="not enough memory for this batch"):
        await worker.add_one(ROWS[0])
    trouble.over()
    assert (await worker.add_one(ROWS[1]))[0] == ANSWERS[1]
    assert engine_processes(worker.pid) == [pid]


async def test_an_engine_that_loses_its_device_is_relaunched(worker: Bench, trouble: Trouble, tmp_path: Path) -> None:
    await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
    await worker.reaches("add1", READY)
    (pid,) = engine_processes(worker.pid)
    trouble.lost()
    ends = await asyncio.gather(*(worker.add_one(row) for row in ROWS), return_exceptions=True)
    assert all(isinstance(end, Unavailable) for end in ends), ends
    await worker.fails("add1")
    trouble.over()
    await worker.comes_back("add1")
    assert (await worker.add_one(ROWS[1]))[0] == ANSWERS[1]
    assert engine_processes(worker.pid) != [pid]


async def test_a_device_that_is_lost_three_times_is_cordoned(worker: Bench, trouble: Trouble, tmp_path: Path) -> None:
    assigned = worker.publish(models.add_one(tmp_path / "m"))
    assigned.devices.append(AssignedDevice(index=1, memory_bytes=1000))
    await worker.assign(assigned)
    await worker.reaches("add1", READY)
    trouble.lost()
    with pytest.raises(PenstockError):
        await worker.add_one(ROWS[0])

    def cordoned() -> list[int]:
        return [each.index for each in worker.workers.records[keys.worker(WORKER)].devices if each.cordoned]

    await worker.changed.until(cordoned, 60)
    assert cordoned() == [1]
    # The device is told first, the replica's state after it.
    record = await worker.reaches("add1", FAILED)
    assert "device" in record.reason
    assert "CUDA" not in record.reason
