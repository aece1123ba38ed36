"""A worker whose lease is over (row 12 of the faults table): callers who cannot hear it are let go with what they asked
for, callers who live are served on, and all is announced anew once the store is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from tests.harness import models
from tests.harness.etcd import EtcdProcess
from tests.harness.http2 import HELLO
from tests.integration.worker_harness import READY, WORKER, bench

NUMBERS = [float(number) for number in range(16)]
PLUS_ONE = [number + 1 for number in NUMBERS]


async def test_only_callers_who_do_not_answer_are_let_go(etcd: EtcdProcess, tmp_path: Path) -> None:
    store = Etcd([etcd.endpoint])
    try:
        async with bench(store, etcd.endpoint, tmp_path) as worker:
            await worker.assign(worker.publish(models.add_one(tmp_path / "m")))
            await worker.reaches("add1", READY)
            assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
            live = worker.peer._link
            host, _, port = worker.workers.records[keys.worker(WORKER)].address.rpartition(":")
            deaf, writer = await asyncio.open_connection(host, int(port))
            writer.write(HELLO)
            await asyncio.to_thread(etcd.kill)
            gone = await worker.process.event("callers_let_go")
            assert gone["connections"] == 1
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(30):
                    while await deaf.read(4096):
                        pass
            assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
            assert worker.peer._link is live, "a caller that lives was let go"
            await asyncio.to_thread(etcd.start)
            await worker.process.event("membership_restored")
            writer.close()
    finally:
        await store.close()
