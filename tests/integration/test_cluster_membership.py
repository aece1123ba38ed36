"""Membership against a real etcd that restarts, forgets, and against pauses of our own process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.cluster import Membership, keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import KeyValue, TxnResult
from penstock.errors import Unavailable
from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc
from penstock.internal.v1.records_pb2 import ReplicaRecord, WorkerRecord
from tests.harness.etcd import EtcdProcess

KEY = keys.worker("worker-1")
RECORD = WorkerRecord(id="worker-1", memory_bytes=5)


@asynccontextmanager
async def joined(store: Etcd, ttl: float) -> AsyncIterator[Membership]:
    membership = Membership(store, ttl)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(membership.run())
        await membership.put(KEY, RECORD)
        yield membership
        task.cancel()


async def appears(store: Etcd, key: str, *, other_than_lease: int = 0) -> KeyValue:
    """The key once it is there, under another lease than that one."""
    async with asyncio.timeout(30):
        seen = await store.range(key)
        async with aclosing(store.watch(key, seen.revision + 1)) as stream:
            async for _ in stream:
                found = await store.get(key)
                if found is not None and found.lease != other_than_lease:
                    return found
    raise AssertionError("the watch ended")


async def test_records_live_under_a_lease_and_leave_at_once(store: Etcd) -> None:
    async with joined(store, ttl=5) as membership:
        replica = keys.replica("worker-1", "digits", 3)
        await membership.put(replica, ReplicaRecord(worker="worker-1", name="digits", version=3))
        await membership.settled()
        found = await store.get(KEY)
        assert found is not None and found.lease != 0
        assert records.from_json(WorkerRecord, found.value) == RECORD
        assert membership.present

        await membership.delete(replica)
        await membership.settled()
        assert await store.get(replica) is None

        await membership.leave()
        assert await store.get(KEY) is None
        assert not membership.present
        await membership.put(KEY, RECORD)
        await membership.settled()
        assert await store.get(KEY) is None


async def test_the_last_of_many_puts_wins(store: Etcd) -> None:
    async with joined(store, ttl=5) as membership:
        for memory in range(300):
            await membership.put(keys.worker(f"worker-{memory % 150}"), WorkerRecord(memory_bytes=memory))
        await membership.settled()
        found = (await store.range(keys.WORKERS)).items
        memories = {item.key: records.from_json(WorkerRecord, item.value).memory_bytes for item in found}
        assert memories == {keys.worker(f"worker-{n}"): n + 150 for n in range(150)}
        await membership.leave()


async def test_stays_through_many_leases(store: Etcd) -> None:
    """The records outlive the TTL several times and are never rewritten meanwhile."""
    async with joined(store, ttl=2) as membership:
        await membership.settled()
        before = await store.get(KEY)
        await asyncio.sleep(4.5)  # the subject is time itself
        assert await store.get(KEY) == before
        await membership.leave()


async def test_a_lost_lease_is_replaced_and_all_is_written_again(store: Etcd) -> None:
    async with joined(store, ttl=1) as membership:
        await membership.settled()
        before = await store.get(KEY)
        assert before is not None
        await store.revoke(before.lease)
        after = await appears(store, KEY, other_than_lease=before.lease)
        assert after.value == before.value
        await membership.leave()


async def test_what_is_put_while_etcd_is_away_is_there_when_it_is_back(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint], timeout=5)
    async with joined(store, ttl=2) as membership:
        await membership.settled()
        await asyncio.to_thread(etcd.kill)
        await membership.put(KEY, WorkerRecord(id="worker-1", draining=True))
        await membership.put(keys.worker("worker-2"), WorkerRecord(id="worker-2"))
        await asyncio.to_thread(etcd.start)
        async with asyncio.timeout(30):
            await membership.settled()
        found = await store.get(KEY)
        assert found is not None and records.from_json(WorkerRecord, found.value).draining
        assert await store.get(keys.worker("worker-2")) is not None
        await membership.leave()
    await store.close()


async def test_an_emptied_store_gets_everything_again(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint], timeout=5)
    async with joined(store, ttl=2) as membership:
        await membership.settled()
        await asyncio.to_thread(etcd.wipe)
        if await store.get(KEY) is None:
            await appears(store, KEY)
        await membership.leave()
        assert await store.get(KEY) is None
    await store.close()


async def test_comes_back_after_standing_still_past_its_lease(store: Etcd) -> None:
    async with joined(store, ttl=2) as membership:
        await membership.settled()
        stand_still_until_gone(store.endpoints[0])
        assert not membership.present
        found = await appears(store, KEY)
        assert records.from_json(WorkerRecord, found.value) == RECORD
        assert membership.present
        await membership.leave()


async def test_writes_whose_answers_are_lost_are_done_once_more(clean_etcd: str) -> None:
    """Nobody knows whether they were done: some were, and some were not."""
    store = Etcd([clean_etcd])
    losses = iter(["before", "after", "before", "after"])
    plain = store.txn

    async def losing(*arguments: Any, **options: Any) -> TxnResult:
        loss = next(losses, "")
        if loss != "before":
            result = await plain(*arguments, **options)
        if loss:
            raise Unavailable("lost")
        return result

    store.txn = losing  # type: ignore[method-assign]
    async with joined(store, ttl=5) as membership:
        await membership.settled()
        found = await store.get(KEY)
        assert found is not None and records.from_json(WorkerRecord, found.value) == RECORD
        losses = iter(["after"])
        await membership.put(KEY, WorkerRecord(id="worker-1", draining=True))
        await membership.delete(keys.worker("worker-2"))
        await membership.settled()
        assert next(losses, None) is None
        found = await store.get(KEY)
        assert found is not None and records.from_json(WorkerRecord, found.value).draining
        await membership.leave()
    await store.close()


async def test_what_was_written_is_read_back(store: Etcd) -> None:
    """Deleted behind its back, or overwritten by a write of its own that came late: the lease is alive all the time."""
    async with joined(store, ttl=2) as membership:
        await membership.settled()
        before = await store.get(KEY)
        assert before is not None
        await store.delete(KEY)
        assert (await appears(store, KEY)).value == before.value
        late = records.to_json(WorkerRecord(id="worker-1", memory_bytes=1))
        seen = await store.put(KEY, late, lease=before.lease)
        async with asyncio.timeout(30), aclosing(store.watch(KEY, seen + 1)) as stream:
            async for changes in stream:
                if changes.events:
                    assert changes.events[-1].value == before.value
                    break
        after = await store.get(KEY)
        assert after is not None and after.lease == before.lease
        await membership.leave()


async def test_a_store_restored_from_a_snapshot_gets_everything_again_though_the_lease_lives(
    etcd: EtcdProcess, tmp_path: Path
) -> None:
    store = Etcd([etcd.endpoint], timeout=20)
    async with joined(store, ttl=6) as membership:
        await membership.settled()
        await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "snapshot"))
        replica = keys.replica("worker-1", "digits", 3)
        await membership.put(replica, ReplicaRecord(worker="worker-1", name="digits", version=3))
        await membership.put(KEY, WorkerRecord(id="worker-1", draining=True))
        await membership.settled()
        stand_still_while_restored(etcd, tmp_path / "snapshot", without=replica)
        lease = (await appears(store, replica)).lease
        found = await store.get(KEY)
        assert found is not None and found.lease == lease
        assert records.from_json(WorkerRecord, found.value).draining
        await membership.leave()
    await store.close()


async def test_a_write_that_was_not_answered_does_not_hide_that_the_store_was_restored(
    etcd: EtcdProcess, tmp_path: Path
) -> None:
    """All that was confirmed since the snapshot is of the record that was being written."""
    store = Etcd([etcd.endpoint], timeout=20)
    replica = keys.replica("worker-1", "digits", 3)
    plain = store.txn

    async def unanswered(*arguments: Any, **options: Any) -> TxnResult:
        store.txn = plain  # type: ignore[method-assign]
        await plain(*arguments, **options)
        stand_still_while_restored(etcd, tmp_path / "snapshot", without=replica)
        raise Unavailable("lost")

    async with joined(store, ttl=6) as membership:
        await membership.settled()
        await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "snapshot"))
        await membership.put(replica, ReplicaRecord(worker="worker-1", name="digits", version=3))
        await membership.settled()
        store.txn = unanswered  # type: ignore[method-assign]
        await membership.put(replica, ReplicaRecord(worker="worker-1", name="digits", version=3, reason="late"))
        await membership.settled()
        assert membership.anew == 1
        found = await store.get(replica)
        assert found is not None and records.from_json(ReplicaRecord, found.value).reason == "late"
        await membership.leave()
    await store.close()


async def test_a_record_that_is_too_large_is_told_and_keeps_nobody_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether we know that it is, or only this etcd, which takes less than others."""
    etcd = EtcdProcess(tmp_path / "etcd", "--max-request-bytes=20000")
    await asyncio.to_thread(etcd.start)
    store = Etcd([etcd.endpoint])
    try:
        async with joined(store, ttl=5) as membership:
            for number, size in enumerate((10_000, 30_000, 2_000_000, 10_000, 10_000, 10_000)):
                record = WorkerRecord(id=f"large-{number}", address="x" * size)
                await membership.put(keys.worker(f"large-{number}"), record)
            await membership.settled()
            found = {item.key for item in (await store.range(keys.WORKERS)).items}
            assert found == {KEY, *(keys.worker(f"large-{number}") for number in (0, 3, 4, 5))}
            assert membership.present
            await membership.leave()
    finally:
        await store.close()
        etcd.kill()
    said = capsys.readouterr()
    assert (said.out + said.err).count("record_too_large") == 2


async def test_leaving_without_etcd_does_not_raise(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint], timeout=0.3)
    async with joined(store, ttl=1) as membership:
        await membership.settled()
        await asyncio.to_thread(etcd.kill)
        await membership.leave()
    await store.close()


def stand_still_while_restored(etcd: EtcdProcess, snapshot: Path, *, without: str) -> None:
    """Blocks the event loop, as SIGSTOP would, while etcd goes back to a snapshot that has not that key, and grows past
    every revision that we know."""
    etcd.restore(snapshot)
    with grpc.insecure_channel(etcd.endpoint) as channel:
        kv = rpc.KVStub(channel)
        for number in range(20):
            kv.Put(pb.PutRequest(key=b"/penstock/x", value=b"%d" % number), timeout=20, wait_for_ready=True)
        assert not kv.Range(pb.RangeRequest(key=without.encode()), timeout=20).kvs


def stand_still_until_gone(endpoint: str) -> None:
    """Blocks the event loop, as SIGSTOP would, until etcd has dropped the record."""
    deadline = time.monotonic() + 30
    with grpc.insecure_channel(endpoint) as channel:
        kv = rpc.KVStub(channel)
        while kv.Range(pb.RangeRequest(key=KEY.encode()), timeout=20).kvs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
