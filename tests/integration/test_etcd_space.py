"""A real etcd that runs full: writes are refused and remembered, everything else goes on, and nobody is restarted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock import signals
from penstock.cluster import Membership, Mirror, keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import NoSpace
from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.kit.metrics import REGISTRY, counter
from services.scheduler.alarms import Alarms
from tests.harness.etcd import EtcdProcess
from tests.harness.waiting import Changed

KEY = keys.worker("worker-1")
FILLING = "/penstock/filling"


async def fill(store: Etcd) -> int:
    """Writes until the store is full; the revision of the last write."""
    revision = 0
    with pytest.raises(NoSpace):
        while True:
            revision = await store.put(FILLING, bytes(50_000))
    return revision


def alarm() -> float | None:
    return REGISTRY.get_sample_value(signals.SCHEDULER_ETCD_ALARM.name, {"alarm": "NOSPACE"})


async def test_a_full_store_is_told_and_got_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etcd = EtcdProcess(tmp_path / "etcd", "--quota-backend-bytes=1000000")
    await asyncio.to_thread(etcd.start)
    store = Etcd([etcd.endpoint])
    changed = Changed()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed)
    membership = Membership(store, ttl=3)
    refused = counter(signals.ETCD_FAILURES).labels("no_space")
    try:
        async with asyncio.TaskGroup() as group:
            alarms = Alarms(store, interval=0.05)
            runs = (mirror.run(), membership.run(), alarms.run())
            tasks = [group.create_task(run) for run in runs]
            await membership.put(KEY, WorkerRecord(id="worker-1"))
            await changed.until(lambda: mirror.connected and KEY in mirror.records)
            before = await store.get(KEY)
            assert alarm() == 0
            last = await fill(store)
            assert refused.value > 0
            async with asyncio.timeout(30):
                while alarm() != 1:  # noqa: ASYNC110 - a gauge has no event
                    await asyncio.sleep(0.02)

            # What is put now waits; what is there stays, through many leases, and can be read.
            await membership.put(KEY, WorkerRecord(id="worker-1", draining=True))
            with pytest.raises(NoSpace):
                await store.grant(5)
            await asyncio.sleep(5)  # the subject is time itself: leases of three seconds
            assert membership.present
            assert await store.get(KEY) == before
            assert mirror.connected and not mirror.records[KEY].draining

            for words in (("compact", str(last)), ("defrag",), ("alarm", "disarm")):
                await asyncio.to_thread(etcd.ctl, *words)
            await changed.until(lambda: mirror.records[KEY].draining)
            async with asyncio.timeout(30):
                await membership.settled()
                while alarm() != 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            after = await store.get(KEY)
            assert before is not None and after is not None and after.lease == before.lease
            for task in tasks:
                task.cancel()
    finally:
        await store.close()
        await asyncio.to_thread(etcd.kill)
    said = capsys.readouterr()
    assert "etcd_alarm" in said.out + said.err and "etcd_alarm_over" in said.out + said.err
