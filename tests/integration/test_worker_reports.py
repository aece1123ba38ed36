"""A worker process tells schedulers what its replicas do, and how long they took to load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from tests.harness import models
from tests.integration.scheduler_double import scheduler
from tests.integration.worker_harness import READY, WORKER, bench


@pytest.fixture
async def store(clean_etcd: str) -> AsyncIterator[Etcd]:
    made = Etcd([clean_etcd])
    yield made
    await made.close()


async def test_work_is_reported(store: Etcd, clean_etcd: str, tmp_path: Path) -> None:
    async with bench(store, clean_etcd, tmp_path) as it, scheduler() as boss:
        await store.put(keys.service("scheduler", boss.name), records.to_json(boss.record))
        await it.assign(it.publish(models.add_one(tmp_path / "add1")))
        ready = await it.reaches("add1", READY)
        assert 0.05 < ready.load_seconds < 60, "an engine's process was started"
        for _ in range(5):
            await it.add_one([1.0] * 16)
        await boss.changed.until(lambda: sum(told.dequeued for told in boss.of("add1")) == 5)
        assert {report.source for report in boss.reports} == {WORKER}
        assert 0 < sum(told.busy_seconds for told in boss.of("add1")) < 5
        assert sum(told.queue_seconds for told in boss.of("add1")) < 5
        assert sum(told.requests for told in boss.of("add1")) == 0, "those are the gateways' to tell"
