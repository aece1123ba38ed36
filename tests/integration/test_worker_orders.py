"""Whose orders a worker follows (rows 6 and 11 of the faults table): no term below one that it has seen, whoever wrote
it and however often; all of them anew once the store has gone back in time."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.internal.v1.records_pb2 import AssignedReplica
from tests.harness import models
from tests.harness.etcd import EtcdProcess
from tests.integration.worker_harness import READY, WORKER, Bench, bench

STALE = 1000
NOW = 1_000_000
NUMBERS = [float(number) for number in range(16)]
PLUS_ONE = [number + 1 for number in NUMBERS]


async def serves(worker: Bench, folder: Path, term: int) -> AssignedReplica:
    """A model that was assigned in this term and answers."""
    assigned = worker.publish(models.add_one(folder))
    await worker.assign(assigned, term=term)
    await worker.reaches("add1", READY)
    assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
    return assigned


async def test_a_thousand_orders_of_the_past_are_each_looked_at_and_refused(
    store: Etcd, clean_etcd: str, tmp_path: Path
) -> None:
    async with bench(store, clean_etcd, tmp_path) as worker:
        assigned = await serves(worker, tmp_path / "m", NOW)
        before = await store.range(keys.replicas_of(WORKER))
        for number in range(STALE):
            term = NOW - 1 - number
            # Half of them would stop the replica, half start another.
            await worker.assign(*([_other(assigned)] if number % 2 else []), term=term)
            await worker.process.event("stale_assignment_refused", term=term)
        assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
        assert (await store.range(keys.replicas_of(WORKER))).items == before.items, "no replica was touched"
        # The newest leader is heard all the same.
        await worker.assign(term=NOW + 1)
        await worker.gone("add1")


async def test_after_a_restore_the_terms_of_the_new_history_are_followed(etcd: EtcdProcess, tmp_path: Path) -> None:
    """Terms are revisions, and a restored store counts from where the snapshot was: what was seen before says nothing
    any more."""
    store = Etcd([etcd.endpoint])
    try:
        async with bench(store, etcd.endpoint, tmp_path) as worker:
            assigned = await serves(worker, tmp_path / "m", 40)
            await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "snapshot"))
            await worker.assign(assigned, term=NOW)
            await asyncio.to_thread(etcd.restore, tmp_path / "snapshot")
            worker.store = anew = Etcd([etcd.endpoint])  # the other one may still think that nobody is there
            await worker.process.event("store_rewound", prefix=keys.assignment(WORKER))
            other = worker.publish(models.add_one(tmp_path / "other"), version=2)
            await worker.assign(assigned, other, term=60)
            await worker.reaches("add1", READY, 2)
            # And from there on the rule holds as before.
            await worker.assign(term=59)
            await worker.process.event("stale_assignment_refused", term=59)
            assert (await worker.add_one(NUMBERS))[0] == PLUS_ONE
            await anew.close()
    finally:
        await store.close()


async def test_a_restore_that_was_slept_through_is_noticed_by_what_the_store_has_lost(
    etcd: EtcdProcess, tmp_path: Path
) -> None:
    """While the worker stands still the store is restored and grows past where it was: no revision that the worker sees
    then goes back, and its own assignment is one that it never saw, of a lower term."""
    store = Etcd([etcd.endpoint])
    try:
        async with bench(store, etcd.endpoint, tmp_path) as worker:
            assigned = await serves(worker, tmp_path / "m", 40)
            await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "snapshot"))
            other = worker.publish(models.add_one(tmp_path / "other"), version=2)
            await worker.assign(assigned, other, term=NOW)
            await worker.reaches("add1", READY, 2)
            worker.process.send(signal.SIGSTOP)
            await asyncio.to_thread(etcd.restore, tmp_path / "snapshot")
            worker.store = anew = Etcd([etcd.endpoint])  # the other one may still think that nobody is there
            for number in range(100):
                await anew.put("/penstock/others", str(number).encode())
            third = worker.publish(models.add_one(tmp_path / "third"), version=3)
            await worker.assign(assigned, third, term=60)
            worker.process.send(signal.SIGCONT)
            await worker.reaches("add1", READY, 3)
            await anew.close()
    finally:
        await store.close()


def _other(assigned: AssignedReplica) -> AssignedReplica:
    """A version that is not there."""
    made = AssignedReplica()
    made.CopyFrom(assigned)
    made.version = 2
    return made
